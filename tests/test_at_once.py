"""Functions that several threads run at once."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from kernelforge.at_once import SWITCH, at_once


def test_one_thread_runs_when_it_is_asked() -> None:
    ran: list[int] = []
    with at_once(1) as start:
        wait = start(lambda: ran.append(1))
        assert ran == []
    wait()
    wait()
    assert ran == [1]


@pytest.mark.parametrize("threads", [2, 3])
def test_each_runs_once_and_all_are_done(threads: int) -> None:
    ran: list[int] = []

    def task(k: int) -> int:
        ran.append(k)
        return k * k

    with at_once(threads) as start:
        waits = [start(lambda k=k: task(k)) for k in range(20)]  # type: ignore[misc]
    assert sorted(ran) == list(range(20))
    assert [wait() for wait in waits] == [wait() for wait in waits] == [k * k for k in range(20)]


def test_the_caller_takes_part_in_what_others_have_not_begun() -> None:
    begun, go = threading.Event(), threading.Event()
    by: list[int] = []

    def first() -> int:
        begun.set()
        assert go.wait(20)
        return threading.get_ident()

    def last() -> int:
        by.append(threading.get_ident())
        go.set()
        return by[0]

    with at_once(2) as start:
        one = start(first)
        assert begun.wait(20)
        other = start(last)
        assert not by
    assert one() != threading.get_ident() == other()


@pytest.mark.parametrize("fails", [0, 1])
def test_what_fails_raises(fails: int) -> None:
    def task(k: int) -> int:
        if k == fails:
            raise ArithmeticError(str(k))
        return k

    def run() -> None:
        with at_once(2) as start:
            waits = [start(lambda k=k: task(k)) for k in range(2)]  # type: ignore[misc]
        for wait in waits:
            wait()

    with pytest.raises(ArithmeticError, match=str(fails)):
        run()


def test_threads_take_turns_sooner_meanwhile() -> None:
    before = sys.getswitchinterval()
    with at_once(2), at_once(2):
        assert sys.getswitchinterval() == pytest.approx(SWITCH, rel=0.1)
    with pytest.raises(ArithmeticError), at_once(2):
        raise ArithmeticError
    assert sys.getswitchinterval() == pytest.approx(before)


@pytest.mark.parametrize("begin", ["threading.Thread(target=work).start()", "atexit.register(work)"])
def test_work_goes_on_after_the_main_thread(begin: str) -> None:
    code = (
        "import atexit, threading, time\n"
        "from kernelforge.at_once import at_once\n"
        "def work():\n"
        "    while threading.main_thread().is_alive():\n"
        "        time.sleep(0.01)\n"
        "    with at_once(2) as start:\n"
        "        waits = [start(lambda k=k: k) for k in range(3)]\n"
        "    print([wait() for wait in waits])\n"
        f"{begin}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[0, 1, 2]\n", "")


def test_what_nobody_has_begun_is_left_where_one_fails() -> None:
    begun, go = threading.Event(), threading.Event()
    ran: list[int] = []

    def first() -> None:
        begun.set()
        assert go.wait(20)

    def run() -> None:
        with at_once(2) as start:
            start(first)
            assert begun.wait(20)
            start(lambda: ran.append(1))
            threading.Timer(0.1, go.set).start()
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        run()
    assert not ran
