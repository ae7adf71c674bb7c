"""Everything a change must pass, in one command: ``python -m tests``; arguments go on to pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
CHECKS: dict[str, list[str]] = {
    "format": ["-m", "ruff", "format", "--check"],
    "lint": ["-m", "ruff", "check"],
    "types": ["-m", "mypy"],
    "types again": ["-m", "pyright"],
    "layers": ["-c", LAYERS, "--no-cache"],
}
"""What Python is given, all at once: each of them has one thread."""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""With bytecode kept: else each worker, and each process that a test starts, compiles all sources."""
TESTS = ["-m", "pytest", "-n", "auto", "--dist", "worksteal"]


def start(command: list[str], stdout: int | None = None) -> subprocess.Popen[str]:
    stderr = None if stdout is None else subprocess.STDOUT
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
    )


def main() -> int:
    failed = []
    checks = {name: start(command, subprocess.PIPE) for name, command in CHECKS.items()}
    for name, process in checks.items():
        print(f"== {name}\n{process.communicate()[0]}", end="", flush=True)
        if process.returncode:
            failed.append(name)
    print("== tests", flush=True)
    if start(TESTS + sys.argv[1:]).wait():
        failed.append("tests")
    if failed:
        print(f"== failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
