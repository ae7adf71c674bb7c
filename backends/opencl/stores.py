"""Stores of a kernel as OpenCL C: elements, vectors, lanes combined into one element, lanes one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from kernelforge.backends.opencl.exprs import Buffer, Scope
from kernelforge.backends.opencl.lib import WIDTHS, Functions, size
from kernelforge.backends.opencl.operations import Code
from kernelforge.ir.cost import Streamed
from kernelforge.ir.index import poly
from kernelforge.ir.kernel import Expr, For, Load, Op, Store, i64, substitute
from kernelforge.ir.pairs import pairs
from kernelforge.ir.schedule.limits import LINE

DOTS = 16
"""Lanes to which products of bf16 are added in pairs."""


class Stores:
    """Prints lines, among them stores: the lower layer of a printer.

    Attributes:
        streamed: outputs to store past the cache.
    """

    def __init__(self, functions: Functions, streamed: Streamed) -> None:
        self.streamed = streamed
        self.lines: list[str] = []
        self.depth = 1
        self.scope = Scope(functions, self.emit)

    def emit(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    @contextlib.contextmanager
    def block(self, head: str = "") -> Iterator[None]:
        """Put what the body prints in braces."""
        self.emit(f"{head} {{" if head else "{")
        self.depth += 1
        yield
        self.depth -= 1
        self.emit("}")

    def store(self, stmt: Store) -> None:
        scope = self.scope
        buffer = scope.buffers[stmt.buffer]
        flat = buffer.flat(stmt.index)
        value = stmt.value
        product = stmt.op == "add" and isinstance(value, Op) and value.op == "mul" and value.dtype in ("f32", "f64")
        factors: tuple[Expr, ...] = value.args if product and isinstance(value, Op) else (value,)
        scope.begin([flat, *factors])
        # combining the same value, each lane does it once
        repeated = stmt.op in ("add", "mul") and scope.var is not None and scope.lane is None
        spread = repeated or scope.varies(flat) or any(map(scope.varies, factors))
        codes = [scope.value(f) for f in factors]
        if not spread:
            place = f"{buffer.name}[{scope.value(flat, index=True).text}]"
            self.put(place, stmt, codes, 1)
        elif scope.step(flat) == 1 and scope.guard is not None:
            self.masked(stmt, buffer, flat, codes)
        elif scope.step(flat) == 1:
            align = self.past_cache(stmt, flat)
            if align:
                text = self.stored(scope.splat(codes[0], codes[0].mask or 1), scope.lanes)
                self.emit(f"kf_stream({text}, {scope.pointer(buffer, flat, align=align)});")
            else:
                self.put(f"*{scope.pointer(buffer, flat)}", stmt, codes, scope.lanes)
        elif not scope.varies(flat):
            self.fold(f"{buffer.name}[{scope.value(flat, index=True).text}]", stmt, codes)
        else:
            self.scatter(buffer, flat, stmt, codes)

    def dot(self, loop: For) -> bool:
        """Add two products of bf16 to each lane at once, where that is what ``loop`` does in lanes; return whether it
        is.
        """
        scope = self.scope
        found = pairs(loop) if scope.lanes == DOTS and scope.guard is None else None
        if found is None:
            return False
        stmt, loads = found
        first: dict[Expr, Expr] = {loop.var: i64(0)}
        buffer = scope.buffers[stmt.buffer]
        flats = [scope.buffers[e.buffer].flat([substitute(i, first) for i in e.index]) for e in loads]
        into = buffer.flat(stmt.index)
        if scope.step(into) != 1 or any(scope.step(f) not in (0, 2) for f in flats):
            return False
        scope.begin([into, *flats])
        words = []
        for e, flat in zip(loads, flats, strict=True):
            lanes = DOTS if scope.step(flat) else 1
            kind, source = scope.functions.vector("u32", lanes, size(e.dtype)), scope.buffers[e.buffer]
            word = f"(*({source.space}const {kind}*)({source.name} + {scope.first(flat)}))"
            words.append(scope.splat(Code(word, "u32", lanes)).text)
        place = f"*{scope.pointer(buffer, into)}"
        self.emit(f"{place} = {scope.functions.dot()}({', '.join(words)}, {place});")
        return True

    def past_cache(self, stmt: Store, flat: Expr) -> int:
        """Return the alignment in bytes of a vector to store past the cache; 0 where it must not be."""
        var, width = self.scope.var, size(stmt.value.dtype)
        if stmt.op or var is None or stmt.buffer not in self.streamed:
            return 0
        if self.scope.lanes < min(self.streamed[stmt.buffer] // width, max(WIDTHS)):
            return 0
        unit = min(self.scope.lanes, LINE // width)
        steps = poly(self.scope.resolved(flat)).items()
        return unit * width if all(c % unit == 0 for m, c in steps if m != (var,)) else 0

    def masked(self, stmt: Store, buffer: Buffer, flat: Expr, codes: Sequence[Code]) -> None:
        """Write the lanes of a vector that are not masked; elements that nothing else sees are written back."""
        scope, dtype = self.scope, stmt.value.dtype
        place = f"*{scope.pointer(buffer, flat)}"
        own = not buffer.space and scope.may(Load(stmt.buffer, stmt.index, dtype))
        old = place if own or not stmt.op else scope.masked_load(buffer, flat)
        made = scope.splat(self.combined(old, stmt, codes, scope.lanes), size(dtype))
        if own:
            assert scope.guard is not None
            mask = scope.splat(scope.guard, size(dtype)).text
            self.emit(f"{place} = {mask} ? {self.stored(made, scope.lanes)} : {place};")
        else:
            write = scope.functions.masked("store", dtype, scope.lanes, buffer.space)
            self.emit(f"{write}({scope.at(buffer, flat)}, {self.stored(made, scope.lanes)});")

    def put(self, place: str, stmt: Store, codes: Sequence[Code], lanes: int) -> None:
        """Write one place, of one element or of one vector."""
        self.emit(f"{place} = {self.stored(self.combined(place, stmt, codes, lanes), lanes)};")

    def combined(self, place: str, stmt: Store, codes: Sequence[Code], lanes: int) -> Code:
        """Print what a place, of one element or of one vector, holds after a store."""
        dtype = stmt.value.dtype
        if lanes > 1:
            codes = [self.scope.splat(c, c.mask or 1) for c in codes]
        if not stmt.op:
            return codes[0]
        old = Code(f"({place})", dtype, lanes)
        if dtype == "bool":
            flag = f"({place} != 0)" if lanes == 1 else f"({place} != (uchar{lanes})(0))"
            old = Code(flag, "bool", lanes, 1 if lanes > 1 else 0)
        if len(codes) == 1:
            return self.scope.apply(stmt.op, dtype, [old, codes[0]])
        function = self.scope.functions.call("mad", dtype, lanes)
        return Code(f"{function}({codes[0].text}, {codes[1].text}, {old.text})", dtype, lanes)

    def stored(self, code: Code, lanes: int) -> str:
        """Print a value as it is kept in memory."""
        if not code.mask:
            return code.text
        narrow = self.scope.splat(code, 1).text
        return f"as_uchar{lanes}({narrow}) & (uchar{lanes})(1)"

    def fold(self, place: str, stmt: Store, codes: Sequence[Code]) -> None:
        """Combine all lanes into one element, by halves: lane i with lane i + n/2."""
        scope, dtype, lanes = self.scope, stmt.value.dtype, self.scope.lanes
        code = codes[0] if len(codes) == 1 else scope.apply("mul", dtype, codes)
        if dtype == "bool":
            code = Code(self.stored(scope.splat(code, code.mask or 1), lanes), "u8", lanes)
        part = scope.temporary(scope.splat(code))
        if not stmt.op:
            self.emit(f"{place} = {part.text}.s{lanes - 1:x};")
            return
        while lanes > 1:
            lanes //= 2
            low, high = (Code(f"{part.text}.{half}", part.dtype, lanes) for half in ("lo", "hi"))
            kept, scope.lanes = scope.lanes, lanes
            part = scope.temporary(scope.apply(stmt.op, part.dtype, [low, high]))
            scope.lanes = kept
        if dtype == "bool":
            part = Code(f"({part.text} != 0)", "bool")
        self.put(place, stmt, [part], 1)

    def scatter(self, buffer: Buffer, flat: Expr, stmt: Store, codes: Sequence[Code]) -> None:
        """Write lane by lane, in order."""
        scope = self.scope
        places = scope.places(buffer, flat)
        parts = [scope.temporary(scope.splat(c, c.mask or 1)) for c in codes]
        for k, place in enumerate(places):
            one = [Code(f"({p.text}.s{k:x} != 0)" if p.mask else f"{p.text}.s{k:x}", p.dtype) for p in parts]
            if scope.guard is not None:
                self.emit(f"if ({scope.in_lane(k)})")
            self.put(place, stmt, one, 1)
