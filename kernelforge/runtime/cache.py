"""The disk cache of compiled kernels and plans: one file per key, written whole and renamed into place.

Several processes may use one folder at once: the last writer of a key wins and all of them wrote the same bytes. A
file begins with a digest of its key and content: one that is cut, damaged or another key's is compiled anew and written
again, and so is one that the backend refuses (``DamagedBinary``). A folder that cannot be written costs a warning, not
the result. The folder is trusted as the package's own is: what stands in it is run.
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
DIGEST = 16
"""Bytes at the beginning of a file: a digest of its key and of what follows."""


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
    try:
        content = (folder() / f"{name}{SUFFIX}").read_bytes()
    except OSError:
        return None
    binary = content[DIGEST:]
    return binary if content[:DIGEST] == _digest(name, binary) else None


def _digest(name: str, binary: bytes) -> bytes:
    return hashlib.blake2b(name.encode() + binary, digest_size=DIGEST).digest()


def store(name: str, binary: bytes) -> None:
    """Keep bytes; warn once where the folder cannot be written."""
    write(folder() / f"{name}{SUFFIX}", _digest(name, binary) + binary)


def write(path: pathlib.Path, content: bytes) -> None:
    """Write a file whole and rename it into place; warn once where the folder cannot be written."""
    where = path.parent
    temporary: str | None = None
    try:
        where.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=where, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
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
    where = folder()
    return sorted(p for p in where.glob("*") if p.suffix in {SUFFIX, ".part"} and p.is_file())
