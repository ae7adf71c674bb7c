"""What a user reads where something is wrong: the whole text of each message, and the line that it points at."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
import kernelforge.numpy as knp
from kernelforge import backends, errors
from kernelforge.ir import ops
from kernelforge.ir.build import primitive
from kernelforge.lines import in_package

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def jitted(fn: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: kf.jit(fn)(X)


def leaked() -> None:
    kept: list[Any] = []
    kf.jit(lambda x: kept.append(x) or x)(X)  # type: ignore[func-returns-value]
    kept[0] + 1


def write_to_argument(x: Any) -> None:
    x[0] = 1


def write_to_view(x: Any) -> None:
    a = x.copy()
    b = a.T
    b[0] = 1


def read_stale_view(x: Any) -> Any:
    a = x.copy()
    b = a.T
    a[0] = 1
    return b + 1


def assign_to_selection(x: Any) -> None:
    x[x > 0][0] = 1


def write_float_to_integers(x: Any) -> None:
    y = x.astype(np.int32)
    y += 1.5


def write_to_array() -> None:
    kf.asarray(X)[0] = 1


def use_donated() -> None:
    x = kf.asarray(X)
    kf.jit(lambda x: x + 1, donate_argnums=0)(x)
    x + 1


def donate_read_only() -> None:
    x = X.copy()
    x.flags.writeable = False
    kf.jit(lambda x: x + 1, donate_argnums=0)(x)


def cube(x: Any) -> Any:
    return x * x * x


def scaled(x: Any, *, by: float) -> Any:
    return x * by


def keyword_only() -> None:
    fn = kf.custom_vjp(scaled)
    fn.defvjp(lambda x, by: (x, x), lambda r, ct: (ct,))
    kf.jit(lambda x: fn(x, by=2.0))(X)


NOT_KNOWN = "is not known while a function is compiled"
MESSAGES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        jitted(lambda x: 1 if x.sum() > 0 else 2),
        errors.TracedTruth,
        (
            f"the truth of a traced array (bool[]) {NOT_KNOWN}; choose between arrays with np.where, between "
            "branches with kf.cond, repeat with kf.while_loop, or name the argument in static_argnames\n  at "
            "HERE"
        ),
    ),
    (
        lambda: kf.jit(lambda i: [1, 2, 3][i])(np.int64(1)),
        errors.TracedNumber,
        (
            f"an index, a shape or range() needs the value of a traced array (i64[]), which {NOT_KNOWN}; keep "
            "it an array (np.sqrt in place of math.sqrt, x.astype in place of float, np.take(table, i, 0) in "
            "place of table[i]), or name the argument in static_argnames\n  at HERE"
        ),
    ),
    (
        jitted(kf.nn.dropout),
        errors.TracedStream,
        (
            "kernelforge.random.next_key() was called while a function is compiled, where one key would serve "
            "all calls of it; make the key an argument of the function, and call it with next_key() or "
            "kf.random.key(seed)\n  at HERE"
        ),
    ),
    (
        leaked,
        errors.LeakedTracer,
        (
            "a traced array (f32[2,3]) is used after the function it belongs to was compiled; return it from "
            "the function in place of keeping it in a variable outside\n  at HERE"
        ),
    ),
    (
        jitted(write_to_argument),
        errors.ReadOnlyArray,
        (
            "f32[2,3] was not made in this function, and a compiled function changes no array but its own; "
            "write x = x.copy() first, or x = x.at[index].set(value)\n  at HERE"
        ),
    ),
    (
        jitted(write_to_view),
        errors.WriteThroughView,
        (
            "f32[3,2] is a view, and writing to it would change another array; write to that array by an index "
            "(a[:, 0] = v in place of b = a.T; b[0] = v), or make it an array of its own with .copy()\n  at "
            "HERE"
        ),
    ),
    (
        jitted(read_stale_view),
        errors.StaleView,
        (
            "f32[3,2] is a view of an array that was written to since; take it after the write, or make it an "
            "array of its own with .copy()\n  at HERE"
        ),
    ),
    (
        jitted(write_float_to_integers),
        errors.UnsafeCast,
        (
            "np.add: f64[2,3] cannot be written into an array of i32[2,3] in place; write a = a + v, or cast v "
            "with .astype\n  at HERE"
        ),
    ),
    (
        jitted(lambda x: np.sort(x[x > 0])),
        errors.TracedMask,
        (
            "x[mask] has a shape that depends on the values of a traced mask, so it takes part in elementwise "
            "functions, total sums and x[mask] = ... by the same mask alone; write np.where(mask, x, 0), or "
            "np.max(x, where=mask, initial=0)\n  at HERE"
        ),
    ),
    (
        jitted(lambda x: x[7]),
        errors.IndexOutOfRange,
        "index 7 is out of range for axis 0 of 2 elements\n  at HERE",
    ),
    (
        jitted(lambda x: x[0, 0, 0]),
        errors.InvalidIndex,
        (
            "an index of 3 axes is not a valid index for an array of shape (2, 3); at most one Ellipsis and 2 "
            "indices\n  at HERE"
        ),
    ),
    (
        jitted(lambda x: x + np.ones(4, np.float32)),
        errors.ShapeMismatch,
        (
            "np.add: shapes (2, 3) and (4,) do not fit; expected extents that are equal or 1, counted from the "
            "last axis\n  at HERE"
        ),
    ),
    (
        lambda: kf.jit(lambda x: x + 300)(np.zeros(3, np.uint8)),
        errors.NumberOutOfRange,
        "np.add: the Python number 300 does not fit uint8; cast the array to a wider dtype first\n  at HERE",
    ),
    (
        lambda: kf.random.normal(3, (2,)),
        errors.DtypeMismatch,
        (
            "random.normal: dtypes i64[] do not fit; expected one key, of type u32[2]; make one with "
            "kf.random.key(seed)\n  at HERE"
        ),
    ),
    (
        lambda: kf.asarray(X).sum(5),
        errors.InvalidAxis,
        "np.sum: axis 5 is none of an array of 2 axes; expected integers from -2 to 1\n  at HERE",
    ),
    (
        lambda: knp.sum(np.float32(1), axis=1),
        errors.InvalidAxis,
        "np.sum: axis 1 is none of an array of 0 axes; expected none\n  at HERE",
    ),
    (
        jitted(lambda x: np.moveaxis(x, 0, "rows")),  # type: ignore[call-overload]
        errors.InvalidCall,
        (
            "np.moveaxis(a=f32[2,3], source=0, destination='rows'): 'str' object cannot be interpreted as an integer; "
            "its parameters are (a, source, destination)\n  at HERE"
        ),
    ),
    (
        jitted(lambda x: kf.nn.softmax(x, dim=2)),
        errors.InvalidAxis,
        "softmax: axis 2 is none of an array of 2 axes; expected integers from -2 to 1\n  at HERE",
    ),
    (
        lambda: kf.nn.avg_pool1d(X, 1.5),
        errors.InvalidCall,
        (
            "avg_pool1d(f32[2,3], 1.5): 'float' object is not iterable; its parameters are (input, kernel_size, "
            "stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None, dilation=1)\n"
            "  at HERE"
        ),
    ),
    (
        lambda: kf.asarray(X)[0, 7],
        errors.InvalidIndex,
        (
            "[0, 7] is not a valid index for an array of shape (2, 3); index 7 is out of bounds for axis 1 with size 3"
            "\n  at HERE"
        ),
    ),
    (
        lambda: kf.asarray(X)["rows"],
        errors.InvalidIndex,
        (
            "['rows'] is not a valid index for an array of shape (2, 3); only integers, slices (`:`), ellipsis "
            "(`...`), numpy.newaxis (`None`) and integer or boolean arrays are valid indices\n  at HERE"
        ),
    ),
    (
        jitted(lambda x: x + np.zeros((2**33, 2**33))),
        errors.ArrayTooLarge,
        (
            "np.zeros: an array f64[8589934592,8589934592] has more bytes than 64-bit indices reach; use smaller "
            "extents\n  at HERE"
        ),
    ),
    (
        lambda: knp.ones(2**55),
        errors.DeviceOutOfMemory,
        "cpu has no room for 288230376151711744 bytes; free arrays or use smaller ones",
    ),
    (
        lambda: knp.add(X, None),
        errors.InvalidArgument,
        (
            "x2 is builtins.NoneType; expected arrays, numbers and pytrees of them: convert it, or name the argument "
            "in static_argnames\n  at HERE"
        ),
    ),
    (
        jitted(assign_to_selection),
        errors.TracedMask,
        (
            "x[mask] has a shape that depends on the values of a traced mask, so it takes part in elementwise "
            "functions, total sums and x[mask] = ... by the same mask alone; write np.where(mask, x, 0), or "
            "np.max(x, where=mask, initial=0)\n  at HERE"
        ),
    ),
    (
        lambda: kf.optim.adam(betas=0.9),  # type: ignore[arg-type]
        errors.InvalidParameter,
        "adam: betas=0.9 is not valid; expected two numbers\n  at HERE",
    ),
    (
        lambda: kf.optim.sgd(momentum=0.9).update({}, {"w": X}, {"w": X}),
        errors.TreeMismatch,
        (
            "update: state has the structure PyTreeSpec({}); expected PyTreeSpec({'count': *, 'velocity': {'w': *}})"
            "\n  at HERE"
        ),
    ),
    (
        lambda: kf.while_loop(True, cube, X),  # type: ignore[arg-type]
        errors.InvalidParameter,
        "while_loop: cond_fun=True is not valid; expected a function\n  at HERE",
    ),
    (
        lambda: kf.jvp(cube, X, X),  # type: ignore[arg-type]
        errors.InvalidParameter,
        (
            "jvp: primals=array([[0., 1., 2.],\n       [3., 4., 5.]], dtype=float32) is not valid; expected a tuple, "
            "of one for each argument\n  at HERE"
        ),
    ),
    (
        jitted(lambda x: x + knp.zeros(3, device="reference")),
        errors.UnsupportedArgument,
        (
            "np.zeros: device='reference' is not supported; leave it out: a compiled function computes where its "
            "arguments are\n  at HERE"
        ),
    ),
    (
        lambda: kf.asarray(X, device=0),  # type: ignore[arg-type]
        errors.UnknownDevice,
        "no device is named 0; there are cpu, opencl, cuda, reference",
    ),
    (
        lambda: kf.jit(cube)({"w": "text"}),
        errors.InvalidArgument,
        (
            "x['w'] is builtins.str; expected arrays, numbers and pytrees of them: convert it, or name the "
            "argument in static_argnames\n  at HERE"
        ),
    ),
    (
        lambda: knp.concatenate([X, "text"]),
        errors.InvalidArgument,
        (
            "arrays[1] is builtins.str; expected arrays, numbers and pytrees of them: convert it, or name the "
            "argument in static_argnames\n  at HERE"
        ),
    ),
    (
        lambda: kf.jit(lambda x, mode: x, static_argnames="mode")(X, mode=[]),
        errors.UnhashableStatic,
        (
            "the static argument mode is of the type list, which cannot be hashed; pass a tuple or another "
            "immutable value, or an array as an ordinary argument\n  at HERE"
        ),
    ),
    (
        lambda: kf.jit(cube, static_argnames="mode"),
        errors.UnknownParameter,
        "static argument 'mode' is no parameter of cube, which has x\n  at HERE",
    ),
    (
        use_donated,
        errors.DonatedArray,
        (
            "this array was donated to a compiled function, which may write to its memory; use the results of "
            "that call, or donate a copy\n  at HERE"
        ),
    ),
    (
        donate_read_only,
        errors.CannotDonate,
        "x is donated and is read-only; pass a copy of it, or leave it out of donate_argnames\n  at HERE",
    ),
    (
        write_to_array,
        errors.ImmutableArray,
        "an Array is immutable; write x = x.at[index].set(value), or x = x + v in place of x += v\n  at HERE",
    ),
    (
        lambda: kf.grad(cube)(X),
        errors.NotScalar,
        (
            "grad: cube returned f32[2,3]; expected one float of shape (): sum it, return the rest with "
            "has_aux=True, or use vjp or jacrev\n  at HERE"
        ),
    ),
    (
        lambda: kf.grad(cube, has_aux=True)(2.0),
        errors.ExpectedPair,
        "grad: cube returned one array; expected a tuple of two: (value, aux)\n  at HERE",
    ),
    (
        lambda: kf.scan(lambda c, x: (c, x, x), 0.0, X),
        errors.ExpectedPair,
        "scan: <lambda> returned a tuple of 3; expected a tuple of two: (carry, y)\n  at HERE",
    ),
    (
        lambda: kf.grad(cube)(3),
        errors.NotFloat,
        (
            "grad: argument 0 is i64[]; expected an array of floats to differentiate by: cast it with "
            ".astype, or leave it out\n  at HERE"
        ),
    ),
    (
        lambda: kf.grad(cube, argnums=(0, 0))(2.0),
        errors.RepeatedArgnums,
        "grad: argnums=(0, 0) names an argument twice; name each one once\n  at HERE",
    ),
    (
        lambda: kf.grad(cube, argnums=1)(2.0),
        errors.ArgnumsOutOfRange,
        "grad: argnums=1 names no argument of a call with 1 positional ones, which count from 0\n  at HERE",
    ),
    (
        lambda: kf.cond(X, cube, cube, X),
        errors.NotAPredicate,
        (
            "cond: pred is f32[2,3]; expected one bool of shape (): compare it, or reduce it with .any() or "
            ".all()\n  at HERE"
        ),
    ),
    (
        jitted(lambda x: kf.scan(lambda c, y: (c.astype(np.float64), y), np.float32(0), x)),
        errors.CarryMismatch,
        (
            "scan: carry goes in as f32[] and comes out of the body as f64[]; cast it to one type before the "
            "loop or at its end\n  at HERE"
        ),
    ),
    (
        jitted(lambda x: kf.cond(x.sum() > 0, lambda: x, lambda: x[0])),
        errors.BranchMismatch,
        "cond: result is f32[3] from false_fun and f32[2,3] from true_fun; make both return one type\n  at HERE",
    ),
    (
        jitted(kf.custom_vjp(cube)),
        errors.RuleMissing,
        "custom_vjp function cube has no derivative rule; give it one with cube.defvjp(fwd, bwd)\n  at HERE",
    ),
    (
        keyword_only,
        errors.KeywordOnly,
        (
            "custom_vjp function scaled was given keyword-only arguments by; expected arguments that can be "
            "positional: take away the * before them, or bind them with functools.partial\n  at HERE"
        ),
    ),
    (
        lambda: kf.asarray(X) + kf.asarray(X, device="reference"),
        errors.MixedDevices,
        "arrays of cpu and of reference meet in one call; move one of them with .to_device\n  at HERE",
    ),
    (
        jitted(lambda x: {"loss": x.sum(), "name": "a run"}),
        errors.InvalidResult,
        "<lambda> returned str at result['name']; expected arrays, numbers and pytrees of them\n  at HERE",
    ),
    (
        lambda: np.fft.fft(kf.asarray(X)),
        errors.NotForArrays,
        "np.fft.fft is not there for arrays of a device; pass np.asarray(x), of which NumPy computes it\n  at HERE",
    ),
    (
        lambda: primitive("sine"),
        errors.UnknownPrimitive,
        "no primitive is named 'sine'; kernelforge.ir.ops.PRIMITIVES lists them",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), MESSAGES, ids=lambda v: v.__name__ if isinstance(v, type) else "")
def test_the_whole_message(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    assert ops.PRIMITIVES
    with pytest.raises(error) as caught, kf.default_device("cpu"):
        call()
    found = re.sub(r"(\S+\.<locals>\.|MESSAGES\.)?<lambda>", "<lambda>", str(caught.value))
    assert re.sub(r"  at \S*test_messages\.py:\d+ in \S+", "  at HERE", found) == text


def test_errors_of_a_users_function_stay_what_they_are() -> None:
    def refuse(x: Any) -> Any:
        return x + int("three")

    for fn in (kf.jit(refuse), lambda x: knp.piecewise(x, [X > 0], [refuse])):
        with pytest.raises(ValueError, match="invalid literal") as caught:
            fn(X)
        assert type(caught.value) is ValueError


def test_errors_go_from_process_to_process() -> None:
    with pytest.raises(errors.ShapeMismatch) as caught:
        kf.jit(lambda x: x + np.ones(4))(X)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (errors.ShapeMismatch, str(caught.value))
    assert (again.loc, again.text) == (caught.value.loc, caught.value.text)


def test_lines_of_this_package_are_no_users() -> None:
    for module in (errors, ops, backends):
        for spell in (os.path.abspath, os.path.realpath):
            assert in_package(spell(str(module.__file__)))
    assert not in_package(__file__)
    assert not in_package("/home/kernelforge/model.py")
