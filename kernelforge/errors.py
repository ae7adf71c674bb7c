"""Every exception of the package, each with the template of its one message.

A message says what was wrong, where in the user's file, what was found, what was expected and what to do.
An error is raised with the fields of its template as keywords: ``raise ShapeMismatch(op="add", ...)``.
"""

from __future__ import annotations

from typing import Any, ClassVar


class KernelforgeError(Exception):
    """Base of all errors of this package.

    Args:
        loc: where in the user's file the operation was written, anything whose ``str`` reads ``file:line``.
        fields: the values of the placeholders in ``template``.
    """

    template: ClassVar[str] = "{message}"

    def __init__(self, *, loc: object | None = None, **fields: Any) -> None:
        self.loc = loc
        self.fields = fields
        text = self.template.format(**fields)
        super().__init__(f"{text}\n  at {loc}" if loc is not None else text)


class UnsupportedDtype(KernelforgeError, TypeError):
    template = "dtype {found} is not supported{where}; use one of {expected}"


class ShapeMismatch(KernelforgeError, ValueError):
    template = "{op}: shapes {found} do not fit; expected {expected}"


class DtypeMismatch(KernelforgeError, TypeError):
    template = "{op}: dtypes {found} do not fit; expected {expected}"


class InvalidParameter(KernelforgeError, ValueError):
    template = "{op}: {name}={found!r} is not valid; expected {expected}"


class UnknownPrimitive(KernelforgeError, KeyError):
    template = "no primitive is named {name!r}; kernelforge.ir.ops.PRIMITIVES lists them"

    def __str__(self) -> str:
        return str(self.args[0])


class DuplicatePrimitive(KernelforgeError, ValueError):
    template = "two primitives are named {name!r}; rename one of them"


class MalformedGraph(KernelforgeError, ValueError):
    template = "malformed graph: {problem}"


class MalformedKernel(KernelforgeError, ValueError):
    template = "malformed kernel {kernel}: {problem}"


class IllegalSchedule(KernelforgeError, ValueError):
    template = "schedule step {step}({target}) is not legal: {reason}"


class NotDifferentiable(KernelforgeError, TypeError):
    template = "{op} has no derivative: {reason}"
