"""Which element of a small product a lane of a warp holds in which place: the fragments of ``mma.sync``.

As the PTX ISA gives them (Matrix Fragments for mma.m16n8k16 with floating point type, 16 bits wide, and for
mma.m16n8k8 with .tf32), with ``group`` for ``groupID = lane >> 2``, ``member`` for ``threadID_in_group = lane % 4``,
and ``pack`` elements to a register. The functions take numbers, arrays and index expressions alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from kernelforge.ir.index import free_vars, normalize
from kernelforge.ir.kernel import Expr, For, Load, Op, Stmt, Store, i64, substitute
from kernelforge.ir.schedule.factors import form

ROWS, COLUMNS = 16, 8
GROUPS, MEMBERS = 8, 4
NARROW = ("bf16", "f16")
PACK = {"bf16": 2, "f16": 2, "tf32": 1}
"""Elements of a factor that a register of 32 bits holds; a product is eight registers deep."""


def left(group: Any, member: Any, i: int, pack: int) -> tuple[Any, Any]:
    """Return row and depth of the element ``a_i``, i < 4 * pack."""
    register = i // pack
    return group + 8 * (register % 2), member * pack + (i % pack + 4 * pack * (register // 2))


def right(group: Any, member: Any, i: int, pack: int) -> tuple[Any, Any]:
    """Return depth and column of the element ``b_i``, i < 2 * pack."""
    return member * pack + (i % pack + 4 * pack * (i // pack)), group


def result(group: Any, member: Any, i: int) -> tuple[Any, Any]:
    """Return row and column of the element ``c_i``, i < 4."""
    return group + 8 * (i // 2), member * 2 + i % 2


@dataclasses.dataclass(frozen=True, slots=True)
class Small:
    """Products of a unit that tensor cores can make.

    Attributes:
        group, member: the loops over the lanes of a warp.
        depth: the loop of the sum, and ``outer`` those over the small products of a lane.
        row, column: the loops over a lane's own rows and columns of one, two each.
        store: what accumulates, of ``a`` and ``b``.
        form: which products: ``bf16``, ``f16`` or ``tf32``.
    """

    group: For
    member: For
    depth: For
    outer: tuple[For, ...]
    row: For
    column: For
    store: Store
    a: Load
    b: Load
    form: str

    @property
    def pack(self) -> int:
        return PACK[self.form]

    @property
    def deep(self) -> int:
        """How many elements one product is deep."""
        return 8 * self.pack

    def a_index(self, i: int, step: Expr) -> tuple[Expr, ...]:
        """Return where a lane finds its element ``a_i`` of the product number ``step`` along the depth."""
        _, k = left(self.group.var, self.member.var, i, self.pack)
        return self._at(self.a, {self.row.var: i64(i // self.pack % 2), self.depth.var: step * self.deep + k})

    def b_index(self, i: int, step: Expr) -> tuple[Expr, ...]:
        """Return where a lane finds its element ``b_i``, of the column that its group counts."""
        k, column = right(self.group.var, self.member.var, i, self.pack)
        replace: dict[Expr, Expr] = {
            self.member.var: column // 2,
            self.column.var: column % 2,
            self.depth.var: step * self.deep + k,
        }
        return self._at(self.b, replace)

    def c_index(self) -> tuple[Expr, ...]:
        """Return where a lane's four accumulators begin."""
        return tuple(substitute(e, {self.row.var: i64(0), self.column.var: i64(0)}) for e in self.store.index)

    def _at(self, load: Load, replace: dict[Expr, Expr]) -> tuple[Expr, ...]:
        return tuple(normalize(substitute(e, replace)) for e in load.index)


def small(chain: Sequence[For], body: Sequence[Stmt]) -> Small | None:
    """Read a unit of group loops as such products: its last 32 work-items are a warp, whose lanes hold elements as
    ``result`` says; None where it is none.
    """
    if len(chain) < 2 or (chain[-2].static, chain[-1].static) != (GROUPS, MEMBERS):
        return None
    path: list[For] = []
    while len(body) == 1 and isinstance(body[0], For):
        path.append(body[0])
        body = body[0].body
    if len(body) != 1 or not isinstance(body[0], Store) or len(path) < 3 or path[0].kind != "serial":
        return None
    store, (depth, *outer, row, column) = body[0], path
    factors = store.value.args if isinstance(store.value, Op) and store.value.op == "mul" else ()
    forms = {form(e) for e in factors}
    loads = [e.args[0] for e in factors if isinstance(e, Op) and isinstance(e.args[0], Load)]
    if store.op != "add" or store.value.dtype != "f32" or len(loads) != 2 or len(forms) != 1 or "" in forms:
        return None
    (kind,) = forms
    group, member = chain[-2:]
    own = tuple(p.var for p in (*chain, *outer, row, column))
    if store.index != own or (row.static, column.static) != (2, 2) or (depth.static or 1) % (8 * PACK[kind]):
        return None
    needs = [frozenset().union(*(free_vars(i) for i in e.index)) for e in loads]
    a, b = loads if group.var in needs[0] else reversed(loads)
    one, other = needs if group.var in needs[0] else reversed(needs)
    if one & {member.var, column.var} or other & {group.var, row.var} or not {depth.var} <= one & other:
        return None
    return Small(group, member, depth, tuple(outer), row, column, store, a, b, kind)
