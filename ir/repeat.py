"""Control flow as one kernel, where a launch may repeat phases: scans, while loops and branches.

A step of a loop reads the state that the step before it left in one half of a buffer, and leaves its own in the other
half. A branch is a loop of one iteration or none.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import cast

from kernelforge.ir.accesses import Index, redirected
from kernelforge.ir.applied import Applied
from kernelforge.ir.cost import COSTLY
from kernelforge.ir.graph import Graph, Node, Value
from kernelforge.ir.index import affine, free_vars, normalize
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Const,
    Expr,
    For,
    Kernel,
    Let,
    Load,
    Mode,
    Op,
    Stmt,
    Store,
    Var,
    i64,
    map_exprs,
    select,
    stmts,
    substitute,
    walk,
)
from kernelforge.ir.nest import nest
from kernelforge.ir.schedule.limits import LINE, SHORTEST
from kernelforge.ir.schedule.nests import loads, perfect, size
from kernelforge.ir.types import Type

FEW = 64
"""Elements from which on those that fill no vector are little beside the others."""

FOREVER = 1 << 62
"""Iterations of a loop that goes on."""

Place = tuple[str, Expr]
"""A buffer, and the element of it at which a value begins."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A graph, as its kernels compute it in order."""

    graph: Graph
    kernels: Sequence[Applied]


def repeats(stmt: Stmt) -> bool:
    """Whether a statement at the top of a kernel runs phases, or what repeats them, in each of its iterations."""
    if not isinstance(stmt, For) or stmt.kind != "serial" or not stmt.body:
        return False
    return all(isinstance(s, For) and (s.kind in ("parallel", "grid") or repeats(s)) for s in stmt.body)


def repeated(node: Node, pieces: Mapping[str, Piece]) -> Applied:
    """Make one kernel of a scan, a while loop or a branch; its arguments are the inputs of ``node``, its outputs, then
    scratch.

    Args:
        pieces: the graphs among the node's parameters, by their names; of a loop also ``copy``, which makes a carry of
            a carry.
    """
    made = _MAKERS[node.prim.name](pieces)
    body = made.body(node)
    args = (dataclasses.replace(a, dtype=made.held.get(a.name, a.dtype)) for a in made.args)
    modes = ["in"] * len(node.inputs) + ["out"] * len(node.outputs)
    modes += ["scratch"] * (len(made.args) - len(modes))
    assert [a.mode for a in made.args] == modes
    return Applied(Kernel(node.prim.name, tuple(args), (), tuple(body)), [*node.inputs, *node.outputs])


def stepped(node: Node, piece: Piece) -> Applied | None:
    """Make one map of a scan whose step is one: each element goes through all steps by itself, its state in registers.

    Returns:
        None where a step is more than a map, or reads the state of other elements.
    """
    made = _Stepped({"body": piece})
    body = made.body(node)
    values = [*node.inputs, *node.outputs]
    return Applied(Kernel(node.prim.name, tuple(made.args), (), tuple(body)), values) if body else None


class _Made:
    """The kernel that is being made: its arguments, and the loops that it gets."""

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        self.args: list[Arg] = []
        self.held: dict[str, str] = {}  # as what kernels hold their buffers: narrow floats may be bits
        self.pieces = pieces
        # loops that stand in each other have names of their own
        inside = (s for p in pieces.values() for k in p.kernels for s in stmts(k.kernel.body))
        taken = {s.var.name for s in inside if isinstance(s, For)}
        self.number = next(n for n in itertools.count() if taken.isdisjoint((f"turn{n}", f"once{n}")))

    def body(self, node: Node) -> list[Stmt]:
        """Make the arguments, those of the node before any scratch, and the statements."""
        raise NotImplementedError

    def argument(self, name: str, dtype: str, size: Expr, mode: Mode) -> str:
        found = f"{name}_{len(self.args)}"
        self.args.append(Arg(found, dtype, size, mode))
        return found

    def whole(self, name: str, mode: Mode, kind: Type) -> Place:
        return self.argument(name, kind.name, i64(kind.size), mode), i64(0)

    def wholes(self, name: str, mode: Mode, values: Sequence[Value]) -> list[Place]:
        return [self.whole(name, mode, v.type) for v in values]

    def rows(self, name: str, mode: Mode, values: Sequence[Value], row: Expr, count: int) -> list[Place]:
        """Make arguments that have a value for each of ``count`` steps."""
        return [(self.argument(name, v.type.name, i64(count * v.type.size), mode), row * v.type.size) for v in values]

    def run(self, name: str, inputs: Sequence[Place], outputs: Sequence[Place]) -> list[Stmt]:
        """Return the statements of a piece; what is neither its input nor its output is scratch."""
        piece = self.pieces[name]
        places = dict(zip((*piece.graph.inputs, *piece.graph.outputs), (*inputs, *outputs), strict=True))
        out: list[Stmt] = []
        for made in piece.kernels:
            for value in made.values:
                if value not in places:
                    places[value] = self.whole("between", "scratch", value.type)
            where: dict[str, Place] = {}
            for arg, value in zip(made.kernel.args, made.values, strict=False):
                buffer, offset = places[value]
                where[arg.name] = buffer, offset + made.starts.get(arg.name, 0)
                self.held[buffer] = arg.dtype
            for arg in made.kernel.args[len(made.values) :]:
                where[arg.name] = self.argument("part", arg.dtype, arg.size, "scratch"), i64(0)
            out += redirected(made.kernel.body, where, lambda b, index: _at(where[b], index))  # noqa: B023 - runs at once
        return out

    def flag(self, name: str, value: bool) -> tuple[str, Stmt]:
        """Make a bool of the kernel's own; return it with the statement that sets it at first."""
        flag = self.argument(name, "bool", i64(1), "scratch")
        return flag, _stored(flag, Const(value, "bool"))

    def once(self, flag: str, wanted: bool, body: Sequence[Stmt]) -> list[Stmt]:
        """Run statements if a flag is as ``wanted``."""
        extent = select(Load(flag, (i64(0),), "bool"), i64(wanted), i64(not wanted))
        return [For(Var(f"once{self.number}", "i64", 1), extent, "serial", tuple(body))] if body else []


class _Loop(_Made):
    def turn(self, bound: int | None) -> Var:
        return Var(f"turn{self.number}", "i64", bound)

    def state(self, values: Sequence[Value]) -> None:
        sizes = [-(-v.type.nbytes // LINE) * LINE // v.type.dtype.itemsize for v in values]
        self.kept = [
            (self.argument("kept", v.type.name, i64(2 * n), "scratch"), n) for v, n in zip(values, sizes, strict=True)
        ]

    def half(self, which: Expr) -> list[Place]:
        """Return where the state is, in the first (0) or the second half (1) of its buffers."""
        return [(buffer, which * size) for buffer, size in self.kept]


class _Scan(_Loop):
    def body(self, node: Node) -> list[Stmt]:
        graph, p = self.pieces["body"].graph, node.params
        consts, carry, length = p["consts"], p["carry"], p["length"]
        turn = self.turn(max(length, 1))
        row = i64(length - 1) - turn if p["reverse"] else turn
        given = self.wholes("given", "in", graph.inputs[:consts])
        first = self.wholes("first", "in", graph.inputs[consts : consts + carry])
        rows = self.rows("row", "in", graph.inputs[consts + carry :], row, length)
        last = self.wholes("last", "out", graph.outputs[:carry])
        results = self.rows("made", "out", graph.outputs[carry:], row, length)
        self.state(graph.outputs[:carry])
        step = self.run("body", [*given, *self.half(turn % 2), *rows], [*self.half((turn + 1) % 2), *results])
        return [
            *self.run("copy", first, self.half(i64(0))),
            For(turn, i64(length), "serial", tuple(step)),
            *self.run("copy", self.half(i64(length % 2)), last),
        ]


class _Stepped(_Made):
    def body(self, node: Node) -> list[Stmt]:
        """Make the arguments and the nests, nothing where a step is not of one element.

        States of one element, as a time that all others read, go along with each of these, and once more by themselves.
        """
        graph, p = self.pieces["body"].graph, node.params
        consts, carry, length = p["consts"], p["carry"], p["length"]
        states, outputs = graph.inputs[consts : consts + carry], graph.outputs
        found = _element(self.pieces["body"])
        if found is None or len({*outputs}) < len(outputs):
            return []
        loops, step = found
        if not _worth(loops, [s for _, s in step]):
            return []
        stored = {s.buffer: s.index[0] for _, s in step if isinstance(s, Store)}
        if any(_name(v) not in stored for v in outputs) or any(v.type.size not in (1, size(loops)) for v in outputs):
            return []
        places = [stored[_name(v)] for v in outputs]
        own = {**dict(zip(map(_name, states), places, strict=False)), **stored}
        if any(e.index[0] != own[e.buffer] for e in loads([s for _, s in step]) if e.buffer in own):
            return []
        turn = Var("turn", "i64", length)
        row = i64(length - 1) - turn if p["reverse"] else turn
        given = self.wholes("given", "in", graph.inputs[:consts])
        first = self.wholes("first", "in", states)
        rows = self.rows("row", "in", graph.inputs[consts + carry :], row, length)
        last = self.wholes("last", "out", outputs[:carry])
        results = self.rows("made", "out", outputs[carry:], row, length)
        read = zip((*graph.inputs[:consts], *graph.inputs[consts + carry :]), (*given, *rows), strict=True)
        where = {_name(v): place for v, place in read}
        held = {_name(v): f"state{k}" for k, v in enumerate(states)}

        def moved(buffer: str, index: Index) -> tuple[str, Index]:
            return (held[buffer], ()) if buffer in held else _at(where[buffer], index)

        inner = [
            (n, s) for (n, _), s in zip(step, redirected([s for _, s in step], {*held, *where}, moved), strict=True)
        ]

        def walked(mine: Collection[int], made: Collection[int]) -> list[Stmt]:
            """Go through the steps with the states that are ``mine``, storing those outputs that are ``made``."""
            out: list[Stmt] = []
            for n, s in inner:
                if n in mine:
                    out.append(Let(s.buffer, s.value) if isinstance(s, Store) else s)
            types = [v.type.name for v in outputs]
            kept = [k for k in range(carry) if outputs[k].type.size in mine]
            for k in range(carry, len(outputs)):
                if outputs[k].type.size in made:
                    buffer, index = _at(results[k - carry], (places[k],))
                    out.append(Store(buffer, index, Var(_name(outputs[k]), types[k])))
            out += [Store(f"state{k}", (), Var(_name(outputs[k]), types[k])) for k in kept]
            return [
                *(Alloc(f"state{k}", types[k], (), "register") for k in kept),
                *(Store(f"state{k}", (), Load(first[k][0], (places[k],), types[k])) for k in kept),
                For(turn, i64(length), "serial", tuple(out)),
                *(
                    Store(last[k][0], (places[k],), Load(f"state{k}", (), types[k]))
                    for k in kept
                    if outputs[k].type.size in made
                ),
            ]

        whole = size(loops)
        one = whole > 1 and any(v.type.size == 1 for v in outputs)
        nests = [*nest([s.var for s in loops] or [Var("i", "i64", 1)], "parallel", walked({1, whole}, {whole}))]
        return nests + [*nest([Var("j", "i64", 1)], "parallel", walked({1}, {1}))] * one


def _name(value: Value) -> str:
    return f"v{value.id}"


def _element(piece: Piece) -> tuple[list[For], list[tuple[int, Stmt]]] | None:
    """Return the loops over the elements that a graph of maps makes, and what stands in them: each statement with how
    many elements it is of, all or one. Buffers are named by their values, and what is stored is loaded by its name.
    """
    nests: list[tuple[list[For], list[Stmt]]] = []
    for made in piece.kernels:
        values = dict(zip((a.name for a in made.kernel.args), made.values, strict=False))
        if len(values) < len(made.kernel.args):
            return None
        for top in made.kernel.body:
            loops, body = perfect(cast("For", top))
            if not all(isinstance(s, Let) or (isinstance(s, Store) and not s.op) for s in body):
                return None
            renamed: dict[Expr, Expr] = {s.var: i64(0) for s in loops if s.static == 1}
            for s in body:
                if isinstance(s, Let):
                    renamed[Var(s.name, s.value.dtype)] = Var(f"{s.name}_{len(nests)}", s.value.dtype)
            named = redirected(
                body,
                values,
                lambda b, index: (_name(values[b]), (index[0] + made.starts.get(b, 0),)),  # noqa: B023
            )
            nests.append(([s for s in loops if s.static != 1], [_renamed(s, renamed) for s in named]))
    loops = max((loops for loops, _ in nests), key=size, default=[])
    out: list[tuple[int, Stmt]] = []
    stored: dict[Expr, Expr] = {}
    for mine, held in nests:
        if mine and [s.static for s in mine] != [s.static for s in loops]:
            return None
        same: dict[Expr, Expr] = {a.var: b.var for a, b in zip(mine, loops, strict=False)}
        for each in held:
            s = map_exprs(_renamed(each, same), lambda e: substitute(e, stored))
            out.append((size(mine), s))
            if isinstance(s, Store):
                stored[Load(s.buffer, s.index, s.value.dtype)] = Var(s.buffer, s.value.dtype)
    return loops, out


def _worth(loops: Sequence[For], step: Sequence[Stmt]) -> bool:
    """Whether elements that go through all steps by themselves are quicker than steps that go through all elements.

    Not where they would be walked a row apart, where lanes would each make anew what is dear and is not of an element
    alone, or where what no vector takes is one element after the other through all steps.
    """
    if not loops:
        return True
    if size(loops) < FEW and size(loops) % SHORTEST:
        return False
    own: set[Var] = {loops[-1].var}
    for s in step:
        assert isinstance(s, Let | Store)
        for e in walk(s.value):
            if isinstance(e, Op) and e.op in COSTLY and own.isdisjoint(free_vars(e)):
                return False
            if isinstance(e, Load) and affine(e.index[0], loops[-1].var) not in (0, 1, -1):
                return False
        if not own.isdisjoint(free_vars(s.value)):
            own.add(Var(s.name if isinstance(s, Let) else s.buffer, s.value.dtype))
    return True


def _renamed(s: Stmt, names: dict[Expr, Expr]) -> Stmt:
    """Replace variables, and the name that a statement gives."""
    s = map_exprs(s, lambda e: normalize(substitute(e, names)))
    new = names.get(Var(s.name, s.value.dtype)) if isinstance(s, Let) else None
    return Let(new.name, s.value) if isinstance(s, Let) and isinstance(new, Var) else s


class _While(_Loop):
    def body(self, node: Node) -> list[Stmt]:
        graph, p = self.pieces["body"].graph, node.params
        turn = self.turn(None)
        tested = self.wholes("given", "in", self.pieces["cond"].graph.inputs[: p["cond_consts"]])
        given = self.wholes("given", "in", graph.inputs[: p["body_consts"]])
        first = self.wholes("first", "in", graph.outputs)
        last = self.wholes("last", "out", graph.outputs)
        self.state(graph.outputs)
        on, start = self.flag("on", True)
        odd, even = self.flag("odd", False)
        test = self.run("cond", [*tested, *self.half(turn % 2)], [(on, i64(0))])
        step = self.run("body", [*given, *self.half(turn % 2)], self.half((turn + 1) % 2))
        step.append(_stored(odd, (turn % 2).eq(0)))
        extent = select(Load(on, (i64(0),), "bool"), i64(FOREVER), i64(0))
        return [
            start,
            even,
            *self.run("copy", first, self.half(i64(0))),
            For(turn, extent, "serial", (*test, *self.once(on, True, step))),
            *self.once(odd, False, self.run("copy", self.half(i64(0)), last)),
            *self.once(odd, True, self.run("copy", self.half(i64(1)), last)),
        ]


class _Cond(_Made):
    def body(self, node: Node) -> list[Stmt]:
        flag, *given = self.wholes("given", "in", node.inputs)
        outputs = self.wholes("made", "out", node.outputs)
        return [
            *self.once(flag[0], True, self.run("true", given, outputs)),
            *self.once(flag[0], False, self.run("false", given, outputs)),
        ]


_MAKERS: dict[str, type[_Made]] = {"scan": _Scan, "while_loop": _While, "cond": _Cond}


def _stored(flag: str, value: Expr) -> Stmt:
    """Store one element, as a phase."""
    return For(Var("i", "i64", 1), i64(1), "parallel", (Store(flag, (i64(0),), value),))


def _at(place: Place, index: Index) -> tuple[str, Index]:
    buffer, offset = place
    return buffer, (normalize(offset + index[0]),)
