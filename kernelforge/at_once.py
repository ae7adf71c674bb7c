"""Functions that several threads run at once while their caller prepares more of them."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kernelforge.forks import UNFORKED

if TYPE_CHECKING:
    from concurrent.futures import Executor

T = TypeVar("T")

SWITCH = 2e-4
"""Seconds after which a thread lets another one run Python meanwhile."""


@contextlib.contextmanager
def at_once(threads: int) -> Iterator[Callable[[Callable[[], T]], Callable[[], T]]]:
    """Yield what starts a function and returns one that waits for its result; at the end all are done.

    The caller is one of the ``threads``: at the end it takes part in what the others have not begun.
    After the main thread's end, when Python starts no pools any more, it does all of it.
    """
    if threads <= 1 or not threading.main_thread().is_alive():
        yield functools.cache
        return
    with UNFORKED:  # a child would wait for the rest of the import
        from concurrent.futures import ThreadPoolExecutor

    tasks: list[_Task[Any]] = []

    def start(function: Callable[[], T]) -> Callable[[], T]:
        task = _Task(pool, function)
        tasks.append(task)
        return task

    # the others ask for Python's lock after each call of a library, the caller holds it all the time
    interval = sys.getswitchinterval()
    with ThreadPoolExecutor(threads - 1, "kernelforge") as pool:
        sys.setswitchinterval(min(interval, SWITCH))
        try:
            yield start
            for task in tasks:
                task.help()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            sys.setswitchinterval(interval)


class _Task(Generic[T]):
    """A function that a thread of a pool runs, or the one that helps."""

    def __init__(self, pool: Executor, function: Callable[[], T]) -> None:
        self._function = functools.cache(function)
        self._future = pool.submit(self._function)

    def help(self) -> None:
        if self._future.cancel():
            self._function()

    def __call__(self) -> T:
        return self._function() if self._future.cancelled() else self._future.result()
