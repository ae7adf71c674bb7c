"""Index expressions: a normal form, bounds, and the questions that printers and schedule steps ask.

An i64 expression is normalised to a polynomial with integer coefficients over atoms: variables, and quotients,
remainders, minima and loads whose operands are normal themselves. Two equal indices then are one expression.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator

import numpy as np

from kernelforge.dtypes import DTYPES, INTEGERS
from kernelforge.ir.kernel import COMPARE, Const, Expr, Load, Op, Var, i64, op, select
from kernelforge.ir.memo import memo

Monomial = tuple[Expr, ...]
Poly = dict[Monomial, int]
"""Coefficient of each product of atoms; the empty product is the constant term."""

LEAST, GREATEST = -(1 << 63), (1 << 63) - 1

TRUE, FALSE = Const(True, "bool"), Const(False, "bool")


def conjuncts(cond: Expr) -> Iterator[Expr]:
    """Yield the conditions that hold wherever one does."""
    if isinstance(cond, Op) and cond.op == "and":
        for part in cond.args:
            yield from conjuncts(part)
    else:
        yield cond


@memo
def normalize(expr: Expr) -> Expr:
    """Bring every index inside ``expr`` to normal form and decide the conditions that bounds decide."""
    if isinstance(expr, Const | Var):
        return expr
    if isinstance(expr, Load):
        return Load(expr.buffer, tuple(normalize(i) for i in expr.index), expr.dtype)
    assert isinstance(expr, Op)
    if expr.dtype == "i64" and expr.op in ("add", "sub", "mul", "neg", "floordiv", "mod") and not is_data(expr):
        return from_poly(_poly(expr))
    args = tuple(normalize(a) for a in expr.args)
    if expr.op in COMPARE:
        if args[0].dtype == "i64":
            return _compare(expr.op, args[0], args[1])
        if args[0].dtype in INTEGERS and isinstance(args[0], Const) and isinstance(args[1], Const):
            return Const(getattr(operator, expr.op)(args[0].value, args[1].value), "bool")
    if expr.op == "cast" and isinstance(args[0], Const) and {args[0].dtype, expr.dtype} <= INTEGERS:
        return Const(int(np.array(args[0].value, DTYPES[args[0].dtype]).astype(DTYPES[expr.dtype])), expr.dtype)
    if expr.dtype == "bool" and expr.op in ("and", "or", "not"):
        return _logic(expr.op, args)
    if expr.dtype == "i64" and expr.op in ("min", "max"):
        return _extremum(expr.op, args[0], args[1])
    if expr.op == "select":
        if isinstance(args[0], Const):
            return args[1] if args[0].value else args[2]
        return select(*args)
    return expr if args == expr.args else Op(expr.op, args, expr.dtype)


@memo
def is_data(expr: Expr) -> bool:
    """Whether ``expr`` may wrap, so that no identity of the integers is applied to it: it depends on elements of
    arrays, or counters take it beyond its dtype.
    """
    if isinstance(expr, Op):
        return any(is_data(a) for a in expr.args) or (expr.dtype == "i64" and _wraps(expr))
    return isinstance(expr, Load) or (isinstance(expr, Var) and expr.bound is None)


def _wraps(expr: Expr) -> bool:
    low, high = _range(expr)
    return low < LEAST or high > GREATEST


@memo
def _range(expr: Expr) -> tuple[int, int]:
    """Return between what an i64 expression of the integers certainly lies; what is unknown counts as zero."""
    if isinstance(expr, Const):
        return int(expr.value), int(expr.value)
    if isinstance(expr, Var):
        return 0, max((expr.bound or 1) - 1, 0)
    if not isinstance(expr, Op) or expr.op not in ("add", "sub", "mul", "neg"):
        low, high = _atom_bounds(expr)
        return low or 0, high or 0
    (a, b), (c, d) = _range(expr.args[0]), _range(expr.args[-1])
    if expr.op == "add":
        return a + c, b + d
    if expr.op == "mul":
        products = a * c, a * d, b * c, b * d
        return min(products), max(products)
    return (a - d, b - c) if expr.op == "sub" else (-b, -a)


@memo
def is_lazy(expr: Expr) -> bool:
    """Whether ``expr`` is a select whose condition may keep Loads of its arms in range: one that compares indices.

    Read from memory, an index is kept in range by its order; whether it equals another one says nothing of that.
    """
    return isinstance(expr, Op) and expr.op == "select" and _compares_indices(expr.args[0])


def _compares_indices(cond: Expr) -> bool:
    if isinstance(cond, Op):
        if cond.op in COMPARE:
            data = cond.op in ("eq", "ne") and any(map(is_data, cond.args))
            return cond.args[0].dtype == "i64" and not data
        return any(_compares_indices(a) for a in cond.args if a.dtype == "bool")
    return isinstance(cond, Var)


def _compare(name: str, a: Expr, b: Expr) -> Expr:
    if (is_data(a) and None in bounds(a)) or (is_data(b) and None in bounds(b)):
        return op(name, a, b)
    low, high = bounds(from_poly(_sub(_poly(a), _poly(b))))
    verdict: bool | None = None
    if name in ("lt", "ge"):
        verdict = True if high is not None and high < 0 else False if low is not None and low >= 0 else None
    elif name in ("le", "gt"):
        verdict = True if high is not None and high <= 0 else False if low is not None and low > 0 else None
    elif low is not None and low == high == 0:
        verdict = True
    elif (low is not None and low > 0) or (high is not None and high < 0):
        verdict = False
    if verdict is None:
        return op(name, a, b)
    return TRUE if verdict == (name in ("lt", "le", "eq")) else FALSE


def _logic(name: str, args: tuple[Expr, ...]) -> Expr:
    if name == "not":
        return Const(not args[0].value, "bool") if isinstance(args[0], Const) else op("not", args[0])
    a, b = args
    neutral = name == "and"
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Const):
            return y if bool(x.value) == neutral else x
    return a if a is b else op(name, a, b)


def _extremum(name: str, a: Expr, b: Expr) -> Expr:
    if is_data(a) or is_data(b):
        return op(name, a, b)
    low, high = bounds(from_poly(_sub(_poly(a), _poly(b))))
    if (high is not None and high <= 0) or (low is not None and low >= 0):
        return a if (high is not None and high <= 0) == (name == "min") else b
    return op(name, a, b)


def _atom(expr: Expr) -> Poly:
    return {(expr,): 1}


def poly(expr: Expr) -> Poly:
    """Write an i64 expression as a polynomial."""
    return dict(_poly(expr))


@memo
def _poly(expr: Expr) -> Poly:
    if isinstance(expr, Const):
        return {(): int(expr.value)} if expr.value else {}
    if isinstance(expr, Op):
        if expr.op == "add":
            return _recombine(_add(_poly(expr.args[0]), _poly(expr.args[1])))
        if expr.op == "sub":
            return _recombine(_sub(_poly(expr.args[0]), _poly(expr.args[1])))
        if expr.op == "neg":
            return _scale(_poly(expr.args[0]), -1)
        if is_data(expr) and not (expr.op == "mul" and any(isinstance(a, Const) for a in expr.args)):
            return _atom(normalize(expr))
        if expr.op == "mul":
            return _mul(_poly(expr.args[0]), _poly(expr.args[1]))
        if expr.op in ("floordiv", "mod") and isinstance(expr.args[1], Const) and int(expr.args[1].value) > 0:
            return (_div if expr.op == "floordiv" else _mod)(_poly(expr.args[0]), int(expr.args[1].value))
        if expr.op in ("floordiv", "mod"):
            return _atom(op(expr.op, normalize(expr.args[0]), normalize(expr.args[1])))
        done = normalize(expr)
        return _poly(done) if done is not expr and isinstance(done, Const | Var) else _split(done)
    return _atom(normalize(expr))


def _split(done: Expr) -> Poly:
    """Write a normalised expression that is not arithmetic (or no longer is) as a polynomial."""
    if isinstance(done, Op) and done.op in ("add", "sub", "mul", "neg", "floordiv", "mod"):
        return _poly(done)
    return _atom(done)


def _add(a: Poly, b: Poly) -> Poly:
    out = dict(a)
    for m, c in b.items():
        total = out.get(m, 0) + c
        if total:
            out[m] = total
        else:
            out.pop(m, None)
    return out


def _scale(a: Poly, factor: int) -> Poly:
    return {m: c * factor for m, c in a.items()} if factor else {}


def _sub(a: Poly, b: Poly) -> Poly:
    return _add(a, _scale(b, -1))


def _mul(a: Poly, b: Poly) -> Poly:
    out: Poly = {}
    for m, c in a.items():
        for n, d in b.items():
            out = _add(out, {tuple(sorted(m + n, key=_order)): c * d})
    return out


@memo
def _order(expr: Expr) -> tuple[str, str]:
    """Order atoms alike in every process: variables by name, others by a digest of their structure."""
    if isinstance(expr, Var):
        return expr.name, ""
    parts: list[object] = [type(expr).__name__, expr.dtype]
    if isinstance(expr, Op):
        parts += [expr.op, *map(_order, expr.args)]
    elif isinstance(expr, Load):
        parts += [expr.buffer, *map(_order, expr.index)]
    elif isinstance(expr, Const):
        parts.append(expr.value)
    return "~", hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _halves(a: Poly, divisor: int) -> tuple[Poly, Poly]:
    """Split into the part whose coefficients are multiples of ``divisor``, divided by it, and the rest."""
    whole: Poly = {}
    rest: Poly = {}
    for m, c in a.items():
        if m == ():
            q, r = divmod(c, divisor)
            if q:
                whole[m] = q
            if r:
                rest[m] = r
        elif c % divisor == 0:
            whole[m] = c // divisor
        else:
            rest[m] = c
    return whole, rest


def _reduced(rest: Poly, divisor: int) -> tuple[Poly, int, Poly]:
    """Write ``rest`` as ``g * x + y`` with g a factor of ``divisor`` and 0 <= y < g; return x, ``divisor // g`` and y.

    Then ``rest // divisor`` is ``x // (divisor // g)`` and ``rest % divisor`` is ``g * (x % (divisor // g)) + y``.
    """
    factors = {math.gcd(divisor, c) for m, c in rest.items() if m != ()}
    for g in sorted(factors, reverse=True):
        if 1 < g < divisor:
            x, y = _halves(rest, g)
            low, high = _bounds(y)
            if low is not None and high is not None and low >= 0 and high < g:
                return x, divisor // g, y
    return rest, divisor, {}


def _div(a: Poly, divisor: int) -> Poly:
    if divisor == 1:
        return a
    whole, rest = _halves(a, divisor)
    low, high = _bounds(rest)
    if low is not None and high is not None and low // divisor == high // divisor:
        return _add(whole, {(): low // divisor} if low // divisor else {})
    rest, small, _ = _reduced(rest, divisor)
    if small < divisor:
        return _add(whole, _div(rest, small))
    if len(rest) == 1:
        ((mono, c),) = rest.items()
        if len(mono) == 1 and c == 1 and isinstance(mono[0], Op) and isinstance(mono[0].args[-1], Const):
            inner, n = mono[0], int(mono[0].args[-1].value)
            if inner.op == "floordiv" and n > 0:
                return _add(whole, _div(_poly(inner.args[0]), n * small))
            if inner.op == "mod" and n > 0 and n % small == 0:
                return _add(whole, _mod(_div(_poly(inner.args[0]), small), n // small))
    return _add(whole, _atom(Op("floordiv", (from_poly(rest), i64(small)), "i64")))


def _mod(a: Poly, divisor: int) -> Poly:
    if divisor == 1:
        return {}
    _, rest = _halves(a, divisor)
    low, high = _bounds(rest)
    if low is not None and high is not None and low // divisor == high // divisor:
        return _sub(rest, {(): low // divisor * divisor} if low // divisor else {})
    x, small, y = _reduced(rest, divisor)
    if small < divisor:
        return _add(_scale(_mod(x, small), divisor // small), y)
    if len(rest) == 1:
        ((mono, c),) = rest.items()
        if len(mono) == 1 and c == 1 and isinstance(mono[0], Op) and mono[0].op == "mod":
            inner = mono[0]
            if isinstance(inner.args[1], Const) and int(inner.args[1].value) % divisor == 0:
                return _mod(_poly(inner.args[0]), divisor)
    return _atom(Op("mod", (from_poly(rest), i64(divisor)), "i64"))


def _recombine(a: Poly) -> Poly:
    """Put ``(x // n) * n + x % n`` back together; also ``((x // n) % m) * n + x % n`` to ``x % (n * m)``."""
    for mono, c in a.items():
        if (
            len(mono) != 1
            or not isinstance(mono[0], Op)
            or mono[0].op != "mod"
            or not isinstance(mono[0].args[1], Const)
        ):
            continue
        x, n = _poly(mono[0].args[0]), int(mono[0].args[1].value)
        quotient = _div(x, n)
        rest = {m: k for m, k in a.items() if m != mono}
        scaled = _scale(quotient, n * c)
        if quotient and all(rest.get(m) == k for m, k in scaled.items()):
            return _recombine(_add(_sub(rest, scaled), _scale(x, c)))
        for other, k in rest.items():
            if k != n * c or len(other) != 1 or not isinstance(other[0], Op) or other[0].op != "mod":
                continue
            high = other[0]
            if isinstance(high.args[1], Const) and _poly(high.args[0]) == quotient:
                joined = _mod(x, n * int(high.args[1].value))
                return _recombine(_add({m: v for m, v in rest.items() if m != other}, _scale(joined, c)))
    return a


def from_poly(a: Poly) -> Expr:
    """Write a polynomial as an expression, terms in a fixed order with the constant last."""
    total: Expr | None = None
    for mono in sorted((m for m in a if m), key=lambda m: tuple(map(_order, m))):
        term: Expr = mono[0]
        for atom in mono[1:]:
            term = term * atom
        c = a[mono]
        total = term * c if total is None else total + term * c if c > 0 else total - term * -c
    constant = a.get((), 0)
    if total is None:
        return i64(constant)
    return total + constant if constant >= 0 else total - -constant


def _bounds(a: Poly) -> tuple[int | None, int | None]:
    low: int | None = 0
    high: int | None = 0
    for mono, c in a.items():
        lo, hi = _atom_bounds(mono[0]) if mono else (1, 1)
        for atom in mono[1:]:
            x, y = _atom_bounds(atom)
            if lo is None or x is None or lo < 0 or x < 0:
                lo = hi = None  # products of signed atoms do not occur in the indices we make
                break
            lo = lo * x
            hi = None if hi is None or y is None else hi * y
        if c < 0:
            lo, hi = hi, lo
        low = None if low is None or lo is None else low + c * lo
        high = None if high is None or hi is None else high + c * hi
    if (low or 0) < LEAST or (high or 0) > GREATEST:
        return None, None
    return low, high


@memo
def _atom_bounds(atom: Expr) -> tuple[int | None, int | None]:
    if isinstance(atom, Const):
        return int(atom.value), int(atom.value)
    if isinstance(atom, Var):
        return (0, atom.bound - 1) if atom.bound is not None else (None, None)
    if isinstance(atom, Op):
        if atom.op == "mod" and isinstance(atom.args[1], Const) and int(atom.args[1].value) > 0:
            return 0, int(atom.args[1].value) - 1
        if atom.op == "floordiv" and isinstance(atom.args[1], Const) and int(atom.args[1].value) > 0:
            n = int(atom.args[1].value)
            lo, hi = bounds(atom.args[0])
            return None if lo is None else lo // n, None if hi is None else hi // n
        if atom.op == "and" and isinstance(atom.args[1], Const) and int(atom.args[1].value) >= 0:
            return 0, int(atom.args[1].value)
        if atom.op in ("or", "xor"):
            (a, b), (c, d) = bounds(atom.args[0]), bounds(atom.args[1])
            if a is None or b is None or c is None or d is None or min(a, c) < 0:
                return None, None
            return 0, (1 << max(b, d).bit_length()) - 1
        if atom.op in ("min", "max"):
            pairs = [bounds(a) for a in atom.args]
            pick = min if atom.op == "min" else max
            los, his = [p[0] for p in pairs], [p[1] for p in pairs]
            if atom.op == "min":
                known = [h for h in his if h is not None]
                return (None if None in los else pick(x for x in los if x is not None)), (min(known) if known else None)
            known = [x for x in los if x is not None]
            return (max(known) if known else None), (None if None in his else pick(h for h in his if h is not None))
        if atom.op == "select":
            (a, b), (c, d) = bounds(atom.args[1]), bounds(atom.args[2])
            return None if a is None or c is None else min(a, c), None if b is None or d is None else max(b, d)
        if atom.op == "cast" and atom.dtype == "i64" and atom.args[0].dtype == "bool":
            return 0, 1
    return None, None


def bounds(expr: Expr) -> tuple[int | None, int | None]:
    """Return the least and the greatest value an i64 expression can have, None where unknown."""
    return _bounds(_poly(expr))


def depends(expr: Expr, var: Var) -> bool:
    """Whether ``expr`` mentions ``var``."""
    return var in free_vars(expr)


@memo
def free_vars(expr: Expr) -> frozenset[Var]:
    """Return the variables of ``expr``."""
    if isinstance(expr, Var):
        return frozenset((expr,))
    if isinstance(expr, Const):
        return frozenset()
    children = expr.args if isinstance(expr, Op) else expr.index if isinstance(expr, Load) else ()
    return frozenset().union(*(free_vars(c) for c in children))


@memo
def reads(expr: Expr) -> frozenset[str]:
    """Return the buffers that ``expr`` loads from."""
    if isinstance(expr, Load):
        return frozenset((expr.buffer,)).union(*(reads(i) for i in expr.index))
    return frozenset().union(*map(reads, expr.args)) if isinstance(expr, Op) else frozenset()


def affine(expr: Expr, var: Var) -> int | None:
    """Return c where ``expr = c * var + rest`` with ``rest`` free of ``var``; None where it is not of that form."""
    if var not in free_vars(expr):
        return 0
    total = 0
    for mono, c in _poly(expr).items():
        if mono == (var,):
            total += c
        elif any(var in free_vars(atom) for atom in mono):
            return None
    return total


def flatten(index: tuple[Expr, ...], strides: tuple[int, ...]) -> Expr:
    """Return the element offset of ``index`` in normal form."""
    total: Poly = {}
    for i, s in zip(index, strides, strict=True):
        total = _add(total, _scale(_poly(i), s))
    return from_poly(_recombine(total))


def unflatten(flat: Expr, shape: tuple[int, ...]) -> tuple[Expr, ...]:
    """Return the index, in normal form, of the element at position ``flat`` of a row-major array."""
    out: list[Expr] = []
    step = math.prod(shape)
    for axis, extent in enumerate(shape):
        step //= max(extent, 1)
        part = flat // step if step > 1 else flat
        out.append(normalize(part % extent) if axis and extent else normalize(part))
    return tuple(out)
