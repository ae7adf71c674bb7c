"""What sources use of OpenCL C's names, for a compiler whose own header takes longer to read than they take to compile.

PoCL 3 has clang read all 16,000 lines of ``opencl-c.h`` for each program, unless it is told that they were read.
"""

from __future__ import annotations

from typing import Any

import pyopencl as cl

from kernelforge.backends.opencl.lib import NAMES, WIDTHS
from kernelforge.ir.kernel import ARITY, MATH_BINARY, MATH_UNARY

_UNSIGNED = "".join(f"typedef unsigned {kind} u{kind};\n" for kind in ("char", "short", "int", "long"))
_KINDS = tuple(dict.fromkeys(NAMES.values()))
_VECTORS = "".join(
    f"typedef {kind} {kind}{width} __attribute__((ext_vector_type({width})));\n" for kind in _KINDS for width in WIDTHS
)
_SAME_BITS = "".join(
    f"#define as_{kind}{width}(x) __builtin_astype((x), {kind}{width})\n" for kind in _KINDS for width in ("", *WIDTHS)
)
_FUNCTIONS = "".join(
    f"{value} KF_CONST {name}({', '.join([value] * ARITY[name])});\n"
    for value in (f"{kind}{width}" for kind in ("float", "double") for width in ("", *WIDTHS))
    for name in ("sqrt", "fma", *MATH_UNARY, *MATH_BINARY)
)
_PLACES = "".join(f"size_t KF_CONST get_{of}(uint);\n" for of in ("local_id", "group_id", "global_id", "global_size"))

DECLARATIONS = f"""\
{_UNSIGNED}typedef __SIZE_TYPE__ size_t;
{_VECTORS}{_SAME_BITS}\
#define true 1
#define false 0
#define INFINITY (__builtin_inff())
#define CLK_LOCAL_MEM_FENCE 1
#define CLK_GLOBAL_MEM_FENCE 2
#define KF_CONST __attribute__((overloadable, const))
{_PLACES}void __attribute__((overloadable, convergent)) barrier(uint);
{_FUNCTIONS}#line 1
"""

POCL = "Portable Computing Language"
"""PoCL's name among platforms."""

READ = "-D_OPENCL_H_"
"""The option that says that the header was read."""


def declared(device: Any) -> bool:
    """Return whether programs for a device have to bring their declarations, and ``READ`` among their options."""
    cpu = bool(device.type & cl.device_type.CPU)
    return cpu and device.platform.name == POCL and " PoCL 3." in device.platform.version
