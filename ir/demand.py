"""Which elements of a part's values are wanted where, found by asking the primitives' ``lower`` rules."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from kernelforge.dtypes import FLOATS, NARROW_FLOATS, UNSIGNED
from kernelforge.ir.cost import COSTLY, RECOMPUTE
from kernelforge.ir.graph import At, Kind, Node, Reduction, Value
from kernelforge.ir.index import bounds, flatten, normalize
from kernelforge.ir.kernel import Const, Expr, Let, Load, Op, Stmt, Var, op, select
from kernelforge.ir.memo import memo
from kernelforge.ir.types import row_major

REDUCTIONS = frozenset({Kind.REDUCE, Kind.CONTRACT, Kind.CUMULATE})


DEEP = 16
"""Maps that follow each other in one expression at most."""

BESIDE = 24
"""The same beside a contraction, whose kernel ends there: an activation's derivative has more than ``DEEP``, and what
it would read in place of the products takes more memory than they do."""

DRAWS = 3
"""Random bits in one expression whose keys are made of each other, at most: each is some hundred operations."""

STEPS = 48
"""Values that wait for each other's elements at most."""


class Refused(Exception):
    """Why a set of nodes is not one nest, in words for ``explain``."""


Chains = Literal["", "rows", "blocks"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A set of nodes to be computed by one nest.

    Attributes:
        nodes: in graph order, views included; those not reached from ``outputs`` are ignored.
        outputs: the values to be stored.
        columns: whether reductions over leading axes may be made by blocks of rows, beside what else walks the rows.
        chains: whether reductions and contractions may read each other's results row by row, holding whole ``rows`` or
            ``blocks`` of their columns; see ``ir.chains`` and ``ir.walks``.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    columns: bool = False
    chains: Chains = ""


def computes(node: Node) -> bool:
    """Whether a node does work for each element; a view of several values chooses among them."""
    return node.prim.kind is not Kind.VIEW or len(node.inputs) > 1


class Lowering:
    """The state of lowering one part.

    Which elements are read is all that a ``trial`` asks: it makes no expressions of floats, for all of which one
    stands, and is of no use once it is refused. With ``tf32``, contractions of f32 round their factors to it.
    """

    def __init__(
        self, part: Part, strides: dict[Value, tuple[int, ...]], prefix: str, trial: bool, tf32: bool = False
    ) -> None:
        self.part = part
        self.trial = trial
        self.tf32 = tf32
        self.strides = strides
        self.prefix = prefix
        self.producer = {v: n for n in part.nodes for v in n.outputs}
        self.order = {n: k for k, n in enumerate(part.nodes)}
        self.inputs: dict[Value, str] = {}
        self.memo: dict[tuple[Value, tuple[Expr, ...]], Expr] = {}
        self.reads: dict[Node, list[Expr]] = {}
        self.held: dict[Value, tuple[str, tuple[Expr | None, ...], str]] = {}
        self.numbers: dict[Value, int] = {}
        self.named = 0
        self.waiting = 0
        self.prepared: tuple[Expr, ...] | None = None  # the index at which what maps ask for was looked through
        self.evaluations = 0
        self.costly = 0
        self.budget = RECOMPUTE * sum(map(computes, part.nodes)) + 24 if trial else math.inf
        self.deep = False
        self.steps = self._steps()
        self.lets: list[Stmt] | None = None
        self.costly_budget = RECOMPUTE * sum(n.prim.name in COSTLY for n in part.nodes) + 3 if trial else math.inf

    def at(self, value: Value, index: tuple[Expr, ...]) -> Expr:
        """Return the element of ``value`` at ``index``, which is in normal form."""
        key = (value, index)
        found = self.memo.get(key)
        if found is not None:
            return found
        if self.deep and self.prepared != index:
            for node in self._before(value, index):
                self.memo[node.output, index] = self._named(self._at(node.output, index), node.output.type.shape, index)
            found = self.memo.get(key)
        if found is None:
            found = self.memo[key] = self._at(value, index)
        return found

    def _steps(self) -> dict[Value, int]:
        """Number the maps that follow each other, through views too; each that ends as many as may, or ``DRAWS`` keys
        that are made of each other, counts as none.
        """
        steps: dict[Value, int] = {}
        drawn: dict[Value, int] = {}
        products = any(n.prim.kind is Kind.CONTRACT for n in self.part.nodes)  # which are not scheduled around names
        most = BESIDE if products else DEEP
        for node in self.part.nodes:
            kind = node.prim.kind
            if (kind is Kind.MAP or kind is Kind.VIEW) and node.inputs:
                out = node.output
                steps[out] = max([steps.get(v, 0) for v in node.inputs])
                drawn[out] = max([drawn.get(v, 0) for v in node.inputs])
                if kind is Kind.MAP:
                    steps[out] = (steps[out] + 1) % most
                if node.prim.name == "random_bits":
                    drawn[out] += 1
                    if drawn[out] % DRAWS == 0 and not products:
                        steps[out] = 0
                self.deep |= kind is Kind.MAP and not steps[out]
        return steps

    def _before(self, value: Value, index: tuple[Expr, ...]) -> list[Node]:
        """Return the maps behind ``value`` that end as many as may follow each other, first to last: none of them,
        asked for in this order, asks for many others at once.
        """
        ends: dict[int, Node] = {}
        seen, stack = {value}, [value]
        while stack:
            found = stack.pop()
            node = self.producer.get(found)
            if node is not None and node.prim.kind is Kind.MAP and (found, index) not in self.memo:
                if not self.steps.get(found, 1):
                    ends[self.order[node]] = node
                new = [v for v in node.inputs if v not in seen]
                seen.update(new)
                stack += new
        return [ends[k] for k in sorted(ends)]

    def _named(self, element: Expr, shape: tuple[int, ...], index: tuple[Expr, ...]) -> Expr:
        self.named += 1
        if self.lets is None or isinstance(element, Const | Load):
            return element
        for i, n in zip(index, shape, strict=True):  # a view's condition stands around the name alone
            low, high = bounds(i)
            if low is None or low < 0:
                element = select(i >= 0, element, Const(0, element.dtype))
            if high is None or high >= n:
                element = select(i < n, element, Const(0, element.dtype))
        let = Let(f"{self.prefix}v{self.named}", element)
        self.lets.append(let)
        return Var(let.name, element.dtype)

    def unnamed(self) -> None:
        """Refuse expressions that need names: products are not scheduled around them."""
        if self.named:
            raise Refused(f"more than {BESIDE} maps follow each other beside a contraction")

    @contextlib.contextmanager
    def scope(self) -> Iterator[list[Stmt]]:
        """Collect the names of parts of long expressions, and whatever else is appended, for the body of a loop."""
        outer, known, named = self.lets, len(self.memo), self.named
        body: list[Stmt] = []
        self.lets = body
        yield body
        self.lets = outer
        if self.named > named:
            for key in list(self.memo)[known:]:
                del self.memo[key]

    def within(self, value: Value, index: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """Return where the element at ``index`` of a held value is in the buffer of the row.

        Raises:
            Refused: where it is not of the current row.
        """
        _, rows, _ = self.held[value]
        if any(r is not None and i is not r for i, r in zip(index, rows, strict=True)):
            raise Refused("a reduction needs results of another one from several rows")
        own = [(i, n) for i, n, r in zip(index, value.type.shape, rows, strict=True) if r is None]
        return (flatten(tuple(i for i, _ in own), row_major(tuple(n for _, n in own))),) if own else ()

    def _at(self, value: Value, index: tuple[Expr, ...]) -> Expr:
        node, prepared = self.producer.get(value), self.prepared
        self.waiting += 1
        self.prepared = index if node is not None and node.prim.kind is Kind.MAP else None
        made = self._made(node, value, index)
        self.waiting -= 1
        self.prepared = prepared
        return made

    def _made(self, node: Node | None, value: Value, index: tuple[Expr, ...]) -> Expr:
        if self.trial and self.waiting > STEPS:
            raise Refused(f"its values follow each other in more than {STEPS} steps")
        if value in self.held:
            name, _, dtype = self.held[value]
            return Load(name, self.within(value, index), dtype).cast(value.type.name)
        if node is None:
            name = self.inputs.setdefault(value, f"{self.prefix}x{len(self.inputs)}")
            if self.trial and value.type.name in FLOATS:
                return _FLOAT[value.type.name]
            strides = self.strides.get(value) or row_major(value.type.shape)
            return Load(name, (flatten(index, strides),), value.type.name)
        kind, works, costly, known = _known(node)
        if kind in REDUCTIONS:
            self.reads.setdefault(node, []).append(flatten(index, row_major(value.type.shape)))
            return Load(self.accumulator(node), (), self.reduction(node).dtype).cast(value.type.name)
        if node.prim.lower is None:
            raise Refused(f"{node.prim.name} is not computed element by element")
        self.evaluations += works
        self.costly += costly
        if self.evaluations > self.budget or self.costly > self.costly_budget:
            raise Refused(f"values would be computed again more than {RECOMPUTE} times")
        if known is not None and self.trial:
            if kind is Kind.MAP:
                for v in node.inputs:
                    self.at(v, index)
            else:
                for k, where in _asked(node, index):
                    self.at(node.inputs[k], where)
            return known
        types = [v.type for v in node.inputs]
        made: Expr = node.prim.lower(self.reader(node), index, types, value.type, node.params)
        return normalize(made) if node.prim.kind is not Kind.MAP else made

    def reader(self, node: Node) -> Callable[[int, Sequence[Expr]], Expr]:
        def at(i: int, index: Sequence[Expr]) -> Expr:
            return self.at(node.inputs[i], tuple(normalize(e) for e in index))

        return at

    def reduction(self, node: Node) -> Reduction:
        """Return the record of how one element of a reduction is made."""
        assert node.prim.lower is not None
        made: Reduction = node.prim.lower([v.type for v in node.inputs], node.output.type, node.params)
        rounds = self.tf32 and node.prim.kind is Kind.CONTRACT and node.output.type.name == "f32"
        return _rounded(made) if rounds else made

    def name(self, letter: str, value: Value) -> str:
        """Name what belongs to a value; equal parts of different graphs get equal names."""
        return f"{self.prefix}{letter}{self.numbers.setdefault(value, len(self.numbers))}"

    def accumulator(self, node: Node) -> str:
        return self.name("a", node.output)

    def probe(self, value: Value, index: tuple[Expr, ...]) -> set[Expr]:
        """Return the flat positions at which ``value`` reads results of reductions; nothing is kept of the attempt."""
        kept = self.reads, self.memo, self.evaluations, self.costly
        self.reads, self.memo = {}, {}
        self.at(value, index)
        found = {flat for flats in self.reads.values() for flat in flats}
        self.reads, self.memo, self.evaluations, self.costly = kept
        return found


_FLOAT = {name: Load("v", (), name) for name in FLOATS}
"""What stands for all elements of floats in a trial."""


@memo
def _known(node: Node) -> tuple[Kind, bool, bool, Expr | None]:
    """Return a node's kind, whether it does work for each element, and much; and what stands for an element in a trial,
    where all that matters is which elements of other values it needs.
    """
    kind, name = node.prim.kind, node.outputs[0].type.name
    plain = name in FLOATS and (kind is Kind.VIEW or (kind is Kind.MAP and bool(node.inputs)))
    return kind, computes(node), node.prim.name in COSTLY, _FLOAT[name] if plain else None


@memo
def _asked(node: Node, index: tuple[Expr, ...]) -> tuple[tuple[int, tuple[Expr, ...]], ...]:
    """Return which elements of its inputs one element of a view may be."""
    asked: dict[tuple[int, tuple[Expr, ...]], None] = {}

    def at(i: int, index: Sequence[Expr]) -> Expr:
        where = tuple(normalize(e) for e in index)
        asked[i, where] = None
        return Load(f"x{i}", where, node.inputs[i].type.name)

    assert node.prim.lower is not None
    node.prim.lower(at, index, [v.type for v in node.inputs], node.output.type, node.params)
    return tuple(asked)


def _rounded(contraction: Reduction) -> Reduction:
    """Round the factors of what a contraction sums to tf32, but for those that have no more bits anyhow."""

    def narrow(e: Expr) -> bool:
        return isinstance(e, Op) and e.op == "cast" and e.args[0].dtype in NARROW_FLOATS

    def element(at: At, index: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        def factor(i: int, index: Sequence[Expr]) -> Expr:
            e = at(i, index)
            return e if narrow(e) else op("tf32", e)

        return contraction.element(factor, index, r)

    return contraction._replace(element=element)


def identity(name: str, dtype: str) -> Const:
    """Return the value that ``name`` (``add``, ``mul``, ``min``, ``max``) leaves others unchanged by."""
    if name in ("add", "mul"):
        return Const(0 if name == "add" else 1, dtype)
    low = name == "max"
    if dtype in FLOATS:
        return Const(-math.inf if low else math.inf, dtype)
    if dtype == "bool":
        return Const(not low, dtype)
    bits = int(dtype[1:])
    if dtype in UNSIGNED:
        return Const(0 if low else 2**bits - 1, dtype)
    return Const(-(2 ** (bits - 1)) if low else 2 ** (bits - 1) - 1, dtype)
