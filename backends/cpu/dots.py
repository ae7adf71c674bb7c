"""Products of bf16 in pairs: one instruction multiplies two elements in each f32 lane and adds both to it."""

from __future__ import annotations

from kernelforge.backends.cpu.tiles import Tiles
from kernelforge.backends.cpu.values import Val
from kernelforge.ir.kernel import For, Load, Var, i64, substitute
from kernelforge.ir.pairs import pairs

LANES = 16
FUNCTION = "llvm.x86.avx512bf16.dpbf16ps.512"


class Dots(Tiles):
    """Emits sums of two products of bf16."""

    def dot(self, loop: For) -> bool:
        """Add two products to each lane at once, where that is what ``loop`` does in a ``vector`` loop.

        The instruction takes subnormal operands and results as zero, and rounds each sum once. Returns False, with
        nothing emitted, for any other loop.
        """
        found = pairs(loop) if "bf16dot" in self.host.native and self.lanes == LANES and self.mask is None else None
        if found is None:
            return False
        stmt, loads = found
        pointer, step = self.address(stmt.buffer, stmt.index)
        if step != 1:
            return False
        words = [self._word(e, loop.var) for e in loads]
        if any(w is None for w in words):
            return False
        old = self.load_at(stmt.buffer, pointer, 1, None)
        vectors = [self.splat(w, LANES) for w in words if w is not None]
        a, b = (self.ins(f"bitcast <16 x i32> {v.ref} to <32 x bfloat>", "u32", LANES, v) for v in vectors)
        self.declare(FUNCTION, "<16 x float>", "<16 x float>, <32 x bfloat>, <32 x bfloat>")
        operands = f"<16 x float> {old.ref}, <32 x bfloat> {a.ref}, <32 x bfloat> {b.ref}"
        new = self.ins(f"call <16 x float> @{FUNCTION}({operands})", "f32", LANES, old, a, b)
        self.write(self.buffers[stmt.buffer], stmt.buffer, pointer, 1, new)
        self.forget(stmt.buffer)
        return True

    def _word(self, e: Load, var: Var) -> Val | None:
        """Load the pairs of elements of all lanes, or the one that they share."""
        pointer, step = self.address(e.buffer, tuple(substitute(i, {var: i64(0)}) for i in e.index))
        if step == 0:
            return self.read(e.buffer, f"load i32, ptr {pointer.ref}, align 2", "u32", 0, pointer)
        if step == 2:
            return self.read(e.buffer, f"load <16 x i32>, ptr {pointer.ref}, align 2", "u32", LANES, pointer)
        return None
