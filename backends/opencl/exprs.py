"""Printing expressions as OpenCL C: scalars, and vectors inside of a ``vector`` loop.

A value is printed as a vector where it depends on the loop's variable. Its Loads are one vector access where the
index steps by one element a lane, and one access a lane otherwise. Where evaluating all lanes could touch what the
program would not, an arm of a ``select`` is printed once a lane.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from kernelforge.backends.opencl.lib import Functions, ctype, literal, size
from kernelforge.backends.opencl.operations import INFIX, Code, Operations
from kernelforge.ir.index import affine, bounds, flatten, free_vars
from kernelforge.ir.interleaved import Places, orders, windows
from kernelforge.ir.kernel import Const, Expr, Load, Op, Var, i64, op, substitute, walk
from kernelforge.ir.math import BOUNDS, Function, function
from kernelforge.ir.schedule.limits import NEAR

DEEP = 24
"""Operations inside one another that are printed as one expression: compilers accept 256 brackets, each takes some."""


@dataclasses.dataclass(frozen=True, slots=True)
class Buffer:
    """How a buffer is reached.

    Attributes:
        space: the qualifier of its pointers.
        size: elements that can be loaded from index 0 on; 0 where that is not known.
        dropped: leading indices that it does not have.
    """

    name: str
    dtype: str
    space: str
    strides: tuple[int | Expr, ...]
    size: int = 0
    dropped: int = 0

    def flat(self, index: Sequence[Expr]) -> Expr:
        index = tuple(index[self.dropped :])
        if all(isinstance(s, int) for s in self.strides):
            return flatten(index, tuple(s for s in self.strides if isinstance(s, int)))
        total: Expr = i64(0)
        for i, s in zip(index, self.strides, strict=True):
            total = total + (i * s if isinstance(s, Expr) else i * i64(s))
        return total


class Scope(Operations):
    """What is known while statements are printed: names, buffers, and the vector loop around them.

    Attributes:
        names: how each variable is printed.
        var: the vector loop's variable; None outside of one.
        lane: the lane that is printed where lanes are printed one by one, else None.
        vectors: names that have a value for each lane.
        indices: i64 values of such names, where they can be put in place of the name.
        counters: names of loop variables and parameters, which are not negative.
        masks: whether vectors may be read in some of their lanes.
        guard: the lanes in which memory may be read and written, as a mask of four bytes a lane; None is all.
        branch: whether what is printed is run under a condition alone.
    """

    def __init__(self, functions: Functions, emit: Callable[[str], None]) -> None:
        super().__init__(functions, emit)
        self.masks = False
        self.guard: Code | None = None
        self.branch = False
        self.names: dict[str, Code] = {}
        self.buffers: dict[str, Buffer] = {}
        self.var: Var | None = None
        self.lane: int | None = None
        self.vectors: set[str] = set()
        self.indices: dict[Expr, Expr] = {}
        self.counters: set[str] = set()
        self._memo: dict[tuple[Expr, bool, int | None, Code | None], Code] = {}
        self._always: set[Expr] = set()
        self._hoisted: set[Expr] = set()

    def begin(self, roots: Sequence[Expr]) -> None:
        """Start a statement: what its expressions share, and what is deep in them, is named before it, where all of it
        may be evaluated.
        """
        self._memo = {}
        self._always = _always(roots)
        uses = Counter(roots)
        seen: set[Expr] = set()
        depth: dict[Expr, int] = {}
        for root in roots:
            for e in walk(root, seen):
                uses.update(e.parts)
                depth[e] = 1 + max((depth[x] for x in e.parts), default=0)
        deep = {e for e, n in depth.items() if n % DEEP == 0}
        shared = {e for e, n in uses.items() if n > 1 and isinstance(e, Op | Load)}
        self._hoisted = {e for e in shared | deep if self.may(e)}

    def may(self, e: Expr) -> bool:
        """Whether ``e`` may be evaluated in all lanes and whatever a select chooses."""
        return all(x in self._always or self._harmless(x) for x in walk(e))

    def _harmless(self, e: Expr) -> bool:
        if not isinstance(e, Load):
            return not divides(e)
        buffer = self.buffers[e.buffer]
        flat = buffer.flat(e.index)
        low, high = bounds(flat)
        known = low is not None and high is not None and low >= 0 and high < buffer.size
        return known and all(v.name in self.counters for v in free_vars(flat))

    def varies(self, e: Expr) -> bool:
        """Whether ``e`` has a value for each lane."""
        return self.lane is None and self.var is not None and any(v.name in self.vectors for v in free_vars(e))

    def value(self, e: Expr, index: bool = False) -> Code:
        """Print an expression; ``index`` says that it is an index, which does not overflow."""
        key = (e, index, self.lane, self.guard)
        code = self._memo.get(key)
        if code is None:
            code = self._print(e, index)
            if self.lane is None and e in self._hoisted:
                code = self.temporary(code)
            self._memo[key] = code
        return code

    def _print(self, e: Expr, index: bool) -> Code:
        match e:
            case Const():
                return Code(literal(e.value, e.dtype), e.dtype)
            case Var():
                return self._name(e)
            case Load():
                return self._load(e)
            case Op(op="select"):
                return self._select(e, index)
            case Op():
                return self._operation(e, index)
        raise AssertionError(f"{e!r} is not an expression")

    def _name(self, e: Var) -> Code:
        if self.lane is not None and e is self.var:
            return Code(literal(self.lane, "i64"), "i64")
        code = self.names[e.name]
        if self.lane is None or code.lanes == 1:
            return code
        text = f"{code.text}.s{self.lane:x}"
        return Code(f"({text} != 0)" if code.mask else text, e.dtype)

    # memory

    def resolved(self, e: Expr) -> Expr:
        """Put the named indices that depend on the lane in place of their names."""
        return substitute(e, self.indices) if self.indices else e

    def step(self, flat: Expr) -> int | None:
        """Return by how many elements an index steps a lane, None where that is no constant."""
        if not self.varies(flat):
            return 0
        flat = self.resolved(flat)
        assert self.var is not None
        if any(v.name in self.vectors for v in free_vars(flat) if v is not self.var):
            return None
        return affine(flat, self.var)

    def first(self, flat: Expr) -> str:
        """Print the index that lane 0 has."""
        assert self.var is not None
        return self.value(substitute(self.resolved(flat), {self.var: i64(0)}), index=True).text

    def pointer(self, buffer: Buffer, flat: Expr, const: str = "", align: int = 0) -> str:
        """Print where the elements of all lanes are, which are side by side, as the address of one vector."""
        kind = self.functions.vector(buffer.dtype, self.lanes, align)
        return f"({buffer.space}{const}{kind}*)({buffer.name} + {self.first(flat)})"

    def places(self, buffer: Buffer, flat: Expr) -> list[str]:
        """Print the element of each lane."""
        step = self.step(flat)
        # a vector of indices takes a compiler twice as long as one index and distances from it
        at = self.value(flat, index=True) if step is None else Code(self.first(flat), "i64")
        if not at.text.isidentifier():
            at = self.temporary(at)
        lanes = range(self.lanes)
        each = (f".s{k:x}" for k in lanes) if step is None else (f" + {literal(k * step, 'i64')}" for k in lanes)
        return [f"{buffer.name}[{at.text}{x}]" for x in each]

    def _load(self, e: Load) -> Code:
        buffer = self.buffers[e.buffer]
        flat = buffer.flat(e.index)
        if not self.varies(flat):
            text = f"{buffer.name}[{self.value(flat, index=True).text}]"
            return Code(f"({text} != 0)" if e.dtype == "bool" else text, e.dtype)
        guarded, step = self.guard is not None and not self._harmless(e), self.step(flat)
        if step == 1:
            text = self.masked_load(buffer, flat) if guarded else f"(*{self.pointer(buffer, flat, 'const ')})"
        elif step == -1 and not guarded:
            first = f"(*{self.pointer(buffer, flat - (self.lanes - 1), 'const ')})"
            text = f"{first}.s{''.join(f'{k:x}' for k in reversed(range(self.lanes)))}"
        elif step is not None and 1 < abs(step) <= NEAR and not guarded:
            text = self.near(buffer, flat, step).text
        else:
            places = self.places(buffer, flat)
            if guarded:
                places = [f"{self.in_lane(k)} ? {p} : 0" for k, p in enumerate(places)]
            text = f"(({ctype(e.dtype, self.lanes)})({', '.join(places)}))"
        if e.dtype == "bool":
            return Code(f"({text} != (uchar{self.lanes})(0))", "bool", self.lanes, 1)
        return Code(text, e.dtype, self.lanes)

    def near(self, buffer: Buffer, flat: Expr, step: int) -> Code:
        """Print the elements ``step`` apart as shuffles of the vectors that hold them."""
        found = windows(abs(step), self.lanes)
        lowest = flat if step > 0 else flat + step * (self.lanes - 1)
        dtype = "u8" if buffer.dtype == "bool" else buffer.dtype
        vectors = (f"*{self.pointer(buffer, lowest + first, 'const ')}" for first, _ in found)
        rows = [self.temporary(Code(text, dtype, self.lanes)) for text in vectors]
        places = [(r, place) for r, (_, held) in enumerate(found) for place in held]
        return self.picked(rows, places if step > 0 else places[::-1])

    def picked(self, rows: Sequence[Code], places: Places) -> Code:
        """Name the vector of the elements at ``places``, each a row and a lane."""
        made = rows[0]
        for r, order in enumerate(orders(len(rows), self.lanes, places), min(1, len(rows) - 1)):
            pick = self.functions.shuffle(made.dtype, self.lanes, [k or 0 for k in order])
            made = self.temporary(made._replace(text=f"{pick}({made.text}, {rows[r].text})"))
        return made

    def masked_load(self, buffer: Buffer, flat: Expr) -> str:
        """Print a vector of the elements in the lanes of ``guard``, and of zeros."""
        return f"{self.functions.masked('load', buffer.dtype, self.lanes, buffer.space)}({self.at(buffer, flat)})"

    def at(self, buffer: Buffer, flat: Expr) -> str:
        """Print the lanes of ``guard`` and where the first lane is."""
        assert self.guard is not None
        mask = self.splat(self.guard, size(buffer.dtype)).text
        return f"{mask}, {buffer.name} + {self.first(flat)}"

    @contextlib.contextmanager
    def within(self, cond: Code) -> Iterator[Code]:
        """Keep to the lanes where a condition holds, too; gives their mask."""
        outer = self.guard
        mask = self.splat(cond, 4)
        self.guard = self.temporary(mask if outer is None else mask._replace(text=f"({outer.text} & {mask.text})"))
        yield self.guard
        self.guard = outer

    def in_lane(self, k: int) -> str:
        assert self.guard is not None
        return f"{self.guard.text}.s{k:x}"

    # lanes

    def by_lane(self, e: Expr) -> Code:
        """Print an expression once a lane."""
        parts = []
        for k in range(self.lanes):
            self.lane = k
            text = self.value(e).text
            parts.append(text if self.guard is None else f"({self.in_lane(k)} ? {text} : 0)")
            self.lane = None
        if e.dtype == "bool":
            return Code(f"((char{self.lanes})({', '.join(f'{p} ? -1 : 0' for p in parts)}))", "bool", self.lanes, 1)
        return Code(f"(({ctype(e.dtype, self.lanes)})({', '.join(parts)}))", e.dtype, self.lanes)

    def any_lane(self, code: Code) -> str:
        """Print whether a condition holds in any lane."""
        if code.lanes > 1:
            return f"{self.functions.any(code.mask, code.lanes)}({code.text})"
        return f"{code.text} != 0"

    def whole(self, cond: Expr) -> Expr | None:
        """Return a condition, one for all lanes, under which ``cond`` holds in each; None where none is known."""
        if not self.varies(cond):
            return cond
        cond = self.resolved(cond)
        if not isinstance(cond, Op) or self.var is None:
            return None
        if cond.op == "and":
            parts = [self.whole(a) for a in cond.args]
            return None if parts[0] is None or parts[1] is None else op("and", parts[0], parts[1])
        if cond.op not in ("lt", "le", "gt", "ge") or cond.args[0].dtype != "i64" or not all(map(total, cond.args)):
            return None
        low, high = cond.args if cond.op in ("lt", "le") else cond.args[::-1]
        c = self.step(low - high)
        return None if c is None else substitute(cond, {self.var: i64(self.lanes - 1 if c > 0 else 0)})

    def _select(self, e: Op, index: bool) -> Code:
        cond, *arms = e.args
        vector = self.varies(e)
        if vector and self.varies(cond):
            if all(map(self.may, arms)):
                a, b = (self.value(x, index) for x in arms)
            elif self.masks and all(map(self._maskable, arms)):
                test = self.value(cond)
                a, b = self._arm(arms[0], test), self._arm(arms[1], self.apply("not", "bool", [test]))
            else:
                return self._guarded(e)
            mask = size(e.dtype)
            if e.dtype == "bool":
                mask = a.mask or b.mask or 1
            a, b = self.splat(a, mask), self.splat(b, mask)
            test = self.splat(self.value(cond), mask)
            return Code(f"({test.text} ? {a.text} : {b.text})", e.dtype, self.lanes, a.mask)
        test = self.value(cond)
        if vector and not all(map(self.may, arms)):
            codes = self._inline(arms)
            if codes is None:
                return self.by_lane(e)
        else:
            codes = [self.value(x, index) for x in arms]
        a, b = codes
        if vector:
            mask = (a.mask or b.mask) if e.dtype == "bool" else 0
            a, b = self.splat(a, mask), self.splat(b, mask)
        return Code(f"({test.text} ? {a.text} : {b.text})", e.dtype, a.lanes, a.mask)

    def _maskable(self, e: Expr) -> bool:
        """Whether masks keep ``e`` from doing in other lanes what it may not."""
        unsafe = [x for x in walk(e) if x not in self._always and not self._harmless(x)]
        return not any(divides(x) or not self.varies(x) for x in unsafe)

    def _arm(self, e: Expr, test: Code) -> Code:
        """Print what a select chooses in some lanes."""
        if self.may(e):
            return self.value(e)
        with self.within(test):
            return self.value(e)

    def _guarded(self, e: Op) -> Code:
        """Print a select that may not evaluate its arms in all lanes: as vectors where all choose the first one."""
        slow = self.by_lane(e)
        guard = self.whole(e.args[0])
        arms = self._inline(e.args[1:2])
        if guard is None or arms is None:
            return slow
        fast = self.splat(arms[0], slow.mask)
        return Code(f"({self.value(guard).text} ? {fast.text} : {slow.text})", e.dtype, self.lanes, slow.mask)

    def _inline(self, arms: Sequence[Expr]) -> list[Code] | None:
        """Print arms of which nothing may be named ahead of the choice; None where that cannot be."""
        kept = self._hoisted, self.emit, dict(self._memo)
        lines: list[str] = []
        self._hoisted, self.emit = set(), lines.append
        codes = [self.value(a) for a in arms]
        self._hoisted, self.emit, self._memo = kept
        return None if lines else codes

    # operations

    def _operation(self, e: Op, index: bool) -> Code:
        args = [self.value(a, index) for a in e.args]
        if e.dtype == "i64" and e.op in ("floordiv", "mod") and self._counts(e.args[0]) and _positive(e.args[1]):
            return self.plain("/" if e.op == "floordiv" else "%", "i64", args)
        if index and e.dtype == "i64" and e.op in ("add", "sub", "mul"):
            return self.plain(INFIX[e.op], "i64", args)
        if e.op in ("cast", "bitcast"):
            return self.convert(e, args[0])
        if (e.op, e.dtype) in BOUNDS and "calls" in self.functions.native:
            made = function(e.op, e.dtype, self.functions.native)
            if made is not None:
                return self.called(e.op, made, args)
        return self.apply(e.op, e.dtype, args)

    def called(self, name: str, of: Function, args: Sequence[Code]) -> Code:
        """Print a call of a function, which stands in the source once; a branch wants what is rare."""
        lanes, dtype = max(a.lanes for a in args), args[0].dtype
        rare, width = self.branch or of.usual is None, f"x{lanes}" * (lanes > 1)
        own = f"kf_{'' if rare else 'usual_'}{name}_{dtype}{width}"
        texts = ", ".join((self.splat(a) if lanes > 1 else a).text for a in args)

        def text() -> str:
            kind, lines = ctype(dtype, lanes), list[str]()
            inner = Scope(self.functions, lines.append)
            inner.lanes, inner.var, inner.branch = lanes, Var("kf_lane"), True
            inner.vectors = {x.name for x in of.arguments if lanes > 1}
            inner.names = {x.name: Code(x.name, dtype, lanes) for x in of.arguments}
            inner.begin([of.value] if rare or of.usual is None else [of.usual, of.rare])
            result = inner.value(of.value if rare or of.usual is None else of.usual)
            if not rare:
                test, exact = inner.temporary(inner.value(of.rare)), inner.called(name, of, list(inner.names.values()))
                result = inner.temporary(result)
                lines.append(f"if ({inner.any_lane(test)}) return {test.text} ? {exact.text} : {result.text};")
            head = (
                f"static __attribute__((noinline)) {kind} {own}({', '.join(f'{kind} {x.name}' for x in of.arguments)})"
            )
            return "\n    ".join((f"{head} {{", *lines, f"return {result.text};\n}}\n"))

        return Code(f"{self.functions.define(own, text)}({texts})", dtype, lanes)

    def _counts(self, e: Expr) -> bool:
        """Whether an i64 expression of loop variables and parameters is known not to be negative."""
        low = bounds(e)[0]
        return low is not None and low >= 0 and all(v.name in self.counters for v in free_vars(e))


def _positive(e: Expr) -> bool:
    return isinstance(e, Const) and e.value > 0


def divides(e: Expr) -> bool:
    """Whether ``e`` divides integers by what may be zero."""
    return isinstance(e, Op) and e.op in ("floordiv", "mod") and not (isinstance(e.args[1], Const) and e.args[1].value)


def total(e: Expr) -> bool:
    """Whether ``e`` may be evaluated anywhere: it reads no memory and does not divide by what may be zero."""
    return not any(isinstance(x, Load) or divides(x) for x in walk(e))


def _always(roots: Sequence[Expr]) -> set[Expr]:
    """Return the sub-expressions that are evaluated whatever the selects choose."""
    found: set[Expr] = set()
    waiting = list(roots)
    while waiting:
        e = waiting.pop()
        if e not in found:
            found.add(e)
            waiting += e.args[:1] if isinstance(e, Op) and e.op == "select" else e.parts
    return found
