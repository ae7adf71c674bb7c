"""Printing operations on printed operands as OpenCL C: scalars, and vectors lane by lane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kernelforge.backends.opencl.lib import MASKS, Functions, ctype, has_function, size, unsigned
from kernelforge.dtypes import FLOATS, INTEGERS, SIGNED
from kernelforge.ir.kernel import COMPARE, Op

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip

ON_BOOL = {
    "and": "({0} & {1})", "or": "({0} | {1})", "xor": "({0} ^ {1})", "min": "({0} & {1})", "max": "({0} | {1})",
    "not": "({n}{0})", "eq": "({n}({0} ^ {1}))", "ne": "({0} ^ {1})", "lt": "(({n}{0}) & {1})",
    "le": "(({n}{0}) | {1})", "gt": "({0} & ({n}{1}))", "ge": "({0} | ({n}{1}))",
}  # fmt: skip
"""Operations on bool, as 0 and 1 (``n`` is ``!``) or as the 0 and -1 of a vector's lanes (``n`` is ``~``)."""


class Code(NamedTuple):
    """A printed value: ``lanes`` is 1 for a scalar; ``mask`` the bytes of a lane of a bool vector."""

    text: str
    dtype: str
    lanes: int = 1
    mask: int = 0


class Operations:
    """Prints values that have operands, and names them: the lower layer of a scope.

    Attributes:
        lanes: the extent of the vector loop that is printed; 1 outside of one.
    """

    def __init__(self, functions: Functions, emit: Callable[[str], None]) -> None:
        self.functions = functions
        self.emit = emit
        self.lanes = 1
        self._count = 0

    def temporary(self, code: Code) -> Code:
        """Name a value."""
        self._count += 1
        name = f"kf_t{self._count}"
        self.declare(name, code)
        return code._replace(text=name)

    def declare(self, name: str, code: Code) -> None:
        kind = (
            MASKS[code.mask] + str(code.lanes)
            if code.mask
            else "bool"
            if code.dtype == "bool"
            else ctype(code.dtype, code.lanes)
        )
        self.emit(f"const {kind} {name} = {code.text};")

    def splat(self, code: Code, mask: int = 0) -> Code:
        """Give every lane the value; a bool becomes a mask of ``mask`` bytes a lane."""
        if code.dtype == "bool":
            kind = f"{MASKS[mask]}{self.lanes}"
            if code.lanes == 1:
                return Code(f"(({kind})({code.text} ? -1 : 0))", "bool", self.lanes, mask)
            return code if code.mask == mask else Code(f"kf_convert({code.text}, {kind})", "bool", self.lanes, mask)
        if code.lanes > 1:
            return code
        return Code(f"(({ctype(code.dtype, self.lanes)})({code.text}))", code.dtype, self.lanes)

    def plain(self, sign: str, dtype: str, args: Sequence[Code]) -> Code:
        if any(a.lanes > 1 for a in args):
            args = [self.splat(a) for a in args]
        return Code(f"({args[0].text} {sign} {args[1].text})", dtype, args[0].lanes)

    def apply(self, name: str, dtype: str, args: Sequence[Code]) -> Code:
        """Print an operation on printed operands; ``dtype`` is the result's."""
        lanes = max(a.lanes for a in args)
        kind = args[0].dtype
        if kind == "bool":
            mask = max(a.mask for a in args) if lanes > 1 else 0
            args = [self.splat(a, mask) if lanes > 1 else a for a in args]
            return Code(ON_BOOL[name].format(*(a.text for a in args), n="~" if mask else "!"), "bool", lanes, mask)
        if lanes > 1:
            args = [self.splat(a) for a in args]
        texts = [a.text for a in args]
        if name in COMPARE:
            return Code(f"({texts[0]} {INFIX[name]} {texts[1]})", "bool", lanes, size(kind) if lanes > 1 else 0)
        if kind in INTEGERS:
            return Code(self._integer(name, dtype, lanes, texts), dtype, lanes)
        if has_function(name, dtype):
            return Code(f"{self.functions.call(name, dtype, lanes)}({', '.join(texts)})", dtype, lanes)
        if name in INFIX:
            return Code(f"({texts[0]} {INFIX[name]} {texts[1]})", dtype, lanes)
        if name == "neg":
            return Code(f"(-{texts[0]})", dtype, lanes)
        if name == "fmod":  # of double8, PoCL 3.1 computes a wrong one: 1 for 127 and 1
            return Code(self._each_lane(name, dtype, lanes, texts), dtype, lanes)
        return Code(f"{name}({', '.join(texts)})", dtype, lanes)

    def _each_lane(self, function: str, dtype: str, lanes: int, texts: Sequence[str]) -> str:
        """Print a call of a function of scalars, once a lane."""
        if lanes == 1:
            return f"{function}({', '.join(texts)})"
        names = [self.temporary(Code(t, dtype, lanes)).text for t in texts]
        calls = (f"{function}({', '.join(f'{n}.s{k:x}' for n in names)})" for k in range(lanes))
        return f"(({ctype(dtype, lanes)})({', '.join(calls)}))"

    def _integer(self, name: str, dtype: str, lanes: int, texts: Sequence[str]) -> str:
        """Print integer arithmetic, which wraps: signed overflow would be undefined, and narrow scalars become int."""
        a, b = (*texts, "")[:2]
        if name in ("min", "max"):
            return f"{self.functions.call(name, dtype, lanes)}({a}, {b})"
        if name == "abs":
            zero = f"(({ctype(dtype, lanes)})(0))"
            return f"({a} < {zero} ? {self._integer('neg', dtype, lanes, texts)} : {a})" if dtype in SIGNED else a
        if name in ("floordiv", "mod"):
            if dtype not in SIGNED:
                text = f"({a} {'/' if name == 'floordiv' else '%'} {b})"
                return text if lanes > 1 else f"(({ctype(dtype)}){text})"
            return self._each_lane(self.functions.call(name, dtype, 1), dtype, lanes, texts)
        into, bits = self._wrap(dtype, lanes)
        if name in ("and", "or", "xor"):
            text = f"({a} {INFIX[name]} {b})"
        elif name == "not":
            text = f"(~{a})"
        elif name == "shr":
            text = f"({a} >> {b})"
        else:
            x, y = bits.format(a), bits.format(b)
            # the amount of a shift is small in either type
            text = f"(0 - {x})" if name == "neg" else f"({x} {INFIX[name]} {y})"
            if name == "neg" and lanes > 1:
                text = f"(-{x})"
            return into.format(text)
        return text if lanes > 1 or size(dtype) >= 4 else f"(({ctype(dtype)}){text})"

    @staticmethod
    def _wrap(dtype: str, lanes: int) -> tuple[str, str]:
        """Return the patterns of the casts from and to the unsigned type in which a dtype's arithmetic is done."""
        if lanes > 1:
            same = dtype not in SIGNED
            return ("{}" if same else f"as_{ctype(dtype, lanes)}({{}})"), (
                "{}" if same else f"as_{unsigned(dtype, lanes)}({{}})"
            )
        return f"(({ctype(dtype)}){{}})", "((ulong){})" if size(dtype) == 8 else "((uint){})"

    def convert(self, e: Op, code: Code) -> Code:
        """Print a cast or a bitcast."""
        source, target, lanes = e.args[0].dtype, e.dtype, code.lanes
        if "bool" in (source, target):
            if source == target:
                return code
            if target == "bool":
                zero = "0" if lanes == 1 else f"(({ctype(source, lanes)})(0))"
                return Code(f"({code.text} != {zero})", "bool", lanes, size(source) if lanes > 1 else 0)
            if lanes == 1:
                return Code(f"(({ctype(target)})({code.text} ? 1 : 0))", target)
            own = ctype(target, lanes)
            return Code(f"({self.splat(code, size(target)).text} ? ({own})(1) : ({own})(0))", target, lanes)
        if e.op == "bitcast":
            # a narrow scalar's text may be an int, and as_ wants the exact size
            inner = code.text if lanes > 1 else f"({ctype(source)})({code.text})"
            return Code(f"as_{ctype(target, lanes)}({inner})", target, lanes)
        if target in ("u8", "u16") and source in FLOATS:
            # C leaves open what negative ones become; they wrap
            code = self._converted(code, "i32")
        return self._converted(code, target)

    def _converted(self, code: Code, target: str) -> Code:
        lanes = code.lanes
        if lanes == 1:
            return Code(f"(({ctype(target)})({code.text}))", target)
        return Code(f"kf_convert({code.text}, {ctype(target, lanes)})", target, lanes)
