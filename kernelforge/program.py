"""Programs: what a function is compiled to for the types of its arguments, and how a call of that runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from kernelforge.array import GONE, Array
from kernelforge.backends.base import Backend, Call, Direct, Entry, Result
from kernelforge.compile import compile_graph
from kernelforge.config import current as current_config
from kernelforge.devices import current as current_device
from kernelforge.errors import MixedDevices
from kernelforge.ir.graph import Graph, Value
from kernelforge.ir.text import print_graph, print_kernel
from kernelforge.leaves import IN_PLACE, INT, Leaf, check_donated, donated, given, leaf_of, number
from kernelforge.runtime.memory import Buffer, Pooled, size_class
from kernelforge.runtime.plan import Detailed, Plan
from kernelforge.trace import Tracer, trace

Fn = Callable[..., Any]


class Program:
    """A function compiled for the types of its arguments.

    Attributes:
        entry: of a program that is called again, where the device has some: it goes from arguments to kernels directly.
    """

    __slots__ = ("_again", "_backend", "_direct", "_given", "_loads", "_outputs", "_single", "_tree", "entry", "plan")

    def __init__(
        self, plan: Plan, leaves: Sequence[Leaf], graph: Graph, tree: Any, backend: Backend, given: Mapping[int, str]
    ) -> None:
        self.plan = plan
        self._loads = [leaf.load for leaf in leaves]
        self._outputs = [(v.type.shape, v.type.dtype) for v in graph.outputs]
        self._tree = tree
        self._single = tree.is_leaf()
        self._backend = backend
        self._given = given
        self._again = False
        self._direct: Fn | None = None
        self.entry: Entry | None = None

    def __call__(self, leaves: Sequence[Any]) -> Any:
        if self._direct is None:
            if not self._again:
                self._again = True
                return self._run(*leaves)
            self.entry = self._prepare(leaves)
            self._direct = self._run if self.entry is None else self.entry.under((), self._run)
        return self._direct(*leaves)

    def _run(self, *leaves: Any) -> Any:
        backend = self._backend
        if self._given:
            check_donated(leaves, self._given)
        inputs = [load(backend, x) for load, x in zip(self._loads, leaves)]  # noqa: B905 - checked by the key
        for k in self._given:
            if isinstance(leaves[k], Array):
                inputs[k] = given(leaves[k])
        made = [Array(b, *t) for b, t in zip(self.plan.run(inputs), self._outputs)]  # noqa: B905
        return made[0] if self._single else self._tree.unflatten(made)

    def _prepare(self, leaves: Sequence[Any]) -> Entry | None:
        """Make the entry for arguments like these, where the device has some and none of them is copied."""
        backend, launches = self._backend, self.plan.launches()
        if not isinstance(backend, Direct) or launches is None or not IN_PLACE.issuperset(self._loads):
            return None
        if not all(isinstance(leaves[k], Array) for k in self._given):
            return None
        take, arena = self.plan.pool.take, self.plan.arena
        results = tuple(
            Result(*kind, size, functools.partial(_pooled, take, size, kind), taken)
            for kind, size, taken in zip(self._outputs, self.plan.sizes, self.plan.taken, strict=True)
        )
        flat = self._tree.type is tuple and self._tree.num_nodes == 1 + len(results)
        call = Call(
            backend, Array, Buffer, Pooled, tuple(self._given), GONE,
            tuple(b.handle for b in self.plan.consts), results,
            functools.partial(take, size_class(arena)) if arena else None, arena, self.plan.places,
            launches, self.plan.work,
            None if self._single else tuple if flat else self._tree.unflatten,
        )  # fmt: skip
        return backend.entry(call, leaves)


def _pooled(take: Callable[[int], Buffer], size: int, kind: tuple[tuple[int, ...], np.dtype[Any]]) -> Array:
    return Array(take(size), *kind)


class Lowered:
    """What a function was compiled to.

    Attributes:
        graph: after the passes.
        regions: the groups of operations, one kernel each, in the order they run.
        kernels: each with ``name``, ``ir``, ``source``, ``bytes``, ``flops``; those lowered for a target also with
            ``executable.report``: assembly, registers, spills, local memory, occupancy.
    """

    def __init__(self, plan: Plan) -> None:
        assert isinstance(plan, Detailed)
        self.plan = plan
        self.graph = plan.graph
        self.regions = plan.regions
        self.kernels = plan.kernels

    def __repr__(self) -> str:
        return f"<Lowered to {len(self.kernels)} kernels: {', '.join(k.name for k in self.kernels)}>"

    def text(self) -> str:
        """Return the graph and the kernels in their text forms."""
        return "\n\n".join([print_graph(self.graph), *(print_kernel(k.ir) for k in self.kernels)])


def _device(leaves: Sequence[Any]) -> Backend:
    """Return the device the arguments are on.

    Raises:
        MixedDevices: when they are on several.
    """
    found = list(dict.fromkeys(x._buffer.backend for x in leaves if isinstance(x, Array)))
    if len(found) > 1:
        raise MixedDevices(first=found[0].name, second=found[1].name)
    return found[0] if found else current_device()


def program_of(
    body: Callable[[list[Tracer]], Any],
    leaves: Sequence[Any],
    name: str,
    backend: Backend | None = None,
    located: bool = False,
    names: Mapping[int, str] = MappingProxyType({}),
) -> Program:
    """Trace ``body``, a function of the list of arguments, and compile it for ``backend`` or the device they are on.

    Args:
        located: as for ``compile_graph``.
        names: of the arguments that are donated.
    """
    backend = backend or _device(leaves)
    found = [leaf_of(x, backend) for x in leaves]
    graph, tree = trace(body, [leaf.type for leaf in found], name)
    for leaf, value in zip(found, graph.inputs, strict=True):
        narrower = _narrower(graph, value)
        if narrower:
            leaf.load = number(leaf.type.dtype, narrower)
    usable = frozenset(i for i in names if donated(found[i]))
    plan = compile_graph(graph, backend, current_config(), tuple(leaf.strides for leaf in found), located, usable)
    return Program(plan, found, graph, tree, backend, names)


def _narrower(graph: Graph, value: Value) -> tuple[np.dtype[Any], ...]:
    """Return the integer dtypes that a Python integer is cast to, beside others of them in an operation."""
    if not (value.type.weak and value.type.dtype == INT):
        return ()
    casts = [n.outputs[0].type.dtype for n in graph.nodes if n.prim.name == "cast" and n.inputs == (value,)]
    return tuple(dict.fromkeys(d for d in casts if d.kind in "iu" and d != INT))
