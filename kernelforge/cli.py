"""The command line: ``kernelforge demo | devices | explain | tune | bench | cache``."""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import io
import operator
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import kernelforge
from kernelforge.bench.arguments import add_arguments
from kernelforge.devices import environment
from kernelforge.errors import CommandFailed, DeviceUnavailable, KernelforgeError, UnknownDevice


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 when all is well, 1 with the reason on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows ASCII alone shows the rest as it can
    args = _parser().parse_args(argv)
    try:
        status = int(args.run(args) or 0)
        sys.stdout.flush()
    except KernelforgeError as error:
        print(f"kernelforge: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who reads has seen enough: nothing more is written, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "kernelforge", description="Write NumPy; get fused kernels on every vendor's device."
    )
    parser.add_argument("--version", action="version", version=f"kernelforge {kernelforge.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="train a classifier of hand-written digits and show its kernels")
    demo.add_argument("--device", default=environment(), help="where to train (default: %(default)s)")
    demo.add_argument("--epochs", type=int, help="how often to go through the digits")
    demo.set_defaults(run=_demo)

    devices = commands.add_parser("devices", help="list the devices, and why others cannot be used")
    devices.set_defaults(run=_devices)

    explain = commands.add_parser("explain", help="show what a function of a module is compiled to, and why")
    explain.add_argument("function", help="module:name of a function of arrays, with or without @kf.jit")
    explain.add_argument(
        "arguments",
        nargs="*",
        help='its arguments: "f32[4096,64]", 0.5, "{\'w\': f32[8]}"; without any, name_args() beside it gives them',
    )
    explain.add_argument("--device", default=environment())
    explain.add_argument(
        "--grad", action="store_true", help="explain it with the gradient of its sum by the first argument"
    )
    explain.add_argument("--measure", action="store_true", help="time each kernel by itself")
    explain.add_argument("--html", metavar="FILE", help="write a page instead")
    explain.add_argument(
        "--beside",
        metavar="NAME",
        action="append",
        default=[],
        help="on the page, show the sources for this device or target, too; may be repeated",
    )
    explain.add_argument(
        "--target", help="a processor that need not be there: cuda:sm_90, opencl:gfx90a, opencl:pvc, cpu:neoverse-v2"
    )
    explain.add_argument("--sources", action="store_true", help="show long sources, too")
    explain.add_argument("--asm", action="store_true", help="show the target's assembly, too")
    explain.set_defaults(run=_explain)

    tune = commands.add_parser("tune", help="search for faster parameters of a function's kernels on a device")
    tune.add_argument("function", help="module:name of a function of arrays, with or without @kf.jit")
    tune.add_argument("arguments", nargs="*", help="its arguments, as for explain")
    tune.add_argument("--device", default=environment())
    tune.add_argument("--grad", action="store_true", help="tune it with the gradient of its sum by the first argument")
    tune.add_argument("--seconds", type=float, default=10.0, help="the most it takes (default: %(default)s)")
    tune.set_defaults(run=_tune)

    bench = commands.add_parser("bench", help="measure kernelforge beside its peers and the machine's limits")
    add_arguments(bench)
    bench.set_defaults(run=_bench)

    cache = commands.add_parser("cache", help="look at the disk cache of compiled kernels and plans, or empty it")
    cache.add_argument("action", nargs="?", choices=("info", "clear"), default="info", help="(default: %(default)s)")
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
            what = [*filter(None, [getattr(found, "description", "")]), f"{limits.form} form, {limits.threads} threads"]
            print(f"{name}: {', '.join([*what, *sorted(limits.dtypes)])}")


def _explain(args: argparse.Namespace) -> None:
    import kernelforge as kf

    if args.asm and not args.target:
        raise CommandFailed(problem="--asm shows the assembly of a target", advice="give --target, too")
    fn, values = _called(args)

    def explained(name: str) -> Any:
        """Explain for a device or, where none has the name, for a target."""
        try:
            with kf.default_device(name):
                return fn.explain(*values)
        except (UnknownDevice, DeviceUnavailable):
            return fn.explain(*values, target=name)

    if args.target:
        found = fn.explain(*values, target=args.target)
    else:
        with kf.default_device(args.device):
            found = fn.explain(*values, measure=args.measure)
    if args.html is None:
        print(found.text(sources=args.sources, assembly=args.asm))
        return
    text = found.html([explained(name) for name in args.beside])
    try:
        pathlib.Path(args.html).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandFailed(problem=f"{args.html} cannot be written: {error.strerror}", advice="name another") from None
    print(f"{args.html}: {len(text):,} characters")


def _tune(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    import kernelforge as kf
    from kernelforge.tuner import search

    fn, values = _called(args)
    err = Console(stderr=True)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with (
        kf.default_device(args.device),
        Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar,
    ):
        task = bar.add_task("", total=1.0)
        found = search(
            fn, values, {}, args.seconds, lambda what, part: bar.update(task, completed=part, description=what)
        )
    print(found)


def _called(args: argparse.Namespace) -> tuple[Any, tuple[Any, ...]]:
    """Return the function that a command names, or its gradient, and what to call it with."""
    import kernelforge as kf

    fn, values = _find(args.function, args.arguments)
    try:
        inspect.signature(fn).bind(*values)
    except TypeError as error:
        raise CommandFailed(
            problem=f"{args.function!r} cannot be called with {len(values)} arguments: {error}",
            advice=f"its parameters are {inspect.signature(fn)}",
        ) from None
    return kf.jit(kf.value_and_grad(_summed(fn))) if args.grad else fn, values


def _summed(fn: Any) -> Any:
    """Make a function with one number as its result: the floats that ``fn`` returns, summed where they are arrays."""
    import optree

    from kernelforge.dtypes import is_float

    @functools.wraps(fn)
    def total(*args: Any) -> Any:
        out = fn(*args)
        floats = [
            x.sum() if x.shape else x for x in optree.tree_leaves(out) if hasattr(x, "dtype") and is_float(x.dtype)
        ]
        return functools.reduce(operator.add, floats) if floats else out

    return total


def _find(path: str, given: Sequence[str]) -> tuple[Any, tuple[Any, ...]]:
    """Return the function ``module:name``, under jit, and its arguments: given, or from ``module:name_args``.

    Raises:
        CommandFailed: when one of them is not there.
    """
    import kernelforge as kf

    module_name, _, name = path.partition(":")
    if not name or not module_name:
        raise CommandFailed(problem=f"{path!r} names no function", advice="write module:name")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise CommandFailed(
            problem=f"there is no module {error.name!r}", advice="run this beside it, or install it"
        ) from error
    fn, arguments = getattr(module, name, None), getattr(module, f"{name}_args", None)
    if not callable(fn):
        functions = ", ".join(k for k, v in vars(module).items() if callable(v) and not inspect.isclass(v))
        raise CommandFailed(
            problem=f"{module_name} has no function {name!r}", advice=f"it has {functions or 'no functions at all'}"
        )
    fn = fn if hasattr(fn, "explain") else kf.jit(fn)
    if given:
        return fn, tuple(_argument(text) for text in given)
    if arguments is None:
        advice = (
            f'write them, as "f32[4096,64]" or 0.5, or define {name}_args() in {module_name}, which returns a tuple'
        )
        raise CommandFailed(problem=f"nothing says with what {name!r} is called", advice=advice)
    return fn, tuple(arguments())


def _argument(text: str) -> Any:
    """Make an argument: arrays of random numbers where ``f32[4096,64]`` stands, in any Python literal.

    Raises:
        CommandFailed: when it is none.
    """
    import ast

    import numpy as np

    from kernelforge.dtypes import DTYPES
    from kernelforge.explain import random

    made: list[Any] = []

    def array(found: re.Match[str]) -> str:
        if found[1] not in DTYPES:
            raise CommandFailed(
                problem=f"{found[1]!r} in {text!r} is no dtype", advice=f"use one of {', '.join(DTYPES)}"
            )
        shape = tuple(int(n) for n in found[2].split(",") if n.strip())
        made.append(random(np.random.default_rng(len(made)), shape, found[1]))
        return f"{_MARK!r}, {len(made) - 1}"

    # an array stands as the pair (mark, number) while Python reads the literal around it
    literal = re.sub(r"\b([a-z]+\d*)\[([\d,\s]*)\]", lambda m: f"({array(m)})", text)

    def placed(x: Any) -> Any:
        match x:
            case (mark, int(k)) if mark == _MARK:
                return made[k]
            case dict():
                return {key: placed(v) for key, v in x.items()}
            case list() | tuple():
                return type(x)(map(placed, x))
        return x

    try:
        return placed(ast.literal_eval(literal))
    except (ValueError, SyntaxError):
        advice = 'write an array as "f32[4096,64]", a number as 0.5, a tree as "{\'w\': f32[8]}"'
        raise CommandFailed(problem=f"{text!r} is no argument", advice=advice) from None


_MARK = "an array"


def _bench(args: argparse.Namespace) -> int:
    from kernelforge.bench.command import command

    return command(args)


def _cache(args: argparse.Namespace) -> None:
    from kernelforge.runtime import cache

    files = cache.files()
    total = sum(f.stat().st_size for f in files)
    if args.action == "clear":
        for file in files:
            file.unlink(missing_ok=True)
        print(f"removed {len(files)} files, {total:,} bytes, from {cache.folder()}")
    else:
        print(f"{len(files)} files, {total:,} bytes of at most {cache.MOST:,}, in {cache.folder()}")
