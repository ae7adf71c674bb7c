"""The options of ``kernelforge bench``; light, as every command line declares them."""

from __future__ import annotations

import argparse

MEASURES = ("time", "first", "memory")
MEASURING = (
    "filter", "device", "peers", "python", "versions", "measure", "quick", "seconds", "threads", "stock_allocator",
    "json",
)  # fmt: skip
"""The options of a run: with one of them, ``--html`` measures first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``kernelforge bench``."""
    some = {"metavar": "A,B", "type": _names}
    parser.add_argument("--filter", default="", metavar="REGEX", help="workloads whose names it is found in")
    parser.add_argument("--device", action="append", help="may be given again (default: all that can be used)")
    parser.add_argument("--peers", help="peers to take; '' for none (default: all that are installed)", **some)  # type: ignore[arg-type]
    parser.add_argument(
        "--python", action="append", default=[], metavar="PEER=PATH", help="the interpreter that has a peer"
    )
    parser.add_argument(
        "--versions", help="more of them: torch==2.1, kernelforge==0.1, kernelforge@HEAD~5", **some  # type: ignore[arg-type]
    )  # fmt: skip
    parser.add_argument("--measure", help=f"of {', '.join(MEASURES)} (default: all; time with --quick)", **some)  # type: ignore[arg-type]
    parser.add_argument("--quick", action="store_true", help="few rounds, times only: to look at, not to quote")
    parser.add_argument("--seconds", type=float, help="for all rounds together, compiling apart")
    parser.add_argument("--threads", type=int, help="for everyone (default: all)")
    parser.add_argument("--stock-allocator", action="store_true", help="leave glibc's malloc as it is")
    parser.add_argument("--json", metavar="PATH", help="write the run there")
    parser.add_argument("--no-save", action="store_true", help="keep the run out of the history")
    parser.add_argument("--list", action="store_true", help="list the workloads and stop")
    parser.add_argument(
        "--html", metavar="FILE", help="write a page of the run and of those kept; without options of a run, of those"
    )
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="of these files of --json instead, for --html")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("OLD", "NEW"),
        help="compare two runs, FILE or FILE#CANDIDATE; status 1 when slower",
    )
    parser.add_argument(
        "--threshold", type=float, default=1.1, help="new over old above which --compare calls it slower"
    )


def measuring(args: argparse.Namespace) -> list[str]:
    """Return the options of a run that were given."""
    given = (name for name in MEASURING if getattr(args, name) not in (None, "", [], False))
    return [f"--{name.replace('_', '-')}" for name in given]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
