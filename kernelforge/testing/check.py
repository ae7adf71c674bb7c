"""``check``: a function against its own NumPy meaning, on inputs made to break it."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import Any, cast

import hypothesis
import numpy as np
from hypothesis import strategies as st

from kernelforge.backends import registry
from kernelforge.devices import default_device
from kernelforge.dtypes import BFLOAT16, as_dtype, is_float, short
from kernelforge.errors import CheckFailed, InvalidParameter
from kernelforge.jit import jit, name_of
from kernelforge.testing.gradients import compare, devices_or_all
from kernelforge.testing.inputs import Example, Shape, arrays, extents, parse_shapes, sized
from kernelforge.testing.oracle import REFUSALS, Array, Fn, expected, leaves, plain

MOST_RELATIONS = 48

OTHERS = 8
"""A device that was not asked for gets one input where the current one gets this many."""

FEW = 4
"""So many inputs a relation gets at least, where each is checked by itself."""

Relation = Sequence[Shape | None]
"""The shape of each argument; None for one that is not an array."""


def check(
    fn: Fn,
    *examples: Any,
    shapes: str | None = None,
    dtypes: Sequence[Any] = ("f32", "f64"),
    devices: Sequence[str] | None = None,
    max_examples: int = 25,
    order: int = 2,
) -> None:
    """Compare ``fn`` on every device with the undecorated function under NumPy: values, first and second derivatives.

    Shapes (empty, one element, odd, around the sizes of tiles), strides, dtypes and values (NaN, infinities, -0.0, huge
    and tiny ones) are drawn by hypothesis; a failure is shrunk to the smallest one and reported as code that shows it.
    Inputs that the function refuses under NumPy are not counted.

    Args:
        fn: a function of arrays, decorated with ``jit`` or not.
        examples: typical arguments. Arrays stand for their number of axes, their dtype if it is not of floats (integers
            are drawn from the range of the example), and for which extents are equal; others are passed as they are.
        shapes: instead of examples, the shape of each argument, ``"(m,k) (k,n) (n,)"``: equal names are equal extents.
            With neither, relations that NumPy accepts are found by trying.
        dtypes: of the float arguments; a device that lacks one is not asked for it.
        devices: names. If None, the current device and, with an eighth as many inputs, every other one there is:
            compiling for each new shape is what takes the time.
        max_examples: number of inputs for each device.
        order: 0 for values alone, 1 for gradients too, 2 for second derivatives too; how far it goes is drawn for each
            input, as the kernels of derivatives take most of the time.

    Raises:
        CheckFailed: with the smallest input found, as code.
    """
    python = plain(fn)
    compiled = fn if python is not fn else jit(fn)
    main = default_device()
    names = sorted(devices_or_all(devices), key=main.__ne__)
    floats = [as_dtype(d) for d in dtypes]
    relations = _relations(python, examples, shapes)

    def trial(data: st.DataObject, device: str, among: Sequence[Relation]) -> None:
        relation = data.draw(st.sampled_from(among))
        sizes = data.draw(extents([s for s in relation if s is not None]))
        dtype = data.draw(st.sampled_from(floats))
        special = data.draw(st.booleans())
        depth = data.draw(st.integers(0, order))
        drawn = [
            given if shape is None else data.draw(_argument(sized(shape, sizes), dtype, given, special))
            for shape, given in itertools.zip_longest(relation, examples)
        ]
        if short(dtype) in _dtypes(device):
            _try(compiled, python, drawn, device, depth)

    for name in names:
        count = max_examples if devices is not None or name == main else max(1, max_examples // OTHERS)
        # each relation by itself where there are enough inputs for all
        parts = [[r] for r in relations] if count >= FEW * len(relations) else [relations]
        settings = hypothesis.settings(
            max_examples=-(-count // len(parts)),
            deadline=None, derandomize=True, database=None, report_multiple_bugs=False,
            suppress_health_check=cast(list[hypothesis.HealthCheck], list(hypothesis.HealthCheck)),
            phases=[p for p in hypothesis.Phase if p is not hypothesis.Phase.explain],
            verbosity=hypothesis.Verbosity.quiet,
        )  # fmt: skip
        for part in parts:
            settings(hypothesis.given(st.data(), st.just(name), st.just(part))(trial))()


def _dtypes(device: str) -> frozenset[str]:
    return registry.backend(device).limits.dtypes


def _argument(shape: tuple[int, ...], dtype: np.dtype[Any], given: Any, special: bool) -> st.SearchStrategy[Example]:
    if isinstance(given, np.ndarray) and not is_float(given.dtype) and given.size:
        return arrays(shape, given.dtype, int(given.min()), int(given.max()), False)
    return arrays(shape, dtype, 0, 0, special)


class _Told:
    """Adds the code that shows a problem to whatever is raised in the body, other than by this module."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, CheckFailed):
            error.add_note(self.code)


def _try(compiled: Fn, python: Fn, drawn: Sequence[Any], device: str, order: int) -> None:
    args, code = _values(drawn), _code(python, drawn, device)
    with np.errstate(all="ignore"):
        try:
            native = leaves(python(*args))
        except REFUSALS:
            hypothesis.reject()
        with _Told(code), default_device(device):
            found = leaves(compiled(*args))
        problem = _difference(python, args, native, found)
    if problem:
        raise CheckFailed(function=name_of(python), device=device, problem=problem, code=code)
    narrow = any(d.dtype.itemsize < 4 for d in drawn if isinstance(d, Example) and is_float(d.dtype))
    if order and not narrow and any(is_float(n.dtype) for n in native):
        _try_derivatives(compiled, python, drawn, device, order)


def _try_derivatives(compiled: Fn, python: Fn, drawn: Sequence[Any], device: str, order: int) -> None:
    """Compare derivatives at regular values: around 0 or, where the function is not defined there, between 0 and 1."""
    for unit in (False, True):
        smooth = [d.smooth(unit) if isinstance(d, Example) else d for d in drawn]
        args = _values(smooth)
        if all(np.isfinite(r).all() for r in leaves(python(*args)) if is_float(r.dtype)):
            break
    code = _code(python, smooth, device, grads=True)
    with _Told(code), default_device(device):
        problem = compare(compiled, args, order)
    if problem:
        raise CheckFailed(function=name_of(python), device=device, problem=problem, code=code)


def _values(drawn: Sequence[Any]) -> list[Any]:
    return [d.array() if isinstance(d, Example) else d for d in drawn]


def _difference(python: Fn, args: Sequence[Any], native: Sequence[Array], found: Sequence[Array]) -> str:
    """Say what is wrong with ``found``, or return an empty text."""
    if len(native) != len(found):
        return f"{len(found)} results where NumPy gives {len(native)}"
    for k, (n, f) in enumerate(zip(native, found, strict=True)):
        result = f"result {k}" if len(native) > 1 else "the result"
        if f.shape != n.shape:
            return f"{result} has shape {f.shape} where NumPy gives {n.shape}"
        if f.dtype != n.dtype and BFLOAT16 not in (f.dtype, n.dtype):
            return f"{result} has dtype {f.dtype} where NumPy gives {n.dtype}"
    for k, (f, e) in enumerate(zip(found, expected(python, args, found), strict=True)):
        wrong = e.wrong(f)
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            result = f"result {k}" if len(found) > 1 else "the result"
            return (
                f"{int(wrong.sum())} of {wrong.size} elements of {result} are wrong; at {at} found {f[at]!s}, "
                f"expected {e.value[at]!s} within {e.allowed[at]:.3g}"
            )
    return ""


def _code(python: Fn, drawn: Sequence[Any], device: str, grads: bool = False) -> str:
    """Return the lines that show a problem: with values, or with derivatives."""
    expressions = [d.code() if isinstance(d, Example) else repr(d) for d in drawn]
    name = name_of(python).rpartition(".")[2]
    function = "fn" if name == "<lambda>" else name
    arguments = ", ".join(f"x{i}" for i in range(len(drawn)))
    lines = ["import numpy as np, kernelforge as kf"]
    if any("ml_dtypes" in e for e in expressions):
        lines.append("import ml_dtypes")
    lines += [f"x{i} = {e}" for i, e in enumerate(expressions)]
    if grads:
        return "\n".join([*lines, f"kf.testing.check_grads({function}, ({arguments},), devices=[{device!r}])"])
    run = f"    print(kf.jit({function})({arguments}))"
    return "\n".join([*lines, f"with kf.default_device({device!r}):", run, f"print({function}({arguments}))"])


def _accepts(python: Fn, relation: Relation, sizes: dict[str, int], examples: Sequence[Any]) -> bool:
    rng = np.random.default_rng(0)
    args = []
    for shape, given in itertools.zip_longest(relation, examples):
        if shape is None:
            args.append(given)
        elif isinstance(given, np.ndarray) and not is_float(given.dtype):
            args.append(np.resize(given, sized(shape, sizes)))
        else:
            args.append(rng.uniform(0.5, 1.5, sized(shape, sizes)))
    with np.errstate(all="ignore"):
        try:
            results = leaves(python(*args))
        except REFUSALS:
            return False
    return bool(results) and all(r.dtype != object for r in results)


def _relations(python: Fn, examples: Sequence[Any], shapes: str | None) -> list[Relation]:
    if shapes is not None:
        parsed: Relation = parse_shapes(shapes)
        return [parsed]
    return [_of_examples(python, examples)] if examples else _guessed(python)


def _of_examples(python: Fn, examples: Sequence[Any]) -> Relation:
    """Name equal extents alike; keep an extent as it is where NumPy refuses another one in its place."""
    relation = [tuple(f"n{e}" for e in a.shape) if isinstance(a, np.ndarray) else None for a in examples]
    sizes = {e: int(e[1:]) for s in relation if s is not None for e in s}
    free = {
        e
        for e in sizes
        if all(_accepts(python, relation, sizes | {e: other}, examples) for other in (sizes[e] + 1, sizes[e] + 4))
    }
    return tuple(None if s is None else tuple(e if e in free else sizes[e] for e in s) for s in relation)


def _renamed(relation: Relation) -> Relation:
    """Name extents in the order in which they come, so that equal relations are equal."""
    names: dict[str | int, str] = {}
    return tuple(
        None if s is None else tuple(e if isinstance(e, int) else names.setdefault(e, f"n{len(names)}") for e in s)
        for s in relation
    )


def _guessed(python: Fn) -> list[Relation]:
    """Find relations of arrays of up to three axes that NumPy accepts, the simplest first."""
    parameters = inspect.signature(python).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
    kinds: list[Shape] = [("a", "b"), ("b",), ("b", "c"), ("c",), ("a",), ("a", 1), (), ("c", "a", "b")]
    sizes = {"a": 2, "b": 3, "c": 5}
    tried = itertools.islice(itertools.product(kinds, repeat=count), 4096)
    accepted = (relation for relation in tried if _accepts(python, relation, sizes, [None] * count))
    found = sorted(dict.fromkeys(map(_renamed, accepted)), key=lambda r: sum(len(s or ()) for s in r))
    if not found:
        raise InvalidParameter(
            op="check", name="shapes", found=None, expected=f"shapes for the {count} arguments, or examples of them"
        )
    step = max(1, len(found) // MOST_RELATIONS)
    return found[::step]
