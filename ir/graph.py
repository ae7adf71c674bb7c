"""The graph IR: immutable values, nodes and graphs, and the record of a primitive.

A graph is a list of nodes in an order in which every value is defined before it is used. All meaning is in the
primitive records (``kernelforge.ir.ops``); this module knows none of them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kernelforge.ir.kernel import Expr
from kernelforge.ir.types import Type
from kernelforge.lines import Loc

if TYPE_CHECKING:
    from kernelforge.ir.build import Sym

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One array of the program; compared by identity, ``id`` is its number in the text form."""

    id: int
    type: Type

    def __str__(self) -> str:
        return f"%{self.id}"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One application of a primitive."""

    prim: Primitive
    inputs: tuple[Value, ...]
    params: Params
    outputs: tuple[Value, ...]
    loc: Loc | None = None

    def __repr__(self) -> str:
        return f"<{', '.join(map(str, self.outputs))} = {self.prim.name}({', '.join(map(str, self.inputs))})>"

    @property
    def output(self) -> Value:
        """The only output; only opaque primitives have several."""
        (out,) = self.outputs
        return out

    @property
    def graphs(self) -> dict[str, Graph]:
        """The graphs among the parameters, which only opaque primitives have."""
        return {name: p for name, p in self.params.items() if isinstance(p, Graph)}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A function over arrays.

    ``consts`` are arrays the user's function closed over; they are inputs bound once.
    """

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    consts: tuple[tuple[Value, np.ndarray[Any, Any]], ...] = ()

    @property
    def unused(self) -> int:
        """The first of the numbers that no value has."""
        made = (v.id for n in self.nodes for v in n.outputs)
        return 1 + max([*made, *(v.id for v in self.inputs), *(v.id for v, _ in self.consts)], default=-1)

    def __repr__(self) -> str:
        return f"<Graph: {len(self.inputs)} inputs, {len(self.nodes)} nodes, {len(self.outputs)} outputs>"

    def __str__(self) -> str:
        from kernelforge.ir.text import print_graph

        return print_graph(self)


class Kind(enum.Enum):
    """How a primitive's output depends on its inputs, which is what fusion asks for."""

    __hash__ = object.__hash__  # members are one of a kind; that of ``Enum`` takes a call of Python

    MAP = "map"  # one element from the same element of each input (or from the index alone)
    VIEW = "view"  # elements moved, none computed: never a kernel of its own
    INDEX = "index"  # like a view, but the index is data: gather
    REDUCE = "reduce"  # an associative combination over some axes
    CONTRACT = "contract"  # a sum of products over named axes
    CUMULATE = "cumulate"  # a running combination along one axis
    SCATTER = "scatter"  # elements written where data says
    OPAQUE = "opaque"  # holds graphs: scan, cond, while_loop, calls


At = Callable[[int, Sequence[Expr]], Expr]
"""``at(i, index)``: the element of input ``i`` at ``index``, as a kernel expression."""


class Reduction(NamedTuple):
    """How one output element of a REDUCE, CONTRACT or CUMULATE primitive is made.

    ``out = combine(element(r) for r in extents)``, starting from ``identity``, in ``dtype``, cast at the end.

    Attributes:
        extents: the extents of the reduced axes. For CUMULATE the one axis that is walked, in order.
        op: the combining operator: ``add``, ``mul``, ``max``, ``min``; for CUMULATE also ``recur``.
        dtype: short name of the accumulator's dtype.
        element: ``element(at, index, r)``: one element, in ``dtype``; ``index`` has an entry for each output axis,
            ``r`` one for each reduced axis. (For CUMULATE, ``index`` has all axes and ``r`` is empty.)
        decay: for ``recur`` (``h = decay * h + element``), the factor at this element.
    """

    extents: tuple[int, ...]
    op: str
    dtype: str
    element: Callable[[At, Sequence[Expr], Sequence[Expr]], Expr]
    decay: Callable[[At, Sequence[Expr]], Expr] | None = None


class Sample(NamedTuple):
    """Typical inputs of a primitive, for tests.

    ``inputs`` are float64 or integer arrays that the tests cast to each dtype in ``dtypes``.
    """

    inputs: tuple[np.ndarray[Any, Any], ...]
    params: dict[str, Any]


Vjp = Callable[[tuple["Sym", ...], tuple["Sym", ...], tuple["Sym", ...], Params], tuple["Sym | None", ...]]
Batch = Callable[[int, Sequence["Sym"], Sequence[bool], Params], Sequence["Sym"]]
Jvp = Callable[[tuple["Sym | None", ...], tuple["Sym", ...], tuple["Sym", ...], Params], tuple["Sym | None", ...]]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Primitive:
    """Everything the compiler knows of one operation.

    Attributes:
        name: unique, as in the text form.
        kind: see ``Kind``.
        doc: one line: what it computes.
        params: the names of the static parameters, all required and hashable.
        typing: ``typing(types, params)`` gives the output types, or raises ``ShapeMismatch``, ``DtypeMismatch`` or
            ``InvalidParameter``. Primitives neither broadcast nor promote: the front end makes that explicit.
        numpy: the meaning: ``numpy(arrays, params)`` gives the output arrays.
        vjp: ``vjp(cotangents, inputs, outputs, params)`` gives a cotangent, or None for zero, for each input;
            or a string: why there is no derivative, in words the user reads.
        jvp: ``jvp(tangents, inputs, outputs, params)`` gives a tangent, or None for zero, for each output; a
            tangent that is None is zero; or a string as for ``vjp``.
        batch: ``batch(size, inputs, has, params)`` gives the outputs for ``size`` examples, along a leading axis that
            the inputs have, too, which ``has`` marks, one at least.
        lower: for MAP, VIEW and INDEX: ``lower(at, index, types, out, params)`` gives the output element at ``index``
            as a kernel expression (``types`` of the inputs, ``out`` the output's).
            For REDUCE, CONTRACT and CUMULATE: ``lower(types, out, params)`` gives a ``Reduction``.
            None for SCATTER and OPAQUE.
        sample: makes typical inputs for the tests: a list of ``Sample``.
        dtypes: short names of the dtypes that the first input may have.
        bound: the largest error, in units in the last place of f32 and f64, against the exact result.
    """

    name: str
    kind: Kind
    doc: str
    params: tuple[str, ...]
    typing: Callable[[Sequence[Type], Params], tuple[Type, ...]]
    numpy: Callable[[Sequence[np.ndarray[Any, Any]], Params], tuple[np.ndarray[Any, Any], ...]]
    vjp: Vjp | str
    jvp: Jvp | str
    batch: Batch
    lower: Callable[..., Any] | None
    sample: Callable[[], list[Sample]]
    dtypes: frozenset[str]
    bound: float = 0.5
