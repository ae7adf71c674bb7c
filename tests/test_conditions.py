"""Hostile conditions: damaged caches, full disks, killed processes, forks, missing drivers, compilers that fail."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.backends import registry
from kernelforge.backends.base import Executable
from kernelforge.backends.reference import Reference
from kernelforge.cli import main
from kernelforge.compile import forget
from kernelforge.ir.kernel import Kernel
from kernelforge.runtime import cache

X = np.random.default_rng(3).standard_normal((37, 20)).astype(np.float32)


def program(x: Any) -> Any:
    return np.tanh(x) @ x.T + np.exp(x).sum(1)


def run() -> np.ndarray[Any, Any]:
    """Compile and run, with nothing kept in memory."""
    forget()
    return np.asarray(kf.jit(program)(X))


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty cache folder."""
    monkeypatch.setenv("KERNELFORGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def python(code: str, folder: pathlib.Path) -> subprocess.Popen[str]:
    head = (
        "import os, signal, sys\nimport numpy as np\nimport kernelforge as kf\n"
        "from tests.test_conditions import X, program, run\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code],
        env=os.environ | {"KERNELFORGE_CACHE_DIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


RUN = "np.testing.assert_allclose(run(), program(X), rtol=1e-4)\n"


# The disk cache

DAMAGE: dict[str, Callable[[bytes, bytes], bytes]] = {
    "empty": lambda own, other: b"",
    "cut": lambda own, other: own[: len(own) // 2],
    "head only": lambda own, other: own[:20],
    "garbage": lambda own, other: bytes(range(256)) * 40,
    "one bit": lambda own, other: own[:-9] + bytes([own[-9] ^ 1]) + own[-8:],
    "longer": lambda own, other: own + b"\0",
    "another key's": lambda own, other: other,
}


@pytest.mark.parametrize("name", ["cpu", "opencl"])
def test_damaged_files_are_compiled_anew(folder: pathlib.Path, name: str) -> None:
    try:
        registry.backend(name)
    except errors.DeviceUnavailable as error:
        pytest.skip(str(error))
    with kf.default_device(name):
        expected = run()
        files = cache.files()
        assert len(files) > 1
        good = [f.read_bytes() for f in files]
        for what, damage in DAMAGE.items():
            for k, file in enumerate(files):
                file.write_bytes(damage(good[k], good[k - 1]))
            damaged = [f.read_bytes() for f in files]
            np.testing.assert_array_equal(run(), expected, err_msg=what)
            assert all(f.read_bytes() != d for f, d in zip(files, damaged, strict=True)), what
            kept = [f.read_bytes() for f in files]
            run()
            assert [f.read_bytes() for f in files] == kept, what


def test_what_the_backend_refuses_is_compiled_anew(folder: pathlib.Path) -> None:
    expected = run()
    for file in cache.files():
        cache.store(file.stem, b"whole, but not a kernel")
    np.testing.assert_array_equal(run(), expected)
    assert all(len(f.read_bytes()) > 1000 for f in cache.files())


def test_folders_that_cannot_be_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where the folder should, or above it: what a read-only disk does, for root too."""
    (tmp_path / "file").write_text("")
    for where in (tmp_path / "file", tmp_path / "file" / "cache", pathlib.Path(os.devnull) / "cache"):
        monkeypatch.setenv("KERNELFORGE_CACHE_DIR", str(where))
        with pytest.warns(
            RuntimeWarning, match=r"cannot be written \(.+\); set KERNELFORGE_CACHE_DIR to a folder that"
        ):
            found = run()
        np.testing.assert_allclose(found, program(X), rtol=1e-4)
    assert main(["cache", "clear"]) == 0
    assert (tmp_path / "file").exists()


def test_a_folder_in_place_of_a_file(folder: pathlib.Path) -> None:
    expected = run()
    for file in cache.files():
        file.unlink()
        file.mkdir()
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        np.testing.assert_array_equal(run(), expected)
    assert main(["cache", "clear"]) == 0


def _full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", [(os, "fdopen"), (os, "replace"), (tempfile, "mkstemp"), (pathlib.Path, "mkdir")])
def test_a_full_disk(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(*where, _full)
        with pytest.warns(RuntimeWarning, match=r"cannot be written \(No space left on device\)"):
            found = run()
    np.testing.assert_allclose(found, program(X), rtol=1e-4)
    assert cache.files() == []
    run()
    assert {f.suffix for f in cache.files()} == {".kernel"}


@pytest.mark.parametrize("where", [(os, "replace"), (cache, "store"), (cache, "load")])
def test_an_interrupt_leaves_nothing_behind(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    fn = kf.jit(program)
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(*where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fn(X)
    assert cache.files() == []
    np.testing.assert_allclose(fn(X), program(X), rtol=1e-4)


def _kept(folder: pathlib.Path, count: int = 40) -> list[str]:
    """Write files of a kilobyte each, each a second older than the next."""
    names = [f"{k:064x}" for k in range(count)]
    for k, name in enumerate(names):
        cache.store(name, bytes([k]) * 1000)
        os.utime(folder / f"{name}{cache.SUFFIX}", (1e9 + k, 1e9 + k))
    return names


def test_names_of_one_content(folder: pathlib.Path) -> None:
    """A file with the name of another one is as good as that one."""
    whole, other = "a" * 64, "b" * 64
    cache.store(whole, b"12345" * 1000)
    cache.share(other, whole)
    assert cache.load(other) == cache.load(whole) == b"12345" * 1000
    assert sum(f.stat().st_size for f in cache.files()) < 5200
    cache.discard(whole)
    assert cache.load(other) is None
    cache.share(whole, other)
    assert cache.load(other) is None  # each other's
    cache.store(other, b"6")
    assert cache.load(other) == b"6"


def test_what_was_used_longest_ago_goes_where_the_folder_is_full(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = _kept(folder)
    other = folder / "tuned.txt"
    other.write_text("not the cache's" * 10000)
    cache.evict()
    assert len(cache.files()) == 40
    assert cache.load(names[3]) == bytes([3]) * 1000  # used now
    monkeypatch.setattr(cache, "MOST", 40 * (1000 + cache.DIGEST))
    cache.evict()
    assert len(cache.files()) == 40
    monkeypatch.setattr(cache, "MOST", 20 * (1000 + cache.DIGEST))
    cache.evict()
    assert {f.stem for f in cache.files()} == {names[3], *names[-14:]}
    assert other.exists()


def test_whoever_writes_looks_at_the_folder_now_and_then(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(cache, "evict", lambda: looked.append(1))
    for k in range(1000):
        cache.store(f"{k:064x}", b"")
    assert 1 <= len(looked) <= 16
    looked.clear()
    monkeypatch.setattr(cache, "MOST", cache.SELDOM * 1000)
    for k in range(10):
        cache.store(f"{k:064x}", bytes(1001))
    assert len(looked) == 10


def test_a_folder_that_is_emptied_while_a_file_is_written(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def emptied(source: str, target: pathlib.Path) -> None:
        assert main(["cache", "clear"]) == 0
        replace(source, target)

    monkeypatch.setattr(os, "replace", emptied)
    cache.store("a" * 64, b"12345")
    assert cache.files() == []


def test_a_full_folder_serves_many_processes(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They remove what others read and write; no one is told, and what is not there is made."""
    code = (
        "from kernelforge.runtime import cache\n"
        "cache.MOST, cache.SELDOM = 20000, 1\n"
        "for k in range(300):\n"
        "    name = f'{k % 50:064x}'\n"
        "    found = cache.load(name)\n"
        "    assert found in (None, name.encode() * 10)\n"
        "    if found is None: cache.store(name, name.encode() * 10)\n"
    )
    for process in [python(code, folder) for _ in range(2)]:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
        assert not told
    assert sum(f.stat().st_size for f in cache.files()) <= 20000
    assert {f.suffix for f in cache.files()} == {cache.SUFFIX}


# Processes


def test_two_processes_at_once(folder: pathlib.Path) -> None:
    """Both compile the same kernels into an empty cache; a third one finds them."""
    both = [python(RUN, folder) for _ in range(2)]
    for process in both:
        _, problems = process.communicate(timeout=120)
        assert process.returncode == 0, problems
    files = sorted(folder.iterdir())
    assert {f.suffix for f in files} == {".kernel"}
    written = [f.stat().st_ino for f in files]  # who writes a file puts another in its place
    third = python(RUN + "assert sys.platform != 'linux' or 'llvmlite.binding' not in sys.modules\n", folder)
    _, problems = third.communicate(timeout=120)
    assert third.returncode == 0, problems
    assert [f.stat().st_ino for f in files] == written


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are not killed by signals here")
def test_a_process_killed_while_it_writes(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = python("os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n" + RUN, folder)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert [f.suffix for f in folder.iterdir()] == [".part"]
    following = python(RUN, folder)
    _, problems = following.communicate(timeout=120)
    assert following.returncode == 0, problems
    count = len(list(folder.iterdir()))
    assert sorted(f.suffix for f in folder.iterdir()) == [".kernel"] * (count - 1) + [".part"]
    assert main(["cache", "clear"]) == 0
    assert f"removed {count} files" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def _in_child(device: str, k: int, answers: Any) -> None:
    with kf.default_device(device):
        try:
            found = np.asarray(kf.jit(lambda x: program(x) * k)(X))
            answers.put(bool(np.allclose(found, program(X) * k, rtol=1e-4)))
        except errors.DeviceForked as error:
            answers.put(str(error))


@fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", ["cpu", "opencl"])
def test_forks_while_threads_compile(folder: pathlib.Path, name: str) -> None:
    """A child compiles and runs, whatever the parent's threads were in the middle of; or it is told why it cannot."""
    try:
        registry.backend(name)
    except errors.DeviceUnavailable as error:
        pytest.skip(str(error))
    done = threading.Event()

    def compile_on() -> None:
        with kf.default_device(name):
            k = 0
            while not done.is_set():
                k += 1
                kf.jit(lambda x: program(x) + k)(X)  # noqa: B023

    threads = [threading.Thread(target=compile_on) for _ in range(2)]
    for t in threads:
        t.start()
    context = multiprocessing.get_context("fork")
    found = []
    try:
        with kf.default_device(name):
            kf.jit(program)(X)
        for k in range(6):
            answers = context.SimpleQueue()
            child = context.Process(target=_in_child, args=(name, k + 2, answers))
            child.start()
            child.join(30)
            hangs = child.is_alive()
            if hangs:
                child.kill()
            assert not hangs
            found.append(answers.get())
    finally:
        done.set()
        for t in threads:
            t.join(60)
    if name == "cpu":
        assert found == [True] * 6
    else:
        assert all("was opened before this process was forked" in answer for answer in found)
    with kf.default_device(name):
        np.testing.assert_allclose(kf.jit(program)(X), program(X), rtol=1e-4)


def test_spawned_processes_use_any_device(folder: pathlib.Path) -> None:
    with kf.default_device("cpu"):
        kf.jit(program)(X)
    for name in kf.devices():
        answers: queue.Queue[Any] = multiprocessing.get_context("spawn").Queue()
        child = multiprocessing.get_context("spawn").Process(target=_in_child, args=(name, 2, answers))
        child.start()
        assert answers.get(timeout=60) is True, name
        child.join(60)
        assert child.exitcode == 0


# Drivers and compilers


def test_a_missing_driver_is_named() -> None:
    """The list of devices says why one cannot be used, and asking for it says so too."""
    code = (
        "import sys; sys.modules['pyopencl'] = sys.modules['llvmlite'] = sys.modules['numba'] = None\n"
        "from kernelforge.cli import main; status = main(['devices'])\n"
        "import numpy as np, kernelforge as kf\n"
        "try: kf.jit(lambda x: x + 1)(np.ones(2))\n"
        "except kf.KernelforgeError as error: print('call:', error)\n"
        "with kf.default_device('reference'): print(kf.jit(lambda x: x + 1)(np.ones(2)))\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, package in (("cpu", "llvmlite"), ("opencl", "pyopencl"), ("cuda", "numba"), ("call", "llvmlite")):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{name}:")]
        assert "not installed" in line, line
        assert package in line, line
    assert "reference: serial form" in done.stdout
    assert done.stdout.splitlines()[-1] == "[2. 2.]"


def test_a_driver_that_does_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices() -> dict[str, Any]:
        raise OSError("libnpu.so.1: cannot open shared object file")

    monkeypatch.setattr(registry, "_failed", {})
    with pytest.raises(errors.DeviceUnavailable, match=r"npu needs a package .*: libnpu\.so\.1: cannot open"):
        registry._open("npu", registry._Source("acme-npu", lambda: devices))


@dataclasses.dataclass(frozen=True, slots=True)
class Fragile(Reference):
    """A third party's device whose compiler fails as often as it is told to."""

    name: str = "fragile:0"
    failures: list[Exception] = dataclasses.field(default_factory=list, hash=False)

    def compile(self, kernel: Kernel, binary: bytes | None = None) -> Executable:
        if self.failures:
            raise self.failures.pop()
        return Reference.compile(self, kernel, binary)


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fragile]:
    device = Fragile()
    monkeypatch.setitem(registry._opened, "fragile", {"fragile:0": device})
    monkeypatch.setattr(registry, "BUILT_IN", (*registry.BUILT_IN, "fragile"))
    with kf.default_device("fragile"):
        yield device


def test_a_kernel_that_fails_to_compile(fragile: Fragile) -> None:
    """The error reaches the caller as it is, nothing is kept of the attempt, and no other device steps in."""
    fn = kf.jit(lambda x: x * 3 + 1)
    failed = errors.CompilationFailed(
        kernel="multiply_add", device="fragile:0", log="line 3: out of registers", source="\nx"
    )
    fragile.failures.append(failed)
    with pytest.raises(
        errors.CompilationFailed, match="multiply_add does not compile for fragile:0: line 3: out of reg"
    ):
        fn(np.ones(2))
    fragile.failures.append(RuntimeError("the vendor's own"))
    with pytest.raises(RuntimeError, match="the vendor's own"):
        fn(np.ones(2))
    found = fn(np.ones(2))
    assert found.device == "fragile:0"
    np.testing.assert_array_equal(found, [4, 4])


def test_two_devices_of_one_kind_do_not_share_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    class Twin(Fragile):
        def compile(self, kernel: Kernel, binary: bytes | None = None) -> Executable:
            compiled.append(self.name)
            return Reference.compile(self, kernel, binary)

    twins = {name: Twin(name) for name in ("twin:0", "twin:1")}
    monkeypatch.setitem(registry._opened, "twin", twins)
    monkeypatch.setattr(registry, "BUILT_IN", (*registry.BUILT_IN, "twin"))
    fn = kf.jit(lambda x: x * 5 - 1)
    for name in (*twins, *twins):
        with kf.default_device(name):
            assert fn(np.ones(2)).device == name
    assert compiled == ["twin:0", "twin:1"]
