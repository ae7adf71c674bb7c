"""Everything a change must pass, in one command: ``python -m tests``; arguments go on to pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
STEPS: dict[str, list[str]] = {
    "format": ["-m", "ruff", "format", "--check"],
    "lint": ["-m", "ruff", "check"],
    "types": ["-m", "mypy"],
    "types again": ["-m", "pyright"],
    "layers": ["-c", LAYERS, "--no-cache"],
    "tests": ["-m", "pytest", "-n", "auto", "--dist", "worksteal"],
}
"""What Python is given; pytest comes last, so that its closing line does."""


def run(name: str, command: list[str]) -> bool:
    print(f"== {name}", flush=True)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def main() -> int:
    failed = [name for name, command in STEPS.items() if not run(name, command + sys.argv[1:] * (name == "tests"))]
    if failed:
        print(f"== failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
