"""Other versions of a candidate: environments made with venv and pip, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Sequence

import platformdirs

import kernelforge
from kernelforge.bench.candidates import MODULES, PEERS, Entrant
from kernelforge.bench.schema import OURS
from kernelforge.errors import CommandFailed

WITH = {"onnxruntime": ("onnx",), "clblast": ("kernelforge",)}
"""What a peer's module needs beside the peer and NumPy."""
SOURCE = (".py", ".toml", ".gz", ".md")


def entrant(requirement: str) -> Entrant:
    """Return the candidate for ``torch==2.1``, ``kernelforge==0.1``, ``kernelforge@GITREF`` or ``kernelforge@PATH``.

    Its environment is made when it is not there yet.

    Raises:
        CommandFailed: when the candidate is unknown, or pip or git refuse.
    """
    found = re.fullmatch(r"([A-Za-z-]+)(==|@)(.+)", requirement)
    if not found or (found[1] != OURS and (found[1] not in PEERS or found[2] == "@")):
        advice = "write torch==VERSION, kernelforge==VERSION, kernelforge@GITREF or kernelforge@PATH"
        raise CommandFailed(problem=f"{requirement!r} names no version of a candidate", advice=advice)
    name, kind, version = found.groups()
    module = PEERS[name][0] if name in PEERS else name
    with tempfile.TemporaryDirectory() as scratch:
        if kind == "==":
            install, key = [f"{module}=={version}"], requirement
        else:
            folder, key = _source(version, pathlib.Path(scratch))
            install = [str(folder)]
        python = _environment([*install, "numpy", *WITH.get(module, ())], key)
    return Entrant(requirement, name, f"{MODULES}.on_{module}", str(python), isolated=True)


def _source(version: str, scratch: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Return a folder with sources to install, and a name for exactly those sources."""
    folder = pathlib.Path(version).expanduser()
    if folder.is_dir():
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(p for p in folder.rglob("*") if p.suffix in SOURCE and ".git" not in p.parts):
            digest.update(f"{file.relative_to(folder)}".encode() + file.read_bytes())
        copy = scratch / "source"
        ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
        shutil.copytree(folder, copy, symlinks=True, ignore=ignored)  # pip would leave its build folder there
        return copy, digest.hexdigest()
    root = pathlib.Path(kernelforge.__file__).parent.parent
    commit = _git(root, "rev-parse", "--verify", f"{version}^{{commit}}").decode().strip()
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", commit))) as archive:
        archive.extractall(scratch, filter="data")
    return scratch, commit


def _git(root: pathlib.Path, *arguments: str) -> bytes:
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        problem = f"{root} is no git clone, or there is no git"
        raise CommandFailed(problem=problem, advice="give a folder, or a released version with ==")
    done = subprocess.run([git, "-C", str(root), *arguments], capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        problem = f"git {arguments[0]} refused: {done.stderr.decode().strip()}"
        raise CommandFailed(problem=problem, advice="give a commit, tag or branch of this clone")
    return done.stdout


def _environment(install: Sequence[str], key: str) -> pathlib.Path:
    """Return the interpreter of the environment for ``key``, making it when it is not there."""
    name = hashlib.blake2b(f"{key} {sys.version}".encode(), digest_size=8).hexdigest()
    folder = pathlib.Path(platformdirs.user_cache_path("kernelforge")) / "bench" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready"
    if not ready.exists():
        venv.create(folder, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *install]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, check=False, env=env)  # noqa: S603
        if done.returncode:
            text = done.stderr.decode().strip().splitlines() or ["no message"]
            raise CommandFailed(problem=f"pip cannot install {key}: {text[-1]}", advice="check the version's name")
        ready.write_text("\n".join(install))
    return python
