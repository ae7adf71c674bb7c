"""Expressions and memory accesses to LLVM IR, for one iteration or for the lanes of a vector loop."""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge.backends.cpu.ahead import Distances, locality
from kernelforge.backends.cpu.alignment import Halved
from kernelforge.backends.cpu.arithmetic import Arithmetic
from kernelforge.backends.cpu.host import Host
from kernelforge.backends.cpu.meanwhile import Requests
from kernelforge.backends.cpu.values import MEMORY, REGISTER, Buffer, Scope, Val, suffix, typed
from kernelforge.dtypes import DTYPES, INTEGERS
from kernelforge.ir.index import affine, bounds, conjuncts, free_vars, normalize, poly
from kernelforge.ir.interleaved import orders, windows
from kernelforge.ir.kernel import COMPARE, Const, Expr, Load, Op, Var, i64, substitute, walk
from kernelforge.ir.math import BOUNDS, Function, function
from kernelforge.ir.memo import memo
from kernelforge.ir.schedule.limits import LINE, NEAR

DUMMY = "%dummy"
"""Zeros on the stack: what a load that must not happen reads instead. Wide enough for the widest vector."""
DUMMY_BYTES = 512
NARROW = 1 << 30
"""What multiples of a lane are less than to be compared in 32 bits."""
WIDEST = 64
"""Most lanes of a vector loop that is printed as vectors; more are run as a serial loop."""


@memo
def loads(expr: Expr) -> bool:
    """Whether evaluating ``expr`` reads memory."""
    if isinstance(expr, Op):
        return any(loads(a) for a in expr.args)
    return isinstance(expr, Load)


class Exprs(Arithmetic):
    """Emits the expressions of one function."""

    def __init__(self, kernel: str, host: Host, declared: dict[str, str]) -> None:
        super().__init__(kernel, host, declared)
        self.native = host.native
        self.env: dict[str, Val] = {}
        self.buffers: dict[str, Buffer] = {}
        self.lane: Var | None = None
        self.lanes = 0
        self.mask: Val | None = None
        self.live = True  # whether at least one lane of the mask is known to be on
        self.walked: Var | None = None  # the loop along which vectors of arguments are fetched ahead
        self.distances: Distances = {}
        self.requests: list[Requests] = []
        self.halved: Halved = frozenset()

    def emit(self, e: Expr) -> Val:
        if isinstance(e, Const):
            return self.const(e.value, e.dtype)
        if isinstance(e, Var):
            return self.variable(e)
        for scope in reversed(self.scopes):
            known = scope.memo.get(e)
            if known is not None:
                return known
        v = self.load(e) if isinstance(e, Load) else self.operation(e) if isinstance(e, Op) else None
        assert v is not None
        scope = self.scopes[v.bind]
        scope.memo[e] = v
        for buffer in v.reads:
            scope.readers.setdefault(buffer, []).append(e)
        return v

    def variable(self, e: Var) -> Val:
        found = self.env.get(e.name)
        if found is None:
            raise self.refuse(f"variable {e.name!r} is not defined where it is used")
        return found

    def operation(self, e: Op) -> Val:
        if e.op == "select":
            return self.select(e)
        if e.dtype == "bool" and (e.op == "and" or e.op in COMPARE):
            known = self.decided(e)
            if known is not e:
                v = self.emit(known)
                return v._replace(bind=max(v.bind, *(self.variable(x).bind for x in free_vars(e))))
            if e.op == "and":
                return self.together(e)
            edge = self.edge(e)
            if edge is not None:
                return edge
        if e.op == "cast":
            return self.cast(self.emit(e.args[0]), e.dtype)
        if e.op == "bitcast":
            v = self.emit(e.args[0])
            if REGISTER[v.dtype] == REGISTER[e.dtype]:
                return v._replace(dtype=e.dtype)
            if "bool" in (v.dtype, e.dtype):
                return self.cast(v, e.dtype)
            return self.ins(f"bitcast {v.type} {v.ref} to {typed(REGISTER[e.dtype], v.lanes)}", e.dtype, v.lanes, v)
        if e.op in ("floordiv", "mod") and e.dtype in INTEGERS:
            n, d = e.args
            constant = int(d.value) if isinstance(d, Const) and d.value else None
            natural = e.dtype == "i64" and (bounds(n)[0] or 0) >= 0 and bounds(n)[0] is not None
            return self.divide(e.op, self.emit(n), self.emit(d), constant, natural)
        args = [self.emit(a) for a in e.args]
        of = function(e.op, e.dtype, self.native) if (e.op, e.dtype) in BOUNDS else None
        return self.apply(e.op, args) if of is None else self.called(e.op, of, args)

    def decided(self, e: Op) -> Expr:
        """Put in the numbers of unrolled iterations, which may decide a condition on indices."""
        numbers = {v: self.env[v.name].literal for v in free_vars(e) if v.dtype == "i64" and v.name in self.env}
        known: dict[Expr, Expr] = {v: i64(n) for v, n in numbers.items() if n is not None}
        return normalize(substitute(e, known)) if known else e

    def edge(self, e: Op) -> Val | None:
        """Compare indices of which the lanes have consecutive multiples: constants of 32 bits with one number, that of
        the lane at which the result changes. None where operands are something else, or the loop around does not change
        the result.
        """
        a, b = e.args
        lane = self.lane
        if lane is None or a.dtype != "i64" or lane not in free_vars(e) or None in (*bounds(a), *bounds(b)):
            return None
        apart = normalize(a - b)
        step = affine(apart, lane)
        if not step or abs(step) * self.lanes > NARROW:
            return None
        at = self.emit(normalize(substitute(-apart, {lane: i64(0)})))
        if at.lanes or at.level < max((k for k, scope in enumerate(self.scopes) if scope.kind == "loop"), default=0):
            return None
        low, high = sorted((0, step * (self.lanes - 1)))
        at = self.apply("min", [self.apply("max", [at, self.const(low - 1, "i64")]), self.const(high + 1, "i64")])
        steps = Val("<" + ", ".join(f"i32 {step * k}" for k in range(self.lanes)) + ">", "i32", self.lanes)
        return self.apply(e.op, [steps, self.cast(at, "i32")])

    def together(self, e: Op) -> Val:
        """And conditions, first those that change least often."""
        first, *others = sorted((self.emit(p) for p in conjuncts(e)), key=lambda v: v.level)
        for v in others:
            first = self.binary("and", first, v)
        return first

    def called(self, name: str, of: Function, args: list[Val]) -> Val:
        """Call a function, which stands in the module once.

        A branch wants what is rare, a vector register at a time; elsewhere as many go along as maps hold side by side.
        """
        lanes, args = self.same(*args)
        dtype, scalar = args[0].dtype, REGISTER[args[0].dtype]
        rare = any(s.kind == "branch" for s in self.scopes)
        if lanes * DTYPES[dtype].itemsize > self.host.vector_bytes * (1 if rare else self.host.side) and not lanes % 2:
            return self.joined(*(self.called(name, of, [self.half(a, k) for a in args]) for k in (0, 1)))
        symbol = f"{name}.{'' if rare else 'usual.'}{suffix(scalar, lanes)}"
        if symbol not in self.declared:
            inner = Exprs(self.kernel, self.host, self.declared)
            takes = inner.takes(of, lanes)
            lines = inner.anywhere(of) if rare or of.usual is None else inner.usual(name, of, of.usual)
            head = f"define internal {typed(scalar, lanes)} @{symbol}({takes}) noinline memory(none) #0 {{"
            self.declared[symbol] = "\n".join((head, *lines, "}"))
        passed = ", ".join(f"{a.type} {a.ref}" for a in args)
        return self.ins(f"call {typed(scalar, lanes)} @{symbol}({passed}){' cold' * rare}", dtype, lanes, *args)

    def takes(self, of: Function, lanes: int) -> str:
        """Begin to print a function for so many lanes; return its parameters."""
        self.env = {x.name: Val(f"%{x.name}", x.dtype, lanes) for x in of.arguments}
        return ", ".join(f"{v.type} {v.ref}" for v in self.env.values())

    def anywhere(self, of: Function) -> list[str]:
        """Print what computes a function of any arguments."""
        result = self.operands_first(of.value)
        return [*self.scopes[0].lines, f"ret {result.type} {result.ref}"]

    def usual(self, name: str, of: Function, usual: Expr) -> list[str]:
        """Print what computes a function by ``usual`` where no lane is rare."""
        result, rare = self.operands_first(usual), self.operands_first(of.rare)
        some = self.any_lane(rare)
        test = f"br i1 {some.ref}, label %rare, label %usual"
        self.scopes.append(Scope(None, "branch"))
        exact = self.called(name, of, list(self.env.values()))
        chosen = self.choose(rare, exact, result)
        first, second = (s.lines for s in self.scopes)
        ends = [f"ret {v.type} {v.ref}" for v in (result, chosen)]
        return [*first, test, "usual:", ends[0], "rare:", *second, ends[1]]

    def operands_first(self, e: Expr) -> Val:
        """Emit an expression of any depth."""
        return [self.emit(x) for x in walk(e)][-1]

    def select(self, e: Op) -> Val:
        cond = self.emit(e.args[0])
        if cond.ref in ("true", "false"):
            v = self.emit(e.args[1 if cond.ref == "true" else 2])
            return v._replace(bind=max(v.bind, cond.bind))
        arms = []
        for arm, taken in ((e.args[1], True), (e.args[2], False)):
            if loads(arm):
                arms.append(self.arm(arm, cond if taken else self.binary("xor", cond, self.const(1, "bool"))))
            else:
                arms.append(self.emit(arm))
        return self.choose(cond, arms[0], arms[1])

    def arm(self, e: Expr, cond: Val) -> Val:
        """Evaluate ``e`` with its loads done only in the lanes where ``cond`` holds."""
        before = self.mask, self.live
        self.mask, self.live = self.narrow(cond), False
        scope = Scope(set())
        self.scopes.append(scope)
        depth = len(self.scopes) - 1
        self.mask = self.mask._replace(bind=depth)
        v = self.emit(e)
        self.scopes.pop()
        self.put_all(scope)
        self.mask, self.live = before
        outer = depth - 1
        return v._replace(level=min(v.level, outer), bind=min(v.bind, outer))

    def narrow(self, cond: Val) -> Val:
        """And a condition to the mask in force."""
        return cond if self.mask is None else self.binary("and", self.mask, cond)

    def any_lane(self, mask: Val) -> Val:
        if not mask.lanes:
            return mask
        bits = self.ins(f"bitcast <{mask.lanes} x i1> {mask.ref} to i{mask.lanes}", "bool", 0, mask)
        return self.ins(f"icmp ne i{mask.lanes} {bits.ref}, 0", "bool", 0, bits)

    # Memory

    def address(self, name: str, index: tuple[Expr, ...]) -> tuple[Val, int | None]:
        """Return where an element is, and how many elements further that of the next lane is.

        None stands for no fixed distance; the address then is a vector of pointers.
        """
        buffer = self.buffers.get(name)
        if buffer is None or len(index) != len(buffer.strides):
            raise self.refuse(f"buffer {name!r} is not defined with {len(index)} indices where it is used")
        lane, step = self.lane, 0
        terms: dict[int, list[Val]] = {}
        fixed = bind = 0
        for i, stride in zip(index, buffer.strides, strict=True):
            if lane is not None and lane in free_vars(i):
                c = affine(i, lane)
                if c is None:
                    return self.scattered(buffer, index), None
                step += c * stride
            for mono, c in poly(i).items():
                if mono == (lane,):
                    continue
                term = self.const(c * stride, "i64")
                for atom in mono:
                    v = self.emit(atom)
                    if v.lanes:
                        return self.scattered(buffer, index), None
                    term = self.index_op("mul", v, term)
                bind = max(bind, term.bind)
                if term.literal is not None:
                    fixed += term.literal
                else:
                    terms.setdefault(term.level, []).append(term)
        scalar = MEMORY[buffer.dtype]
        pointer = Val(buffer.ptr, "ptr")
        for level in sorted(terms):
            offset = terms[level][0]
            for term in terms[level][1:]:
                offset = self.index_op("add", offset, term)
            pointer = self.ins(
                f"getelementptr {scalar}, ptr {pointer.ref}, i64 {offset.ref}", "ptr", 0, pointer, offset
            )
        if fixed:
            pointer = self.ins(f"getelementptr {scalar}, ptr {pointer.ref}, i64 {fixed}", "ptr", 0, pointer)
        if buffer.private:
            step += 1
        return pointer._replace(bind=max(pointer.bind, bind)), step

    def scattered(self, buffer: Buffer, index: tuple[Expr, ...]) -> Val:
        """Return a vector of the addresses of each lane's element."""
        total: Expr = i64(0)
        for i, stride in zip(index, buffer.strides, strict=True):
            total = total + i * stride
        offset = self.splat(self.emit(total), self.lanes)
        if buffer.private:
            lane = Val("<" + ", ".join(f"i64 {k}" for k in range(self.lanes)) + ">", "i64", self.lanes)
            offset = self.binary("add", offset, lane)
        base = Val(buffer.ptr, "ptr")
        rhs = f"getelementptr {MEMORY[buffer.dtype]}, ptr {base.ref}, {offset.type} {offset.ref}"
        return self.ins(rhs, "ptr", self.lanes, base, offset)

    def read(self, buffer: str, rhs: str, kind: str, lanes: int, *operands: Val) -> Val:
        """Write a load as far out as its operands and the stores before it allow."""
        least = max(o.level for o in operands)
        level = len(self.scopes) - 1
        while level > least:
            fixed = self.scopes[level].fixed
            if fixed is None or buffer in fixed:
                break
            level -= 1
        scope = self.scopes[level]
        known = scope.loaded.setdefault(buffer, {})
        ref = known.get(rhs)
        if ref is None:
            ref = known[rhs] = self.fresh()
            scope.lines.append(f"{ref} = {rhs}")
        bind = max(level, *(o.bind for o in operands))
        reads = frozenset((buffer,)).union(*(o.reads for o in operands))
        return Val(ref, kind, lanes, level, bind, reads)

    def load(self, e: Load) -> Val:
        pointer, step = self.address(e.buffer, e.index)
        buffer = self.buffers[e.buffer]
        whole = self.whole(buffer, e.index, step)
        if self.walked is not None and step == 1 and buffer.shape is None:
            ahead = self.distances.get((self.walked, e.buffer), 0)
            for line in range(0, self.lanes * DTYPES[e.dtype].itemsize if ahead else 0, LINE):
                self.fetch(pointer, ahead + line)
        v = self.load_at(e.buffer, pointer, step, None if whole else self.mask)
        if buffer.shape is not None and v.dtype in INTEGERS and not v.lanes:
            # hides what a loop has reduced from loop strength reduction, which aborts where addresses are made of it
            return self.call("expect", v.dtype, v, self.const(0, v.dtype))
        return v

    def fetch(self, pointer: Val, ahead: int) -> None:
        """Ask for the line that lies so many bytes further; it need not exist."""
        scope = self.scopes[pointer.level]
        if scope.values.setdefault(f"fetch {pointer.ref} {ahead}", pointer.ref) == pointer.ref:
            there = self.ins(f"getelementptr i8, ptr {pointer.ref}, i64 {ahead}", "ptr", 0, pointer)
            self.declare("llvm.prefetch.p0", "void", "ptr, i32, i32, i32")
            near = locality(self.host.cache_bytes[0])
            scope.lines.append(f"call void @llvm.prefetch.p0(ptr {there.ref}, i32 0, i32 {near}, i32 1)")
            scope.values[f"fetch {pointer.ref} {ahead}"] = "done"

    def whole(self, buffer: Buffer, index: tuple[Expr, ...], step: int | None) -> bool:
        """Whether the elements of all lanes may be touched, also of those that a mask turns off.

        So masks stay away from buffers that should become registers.
        """
        if buffer.shape is None or step not in (0, 1):
            return False
        ranges = [bounds(i) for i in index]
        if all(lo is not None and lo >= 0 for lo, _ in ranges) and self.live:
            return True
        return all(
            lo is not None and lo >= 0 and hi is not None and hi < n
            for (lo, hi), n in zip(ranges, buffer.shape, strict=True)
        )

    def load_at(self, name: str, pointer: Val, step: int | None, mask: Val | None) -> Val:
        buffer, lanes = self.buffers[name], self.lanes
        dtype, scalar, align = buffer.dtype, MEMORY[buffer.dtype], DTYPES[buffer.dtype].itemsize
        extra = () if mask is None else (mask,)
        if step is not None and -NEAR <= step < -1:
            on = None if mask is None else self.reversed(self.splat(mask, lanes))
            return self.reversed(self.load_at(name, self.ahead(pointer, step * (lanes - 1), scalar), -step, on))
        if step is not None and 1 < step <= NEAR:
            near = windows(step, lanes)
            rows = []
            for first, places in near:
                on = None if mask is None else self.spread(self.splat(mask, lanes), places)
                rows.append(self.load_at(name, self.ahead(pointer, first, scalar), 1, on))
            return self.picked(rows, [(r, j) for r, (_, places) in enumerate(near) for j in places])
        if step is None or (step not in (0, 1, -1)):
            ptrs = pointer if step is None else self.lane_pointers(pointer, step, scalar)
            on = self.splat(mask or self.const(True, "bool"), lanes)
            vector = typed(scalar, lanes)
            fn = f"llvm.masked.gather.{suffix(scalar, lanes)}.{suffix('ptr', lanes)}"
            self.declare(fn, vector, f"<{lanes} x ptr>, i32, <{lanes} x i1>, {vector}")
            given = f"<{lanes} x ptr> {ptrs.ref}, i32 {align}, <{lanes} x i1> {on.ref}, {vector} zeroinitializer"
            rhs = f"call {vector} @{fn}({given})"
            return self.loaded(self.read(name, rhs, dtype, lanes, ptrs, on, *extra))
        wide = lanes if step else 0
        kind = typed(scalar, wide)
        if step == -1:
            pointer = self.ins(f"getelementptr {scalar}, ptr {pointer.ref}, i64 {1 - lanes}", "ptr", 0, pointer)
        if mask is not None and mask.lanes and wide:
            on = self.reversed(mask) if step == -1 else mask
            fn = f"llvm.masked.load.{suffix(scalar, lanes)}.p0"
            self.declare(fn, kind, f"ptr, i32, <{lanes} x i1>, {kind}")
            rhs = f"call {kind} @{fn}(ptr {pointer.ref}, i32 {align}, <{lanes} x i1> {on.ref}, {kind} zeroinitializer)"
            v = self.loaded(self.read(name, rhs, dtype, wide, pointer, on, *extra))
        else:
            if mask is not None and not (self.live and mask.lanes):
                some = self.any_lane(mask)
                pointer = self.ins(f"select i1 {some.ref}, ptr {pointer.ref}, ptr {DUMMY}", "ptr", 0, pointer, some)
            whole = wide * DTYPES[dtype].itemsize == LINE and mask is None
            if whole and self.walked is not None and (self.walked, name) in self.halved:
                v = self.joined(*(self.half_at(name, pointer, k) for k in (0, 1)))
            else:
                rhs = f"load {kind}, ptr {pointer.ref}, align {align}"
                v = self.loaded(self.read(name, rhs, dtype, wide, pointer, *extra))
        return self.reversed(v) if step == -1 else v

    def half_at(self, name: str, pointer: Val, k: int) -> Val:
        """Read one half of a vector; what is not volatile LLVM would read at once with the other."""
        dtype, lanes = self.buffers[name].dtype, self.lanes // 2
        at = self.ahead(pointer, k * lanes, MEMORY[dtype])
        kind, align = typed(MEMORY[dtype], lanes), DTYPES[dtype].itemsize
        return self.loaded(self.read(name, f"load volatile {kind}, ptr {at.ref}, align {align}", dtype, lanes, at))

    def ahead(self, pointer: Val, count: int, scalar: str) -> Val:
        """Return the address ``count`` elements further."""
        if not count:
            return pointer
        return self.ins(f"getelementptr {scalar}, ptr {pointer.ref}, i64 {count}", "ptr", 0, pointer)

    def spread(self, v: Val, places: dict[int, int]) -> Val:
        """Return a vector with lanes of ``v`` at the given places, and zeros between."""
        order = ", ".join(f"i32 {places.get(j, v.lanes)}" for j in range(v.lanes))
        rhs = f"shufflevector {v.type} {v.ref}, {v.type} zeroinitializer, <{v.lanes} x i32> <{order}>"
        return self.ins(rhs, v.dtype, v.lanes, v)

    def picked(self, rows: Sequence[Val], places: Sequence[tuple[int, int]]) -> Val:
        """Return the vector of the elements at ``places``, each a row and a lane."""
        made, lanes = rows[0], rows[0].lanes
        for r, order in enumerate(orders(len(rows), lanes, places), min(1, len(rows) - 1)):
            listed = ", ".join("i32 poison" if k is None else f"i32 {k}" for k in order)
            rhs = f"shufflevector {made.type} {made.ref}, {made.type} {rows[r].ref}, <{lanes} x i32> <{listed}>"
            made = self.ins(rhs, made.dtype, lanes, made, rows[r])
        return made

    def loaded(self, v: Val) -> Val:
        """Turn what is in memory into a value: a bool's byte into a bit."""
        if v.dtype != "bool":
            return v
        return self.ins(
            f"icmp ne {typed('i8', v.lanes)} {v.ref}, {'zeroinitializer' if v.lanes else 0}", "bool", v.lanes, v
        )

    def lane_pointers(self, pointer: Val, step: int, scalar: str) -> Val:
        offsets = "<" + ", ".join(f"i64 {k * step}" for k in range(self.lanes)) + ">"
        return self.ins(
            f"getelementptr {scalar}, ptr {pointer.ref}, <{self.lanes} x i64> {offsets}", "ptr", self.lanes, pointer
        )
