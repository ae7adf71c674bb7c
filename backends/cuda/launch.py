"""What a launch needs beside the device: grids, scratch, and the choice between aligned and scalar code."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

from kernelforge.backends.cuda.printer import Phase, print_kernel, scratch
from kernelforge.dtypes import DTYPES
from kernelforge.errors import InvalidParameter
from kernelforge.ir.interpret import evaluate
from kernelforge.ir.kernel import Const, Expr, Kernel

MOST_BLOCKS = (1 << 31) - 1
ALIGNMENT = 16


def product(extents: Sequence[Expr], names: Sequence[str]) -> Callable[[Sequence[int]], int]:
    """Make a function from the values of the params ``names`` to the product of ``extents``."""
    if all(isinstance(e, Const) for e in extents):
        fixed = math.prod(int(e.value) for e in extents if isinstance(e, Const))
        return lambda _: fixed

    @functools.lru_cache(maxsize=256)
    def known(params: tuple[int, ...]) -> int:
        values = dict(zip(names, params, strict=True))
        return math.prod(evaluate(e, values) for e in extents)

    return lambda params: known(tuple(params))


class Launches:
    """A kernel's phases in both variants, and the sizes that its params decide."""

    def __init__(self, kernel: Kernel, simulated: bool, ampere: bool) -> None:
        self.kernel = kernel
        self.wide = print_kernel(kernel, True, simulated, ampere)
        self.aligned = frozenset().union(*(p.aligned for p in self.wide))
        self.source = "\n".join(p.source for p in self.wide)
        self._simulated, self._ampere = simulated, ampere
        self._grids = [product(p.grid, kernel.params) for p in self.wide]
        self.scratch_dtypes = [DTYPES[a.dtype] for a in scratch(kernel)]
        self._counts = [product(a.shape, kernel.params) for a in scratch(kernel)]

    @functools.cached_property
    def narrow(self) -> tuple[Phase, ...]:
        """The phases without wide loads and stores."""
        return print_kernel(self.kernel, False, self._simulated, self._ampere)

    def fits(self, addresses: Mapping[str, int]) -> bool:
        """Whether the arguments lie where the wide variant needs them."""
        return all(addresses[name] % ALIGNMENT == 0 for name in self.aligned)

    def blocks(self, params: Sequence[int]) -> list[int]:
        """The number of blocks of each phase.

        Raises:
            InvalidParameter: for more than a grid can have.
        """
        out = [grid(params) for grid in self._grids]
        if max(out, default=0) > MOST_BLOCKS:
            expected = f"at most {MOST_BLOCKS} blocks; use smaller arrays"
            raise InvalidParameter(op=self.kernel.name, name="grid", found=max(out), expected=expected)
        return out

    def scratch(self, params: Sequence[int]) -> list[int]:
        """Bytes of each scratch buffer."""
        return [max(n(params) * d.itemsize, 1) for n, d in zip(self._counts, self.scratch_dtypes, strict=True)]
