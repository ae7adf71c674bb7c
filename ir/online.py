"""Sums that go along with the maximum they are relative to, so that one walk does where two had to follow each other.

A sum over ``exp(x - M)``, M being the maximum of x, need not wait for M: the maximum m of what has been walked stands
for it, and whenever m grows to m', what has been summed is multiplied by ``exp(m - m')``. So is a sum of anything in
which that exponential is a factor. Factors of the row alone, as the division by the sum of the exponentials, are left
out of the sum, which is multiplied by them once, after the walk. (M. Milakov, N. Gimelshein, Online normalizer
calculation for softmax, 2018, algorithm 3; T. Dao et al., FlashAttention, 2022, algorithm 1.)

As long as every x is -inf, the exponential is relative to zero, so that it is zero as well; a row in which that remains
so gets what ``exp(x - M)`` gives there, which is NaN. Casts between floats are taken to commute with these factors:
values are rounded at another scale, and not more often. Nor are sums divided before the walk ends: where all weights of
a row are near its largest, values beyond the dtype's largest number over their count overflow, as in FlashAttention.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from kernelforge.dtypes import DTYPES, FLOATS
from kernelforge.ir.index import free_vars, normalize, reads
from kernelforge.ir.kernel import Const, Expr, Load, Op, Var, op, select, substitute


@dataclasses.dataclass(frozen=True, slots=True)
class Scaled:
    """An expression as a product.

    Attributes:
        term: the factor to sum, with the maximum so far in place of the maximum.
        shifts: what exponentials in it are relative to, in terms of the maximum.
        factors: the others, of the row alone, each with ``mul`` or ``div``.
    """

    term: Expr
    shifts: tuple[Expr, ...] = ()
    factors: tuple[tuple[str, Expr], ...] = ()

    def fits(self, dtype: str) -> bool:
        """Whether a sum of ``dtype`` can be scaled."""
        return {e.dtype for e in (*self.shifts, *(f for _, f in self.factors))} <= {dtype}


@dataclasses.dataclass(slots=True)
class Running:
    """A maximum over columns, and what goes along with it.

    Attributes:
        maximum: its buffer, of one element.
        value: what it is the maximum of, at column ``var``.
        level: the walk that finds it.
        known: the walk after which each buffer is known; what is so no earlier than the maximum has to be factored out.
        shifts: what exponentials are relative to, as ``Scaled`` has them.
        fills: buffers of columns as products.
    """

    maximum: Load
    value: Expr
    var: Var
    level: int
    known: Mapping[str, int]
    shifts: list[Expr] = dataclasses.field(default_factory=list)
    fills: dict[str, Scaled] = dataclasses.field(default_factory=dict)

    @property
    def before(self) -> Load:
        """The maximum before the block of columns that is walked."""
        return Load(f"{self.maximum.buffer}_was", (), self.maximum.dtype)

    def base(self, shift: Expr) -> Load:
        """What exponentials are relative to in the walk."""
        return Load(f"{self.maximum.buffer}_base{self.shifts.index(shift)}", (), shift.dtype)

    def growth(self, shift: Expr) -> Load:
        """What a sum is multiplied by when the maximum grows."""
        return Load(f"{self.maximum.buffer}_by{self.shifts.index(shift)}", (), shift.dtype)

    def bases(self) -> dict[Load, Expr]:
        """The values of ``base`` and ``growth`` after a block."""
        was, now = self.before, self.maximum
        found: dict[Load, Expr] = {}
        for shift in self.shifts:
            nothing, none = (m.eq(Const(-math.inf, m.dtype)) for m in (was, now))
            change = op("exp", substitute(shift, {now: was}) - shift)
            zero, one = Const(0, shift.dtype), Const(1, shift.dtype)
            found[self.base(shift)] = select(none, zero, shift)
            found[self.growth(shift)] = select(was.eq(now), one, select(nothing, zero, change))
        return found

    def finished(self, total: Expr, scaled: Scaled) -> Expr:
        """Return a sum from what the walk has summed."""
        for shift in scaled.shifts:
            none = self.maximum.eq(Const(-math.inf, self.maximum.dtype))
            total = select(none, total * op("exp", Const(0, shift.dtype) - shift), total)
        for name, factor in scaled.factors:
            total = op(name, total, factor)
        return total

    def scaled(self, e: Expr, var: Var) -> Scaled | None:
        """Read an expression at column ``var`` as a product, None where it is none that can be summed along."""
        if not self._pending(e):
            return Scaled(e)
        if isinstance(e, Load):
            found = self.fills.get(e.buffer)
            return found and dataclasses.replace(found, term=e)
        if not isinstance(e, Op):
            return None
        first, *others = e.args
        match e.op:
            case "exp":
                return self._relative(e, var)
            case "neg" | "cast" if e.dtype in FLOATS and first.dtype in FLOATS:
                return self._inside(e, 0, var)
            case "mul" if self._of_row(others[0], var):
                return self._inside(e, 0, var, ("mul", others[0]))
            case "mul" if self._of_row(first, var):
                return self._inside(e, 1, var, ("mul", first))
            case "div" if self._of_row(others[0], var):
                return self._inside(e, 0, var, ("div", others[0]))
            case "mul":
                a, b = self.scaled(first, var), self.scaled(others[0], var)
                if a is None or b is None:
                    return None
                return Scaled(op("mul", a.term, b.term), (*a.shifts, *b.shifts), (*a.factors, *b.factors))
            case "div" if not self._pending(others[0]):
                return self._inside(e, 0, var)
            case "select" if not self._pending(first) and others[1] == Const(0, e.dtype):
                return self._inside(e, 1, var)
        return None

    def _inside(self, e: Op, k: int, var: Var, factor: tuple[str, Expr] | None = None) -> Scaled | None:
        found = self.scaled(e.args[k], var)
        if found is None or factor is not None:
            return found and dataclasses.replace(found, factors=(*found.factors, *([factor] if factor else [])))
        if e.op == "cast" and _widened(found.term).dtype == e.dtype:
            return dataclasses.replace(found, term=_widened(found.term))
        return dataclasses.replace(found, term=Op(e.op, (*e.args[:k], found.term, *e.args[k + 1 :]), e.dtype))

    def _relative(self, e: Op, var: Var) -> Scaled | None:
        """Read ``exp(x - M)``."""
        difference = _plain(e.args[0])
        if not isinstance(difference, Op) or difference.op != "sub":
            return None
        x, shift = difference.args
        same = normalize(_widened(x)) is normalize(_widened(substitute(self.value, {self.var: var})))
        if not same or self._pending(x) or {b for b in reads(shift) if self.known.get(b, 0)} != {self.maximum.buffer}:
            return None
        if not self._of_row(shift, var):
            return None
        if shift not in self.shifts:
            self.shifts.append(shift)
        there: dict[Expr, Expr] = {difference: op("sub", x, self.base(shift))}
        return Scaled(op("exp", substitute(e.args[0], there)), (shift,))

    def _pending(self, e: Expr) -> bool:
        return any(self.known.get(b, 0) >= self.level for b in reads(e))

    def _of_row(self, e: Expr, var: Var) -> bool:
        """Whether an expression is one that has to be factored out, and can be: it is known after this walk."""
        known = max((self.known.get(b, 0) for b in reads(e)), default=0)
        return known == self.level and var not in free_vars(e)


def _plain(e: Expr) -> Expr:
    """Leave out casts between floats."""
    while isinstance(e, Op) and e.op == "cast" and {e.dtype, e.args[0].dtype} <= FLOATS:
        e = e.args[0]
    return e


def _widened(e: Expr) -> Expr:
    """Leave out casts to wider floats, which change no value."""
    while _plain(e) is not e and DTYPES[e.dtype].itemsize > DTYPES[e.parts[0].dtype].itemsize:
        e = e.parts[0]
    return e
