"""Lines of the user's files: where an operation, or what is wrong, was written."""

from __future__ import annotations

import contextlib
import os
import sys
from types import FrameType, TracebackType
from typing import NamedTuple

import numpy as np
import optree


class Loc(NamedTuple):
    """A line of the user's code.

    ``order`` says how often what stands there was pulled back: 1 for its adjoint, 2 for the adjoint of that.
    """

    file: str
    line: int
    function: str
    order: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}{', adjoint' * self.order}"

    def pulled_back(self) -> Loc:
        """Return where the adjoint of what is written here stands."""
        return self._replace(order=self.order + 1)


def _folder(path: str) -> str:
    return os.path.join(path, "")


_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = tuple(
    {
        _folder(spell(os.path.join(_HERE, part)))
        for part in ("", "ir", "backends")
        for spell in (os.path.abspath, os.path.realpath)
    }
)
"""The folders of this package's files, spelled with and without the links in ``kernelforge/``."""

_BETWEEN = (*(_folder(os.path.dirname(str(m.__file__))) for m in (np, optree)), contextlib.__file__, "<")
"""How the files begin that stand between this package and the user's: of libraries it calls through, and of no file."""


def in_package(file: str) -> bool:
    """Whether ``file`` is one of this package's."""
    return file.startswith(_PACKAGE)


def _is_users(file: str) -> bool:
    return not file.startswith(_BETWEEN) and not in_package(file)


def is_users(error: BaseException) -> bool:
    """Whether a function of the user's ran where an error was raised, after where it is caught."""
    step: TracebackType | None = error.__traceback__
    while step is not None:
        if _is_users(step.tb_frame.f_code.co_filename):
            return True
        step = step.tb_next
    return False


def user_line() -> Loc | None:
    """Return the innermost line on the stack that is not this package's (nor a library's it calls through)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if _is_users(name):
            return Loc(name, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back
    return None
