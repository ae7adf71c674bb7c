"""The command line: ``kernelforge demo | devices | explain | cache``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from kernelforge.errors import CommandFailed, KernelforgeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 1 with the reason on standard error."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except KernelforgeError as error:
        print(f"kernelforge: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "kernelforge", description="Write NumPy; get fused kernels on every vendor's device."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="train a classifier of hand-written digits and show its kernels")
    demo.add_argument(
        "--device", default=os.environ.get("KERNELFORGE_DEVICE", "cpu"), help="where to train (default: %(default)s)"
    )
    demo.add_argument("--epochs", type=int, help="how often to go through the digits")
    demo.set_defaults(run=_demo)

    devices = commands.add_parser("devices", help="list the devices, and why others cannot be used")
    devices.set_defaults(run=_devices)

    explain = commands.add_parser("explain", help="show what a compiled function of a module is compiled to")
    explain.add_argument(
        "function", help="module:name of a function under @kf.jit; its arguments come from name_args() beside it"
    )
    explain.add_argument("--device", default=os.environ.get("KERNELFORGE_DEVICE", "cpu"))
    explain.set_defaults(run=_explain)

    cache = commands.add_parser("cache", help="look at the disk cache of compiled kernels, or empty it")
    cache.add_argument("action", choices=("info", "clear"))
    cache.set_defaults(run=_cache)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from kernelforge.demo.train import EPOCHS, train

    train(args.device, EPOCHS if args.epochs is None else args.epochs)


def _devices(args: argparse.Namespace) -> None:
    from kernelforge.backends.registry import available

    for name, found in available().items():
        if isinstance(found, str):
            print(f"{name}: not usable: {found}")
        else:
            limits = found.limits
            print(f"{name}: {limits.form} form, {limits.threads} threads, {', '.join(sorted(limits.dtypes))}")


def _explain(args: argparse.Namespace) -> None:
    import kernelforge as kf

    fn, values = _find(args.function)
    with kf.default_device(args.device):
        print(fn.explain(*values))


def _find(path: str) -> tuple[Any, tuple[Any, ...]]:
    """Return the function ``module:name`` and the arguments that ``module:name_args`` gives.

    Raises:
        CommandFailed: when one of them is not there.
    """
    module_name, _, name = path.partition(":")
    if not name:
        raise CommandFailed(problem=f"{path!r} names no function", advice="write module:name")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise CommandFailed(
            problem=f"there is no module {error.name!r}", advice="run this beside it, or install it"
        ) from error
    fn, arguments = getattr(module, name, None), getattr(module, f"{name}_args", None)
    if not hasattr(fn, "explain"):
        raise CommandFailed(problem=f"{module_name} has no compiled function {name!r}", advice="put @kf.jit on it")
    if arguments is None:
        advice = f"define {name}_args() in {module_name}: it returns a tuple of typical arguments"
        raise CommandFailed(problem=f"nothing says with what {name!r} is called", advice=advice)
    return fn, tuple(arguments())


def _cache(args: argparse.Namespace) -> None:
    from kernelforge.runtime import cache

    files = cache.files()
    total = sum(f.stat().st_size for f in files)
    if args.action == "clear":
        for file in files:
            file.unlink(missing_ok=True)
        print(f"removed {len(files)} files, {total:,} bytes, from {cache.folder()}")
    else:
        print(f"{len(files)} files, {total:,} bytes, in {cache.folder()}")
