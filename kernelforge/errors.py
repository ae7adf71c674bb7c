"""Every exception of the package, each with the template of its one message.

A message says what was wrong, where in the user's file, what was found, what was expected and what to do.
An error is raised with the fields of its template as keywords, ``raise ShapeMismatch(op="add", ...)``, and finds the
line of the user's file by itself.
"""

from __future__ import annotations

from typing import Any, ClassVar

from numpy.exceptions import AxisError

from kernelforge.lines import Loc, user_line


class KernelforgeError(Exception):
    """Base of all errors of this package.

    Args:
        loc: where in the user's file the operation was written, if that is not the line that runs now.
        fields: the values of the placeholders in ``template``.
    """

    template: ClassVar[str] = "{message}"

    placed: ClassVar[bool] = True
    """Whether a line of the user's file says where the mistake is."""

    def __init__(self, *, loc: Loc | None = None, **fields: Any) -> None:
        self.loc = loc or (user_line() if self.placed else None)
        self.fields = fields
        self.text = self.template.format(**fields)
        super().__init__(self.text if self.loc is None else f"{self.text}\n  at {self.loc}")

    def __reduce__(self) -> Any:
        # the fields stay in this process: they may be of devices
        return _again, (type(self), *self.args), {"loc": self.loc, "fields": {}, "text": self.text}


def _again(kind: type[KernelforgeError], message: str) -> KernelforgeError:
    return kind.__new__(kind, message)


class UnsupportedDtype(KernelforgeError, TypeError):
    template = "dtype {found} is not supported{where}; use one of {expected}"


class ShapeMismatch(KernelforgeError, ValueError):
    template = "{op}: shapes {found} do not fit; expected {expected}"


class ArrayTooLarge(KernelforgeError, ValueError):
    template = "{op}: an array {found} has more bytes than 64-bit indices reach; use smaller extents"


class DtypeMismatch(KernelforgeError, TypeError):
    template = "{op}: dtypes {found} do not fit; expected {expected}"


class InvalidParameter(KernelforgeError, ValueError):
    template = "{op}: {name}={found!r} is not valid; expected {expected}"


class InvalidCall(KernelforgeError, TypeError, ValueError):
    template = "{op}({given}): {reason}; its parameters are ({expected})"


class InvalidAxis(KernelforgeError, AxisError):
    template = "{op}: axis {found} is none of an array of {count} axes; expected {expected}"


class UnknownPrimitive(KernelforgeError, KeyError):
    template = "no primitive is named {name!r}; kernelforge.ir.ops.PRIMITIVES lists them"
    placed = False

    def __str__(self) -> str:
        return str(self.args[0])


class MalformedGraph(KernelforgeError, ValueError):
    template = "malformed graph: {problem}"
    placed = False


class MalformedKernel(KernelforgeError, ValueError):
    template = "malformed kernel {kernel}: {problem}"
    placed = False


class MalformedText(KernelforgeError, ValueError):
    template = "line {line} of the text: found {found}; expected {expected}"
    placed = False


class OutOfRange(KernelforgeError, IndexError):
    template = "kernel {kernel}: {access} {buffer}[{found}] is out of range; expected an index within {expected}: a lowering or schedule step made it"
    placed = False


class IllegalSchedule(KernelforgeError, ValueError):
    template = "schedule step {step}({target}) is not legal: {reason}"
    placed = False


class NotDifferentiable(KernelforgeError, TypeError):
    template = "{op} has no derivative: {reason}"


class RepeatedArgnums(KernelforgeError, ValueError):
    template = "{what}: argnums={found} names an argument twice; name each one once"


class ArgnumsOutOfRange(KernelforgeError, TypeError):
    template = "{what}: argnums={found} names no argument of a call with {count} positional ones, which count from 0"


class NotFloat(KernelforgeError, TypeError):
    template = "{what}: {name} is {found}; expected an array of floats to differentiate by: cast it with .astype, or leave it out"


class NotScalar(KernelforgeError, TypeError):
    template = (
        "grad: {function} returned {found}; expected one float of shape (): sum it, return the rest with has_aux=True, "
        "or use vjp or jacrev"
    )


class ExpectedPair(KernelforgeError, TypeError):
    template = "{what}: {function} returned {found}; expected a tuple of two: {expected}"


class TreeMismatch(KernelforgeError, TypeError):
    template = "{what}: {name} has the structure {found}; expected {expected}"


class LeafMismatch(KernelforgeError, TypeError):
    template = "{what}: {name} is {found}; expected {expected}"


class RuleMissing(KernelforgeError, TypeError):
    template = "custom_vjp function {function} has no derivative rule; give it one with {function}.defvjp(fwd, bwd)"


class KeywordOnly(KernelforgeError, TypeError):
    template = "custom_vjp function {function} was given keyword-only arguments {found}; expected arguments that can be positional: take away the * before them, or bind them with functools.partial"


class CarryMismatch(KernelforgeError, TypeError):
    template = "{what}: {name} goes in as {expected} and comes out of the body as {found}; cast it to one type before the loop or at its end"


class BranchMismatch(KernelforgeError, TypeError):
    template = "cond: {name} is {found} from false_fun and {expected} from true_fun; make both return one type"


class NotAPredicate(KernelforgeError, TypeError):
    template = (
        "{what}: {name} is {found}; expected one bool of shape (): compare it, or reduce it with .any() or .all()"
    )


class LengthMismatch(KernelforgeError, ValueError):
    template = "scan: {name} has {found} along axis 0; expected {expected}"


class MissingExtra(KernelforgeError, ImportError):
    template = "{what} needs {package}, which is not installed; pip install 'kernelforge[{extra}]'"
    placed = False


class CheckFailed(KernelforgeError, AssertionError):
    template = "{function} on {device}: {problem}\n\n{code}"
    placed = False


class BackendFailed(KernelforgeError, AssertionError):
    template = "device {device} failed {failed} of {count} checks:\n  {failures}"
    placed = False


class CompilationFailed(KernelforgeError, RuntimeError):
    template = "kernel {kernel} does not compile for {device}: {log}{source}"
    placed = False


class DamagedBinary(KernelforgeError, ValueError):
    template = "the binary of kernel {kernel} is not usable: {problem}; compile it afresh"
    placed = False


class DamagedTuning(KernelforgeError, ValueError):
    template = "{file} does not hold what kf.tune writes: {problem}; remove it, and tune again"
    placed = False


class DeviceOutOfMemory(KernelforgeError, MemoryError):
    template = "{device} has no room for {nbytes} bytes; free arrays or use smaller ones"
    placed = False


class DeviceFailed(KernelforgeError, RuntimeError):
    template = (
        "{device} failed at {what}: {reason}; a kernel that was queued before may be the cause. After an invalid access "
        "the device works again in a new process only"
    )
    placed = False


class DeviceUnavailable(KernelforgeError, RuntimeError):
    template = "{reason}"
    placed = False


class DeviceForked(KernelforgeError, RuntimeError):
    template = (
        "{device} was opened before this process was forked, and its driver's threads did not come along; "
        "start processes with multiprocessing's spawn, or use the device in the child only"
    )
    placed = False


class UnknownDevice(KernelforgeError, LookupError):
    template = "no device is named {name!r}; there are {expected}{reason}"
    placed = False


class UnknownTarget(KernelforgeError, LookupError):
    template = "no target is named {name!r}; there are {expected}{reason}"
    placed = False


class CompilerMissing(KernelforgeError, RuntimeError):
    template = "{compiler} is needed: {problem}; {how}"
    placed = False


class DeviceClash(KernelforgeError, ValueError):
    template = "the device name {name!r} is claimed by both {first} and {second}; uninstall one of them"
    placed = False


class TracedTruth(KernelforgeError, TypeError):
    template = (
        "the truth of a traced array ({found}) is not known while a function is compiled; choose between arrays with np.where, "
        "between branches with kf.cond, repeat with kf.while_loop, or name the argument in static_argnames"
    )


class TracedNumber(KernelforgeError, TypeError):
    template = (
        "{what} needs the value of a traced array ({found}), which is not known while a function is compiled; keep it an "
        "array (np.sqrt in place of math.sqrt, x.astype in place of float, np.take(table, i, 0) in place of table[i]), "
        "or name the argument in static_argnames"
    )


class TracedArray(KernelforgeError, TypeError):
    template = (
        "a traced array ({found}) cannot become a NumPy array while a function is compiled; use functions of numpy or "
        "kernelforge.numpy, x.astype(np.uint8) in place of np.uint8(x), np.take(table, i, 0) in place of table[i] where "
        "table is a NumPy array, and make arrays to write into with np.zeros or np.empty inside of the function"
    )


class TracedStream(KernelforgeError, RuntimeError):
    template = (
        "kernelforge.random.next_key() was called while a function is compiled, where one key would serve all calls of it; "
        "make the key an argument of the function, and call it with next_key() or kf.random.key(seed)"
    )


class LeakedTracer(KernelforgeError, RuntimeError):
    template = (
        "a traced array ({found}) is used after the function it belongs to was compiled; return it from the function in place of "
        "keeping it in a variable outside"
    )


class ReadOnlyArray(KernelforgeError, ValueError):
    template = (
        "{found} was not made in this function, and a compiled function changes no array but its own; "
        "write x = x.copy() first, or x = x.at[index].set(value)"
    )


class WriteThroughView(KernelforgeError, ValueError):
    template = (
        "{found} is a view, and writing to it would change another array; write to that array by an index "
        "(a[:, 0] = v in place of b = a.T; b[0] = v), or make it an array of its own with .copy()"
    )


class StaleView(KernelforgeError, RuntimeError):
    template = "{found} is a view of an array that was written to since; take it after the write, or make it an array of its own with .copy()"


class UnsupportedFunction(KernelforgeError, TypeError):
    template = "{name} is not supported in compiled functions{reason}"


class NotForArrays(UnsupportedFunction):
    template = "{name} is not there for arrays of a device; pass np.asarray(x), of which NumPy computes it"


class UnsupportedAttribute(KernelforgeError, AttributeError):
    template = "{found} has no {name}, which NumPy's arrays have: {instead}"


class UnsupportedArgument(KernelforgeError, TypeError):
    template = "{op}: {name}={found} is not supported; {expected}"


class NumberOutOfRange(KernelforgeError, OverflowError):
    template = "{op}: the Python number {found} does not fit {dtype}; cast the array to a wider dtype first"


class UnsafeCast(KernelforgeError, TypeError):
    template = (
        "{op}: {found} cannot be written into an array of {expected} in place; write a = a + v, or cast v with .astype"
    )


class IndexOutOfRange(KernelforgeError, IndexError):
    template = "index {found} is out of range for axis {axis} of {extent} elements"


class InvalidIndex(KernelforgeError, IndexError):
    template = "{found} is not a valid index for an array of shape {shape}; {expected}"


class TracedMask(KernelforgeError, TypeError):
    template = (
        "x[mask] has a shape that depends on the values of a traced mask, so it takes part in elementwise functions, total "
        "sums and x[mask] = ... by the same mask alone; write np.where(mask, x, 0), or np.max(x, where=mask, initial=0)"
    )


class InvalidArgument(KernelforgeError, TypeError):
    template = "{name} is {found}; expected arrays, numbers and pytrees of them: convert it, or name the argument in static_argnames"


class InvalidResult(KernelforgeError, TypeError):
    template = "{function} returned {found} at {name}; expected arrays, numbers and pytrees of them"


class UnhashableStatic(KernelforgeError, TypeError):
    template = "the static argument {name} is of the type {found}, which cannot be hashed; pass a tuple or another immutable value, or an array as an ordinary argument"


class UnknownParameter(KernelforgeError, ValueError):
    template = "{kind} argument {name!r} is no parameter of {function}, which has {expected}"


class DonatedArray(KernelforgeError, RuntimeError):
    template = (
        "this array was donated to a compiled function, which may write to its memory; use the results of that call, "
        "or donate a copy"
    )


class CannotDonate(KernelforgeError, ValueError):
    template = "{name} is donated and {problem}; pass a copy of it, or leave it out of donate_argnames"


class MixedDevices(KernelforgeError, ValueError):
    template = "arrays of {first} and of {second} meet in one call; move one of them with .to_device"


class ImmutableArray(KernelforgeError, TypeError):
    template = "an Array is immutable; write x = x.at[index].set(value), or x = x + v in place of x += v"


class UnsupportedOnDevice(KernelforgeError, TypeError):
    template = "{device} has no {dtype}, only {supported}; cast the array, or choose another device"


class CommandFailed(KernelforgeError):
    template = "{problem}; {advice}"
    placed = False
