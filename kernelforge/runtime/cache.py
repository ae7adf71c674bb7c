"""The disk cache of compiled kernels and plans: one file per key, written whole and renamed into place.

Several processes may use one folder at once: the last writer of a key wins and all of them wrote the same bytes. A
file begins with a digest of its key and content: one that is cut, damaged or another key's is compiled anew and written
again, and so is one that the backend refuses (``DamagedBinary``). A folder that cannot be written costs a warning, not
the result. The folder is trusted as the package's own is: what stands in it is run.

The folder keeps to ``MOST`` bytes: a file's time of change is when it was last written or read, and whoever writes
removes now and then what nobody used for longest. A file may go at any time: what was in it is compiled again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import tempfile
import warnings

from kernelforge import errors

SUFFIX = ".kernel"
ALIAS = b"kernelforge-alias\n"
"""How a file begins that has the name of the one with its content."""
DIGEST = 16
"""Bytes at the beginning of a file: a digest of its key and of what follows."""
MOST = 256 << 20
"""Bytes that the folder holds: some thousands of kernels with their plans."""
SELDOM = 256
"""One file in so many is followed by a look at the whole folder, and so is each of that part of ``MOST``."""


def folder() -> pathlib.Path:
    """Return the cache folder: ``KERNELFORGE_CACHE_DIR``, else the user's cache folder of the platform."""
    named = os.environ.get("KERNELFORGE_CACHE_DIR")
    if named:
        return pathlib.Path(named)
    import platformdirs

    return pathlib.Path(platformdirs.user_cache_dir("kernelforge"))


@functools.cache
def sources() -> str:
    """Return a digest that changes whenever a source file of this package does."""
    root = pathlib.Path(errors.__file__).parent
    digest = hashlib.sha256()
    for part in (root, root / "ir", root / "backends"):
        for directory, _, files in sorted(os.walk(part)):
            for name in sorted(files):
                if name.endswith(".py"):
                    status = os.stat(os.path.join(directory, name))
                    digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def key(text: str, fingerprint: str) -> str:
    """Return the name under which what is made of a text is kept, such as a kernel's binary."""
    return hashlib.sha256(f"{text}\0{fingerprint}\0{sources()}".encode()).hexdigest()


def load(name: str) -> bytes | None:
    """Return what is kept, or None where there is nothing that is whole."""
    binary = _read(name)
    if binary is None or not binary.startswith(ALIAS):
        return binary
    binary = _read(binary[len(ALIAS) :].decode())
    # processes may each have made theirs an alias of the other's
    return None if binary is None or binary.startswith(ALIAS) else binary


def _read(name: str) -> bytes | None:
    path = folder() / f"{name}{SUFFIX}"
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # of a folder that cannot be written
        os.utime(path)
    binary = content[DIGEST:]
    return binary if content[:DIGEST] == _digest(name, binary) else None


def _digest(name: str, binary: bytes) -> bytes:
    return hashlib.blake2b(name.encode() + binary, digest_size=DIGEST).digest()


def store(name: str, binary: bytes) -> None:
    """Keep bytes; warn once where the folder cannot be written."""
    digest = _digest(name, binary)
    write(folder() / f"{name}{SUFFIX}", digest + binary)
    if int.from_bytes(digest) % SELDOM == 0 or len(binary) * SELDOM > MOST:
        evict()


def share(name: str, holder: str) -> None:
    """Keep under a name what is kept under another one."""
    store(name, ALIAS + holder.encode())


def evict() -> None:
    """Remove what was used longest ago, down to three quarters of ``MOST``, where the folder holds more than that."""
    found = []
    for entry in _entries():
        with contextlib.suppress(OSError):  # gone since, by another process
            status = entry.stat()
            found.append((status.st_mtime_ns, entry.path, status.st_size))
    total = sum(size for _, _, size in found)
    if total <= MOST:
        return
    for _, path, size in sorted(found):
        with contextlib.suppress(OSError):  # gone since, or open on a system that then removes no files
            os.unlink(path)
        total -= size
        if total <= MOST // 4 * 3:
            return


def write(path: pathlib.Path, content: bytes) -> None:
    """Write a file whole and rename it into place; warn once where the folder cannot be written."""
    where = path.parent
    temporary: str | None = None
    try:
        where.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=where, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        with contextlib.suppress(FileNotFoundError):  # somebody emptied the folder meanwhile
            os.replace(temporary, path)
        temporary = None
    except OSError as problem:
        warnings.warn(
            f"nothing is kept between processes: {where} cannot be written ({problem.strerror}); "
            "set KERNELFORGE_CACHE_DIR to a folder that can",
            RuntimeWarning,
            stacklevel=3,
        )
    finally:
        if temporary is not None:  # also on KeyboardInterrupt
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def discard(name: str) -> None:
    """Forget what could not be loaded."""
    with contextlib.suppress(OSError):
        (folder() / f"{name}{SUFFIX}").unlink()


def files() -> list[pathlib.Path]:
    """Return the files of the cache, unfinished ones of killed processes included."""
    return sorted(pathlib.Path(entry.path) for entry in _entries())


def _entries() -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder()) as found:
            return [e for e in found if e.name.endswith((SUFFIX, ".part")) and e.is_file()]
    except OSError:
        return []
