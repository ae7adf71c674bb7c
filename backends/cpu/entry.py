"""Calls that go from the interpreter to kernels by machine code alone.

The code (``entry_code``) is one builtin for all compiled functions; here is the table it walks for one of them. The
table tells what each argument must be, where constants are, what results are like and which kernels run; where an
argument is something else, the call goes to a function in Python that takes everything.

The code reads fields of NumPy's arrays, as NumPy's headers promise extensions, and of instances of classes with
``__slots__``, found by looking. Both are tried on examples first: where they are elsewhere, as in interpreters without
a GIL or other than CPython, there are no entries, and calls are as right as they were.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernelforge.backends.base import Call, Guards, Result
from kernelforge.backends.cpu.threads import POOL
from kernelforge.ir.schedule.limits import LINE

Function = Callable[..., Any]

EMPTY = np.empty
"""NumPy's own: while a function is traced, which may be when the first entry is made, another one stands there."""

TYPE = 8
NDARRAY = {"data": 16, "nd": 24, "dims": 32, "strides": 40, "descr": 56, "flags": 64}
"""Offsets of an object's type and of an array's fields (``PyArrayObject_fields`` of NumPy's ``ndarraytypes.h``)."""
ALIGNED, WRITEABLE = 0x100, 0x400
"""``NPY_ARRAY_ALIGNED`` and ``NPY_ARRAY_WRITEABLE``."""

FEW = 64
"""Words of a call that lie on the stack; more are allocated."""
SMALL = 1 << 15
"""Bytes of a result, or of an arena, up to which the system's allocator is as fast as the pool or faster: it maps no
pages for them, and no object of the interpreter holds them.
"""
HEAVY = 1 << 16
"""Bytes and operations, a microsecond or some, from which on a call releases the GIL."""

FUNCTIONS = (
    "Py_IncRef", "Py_DecRef", "PyObject_Vectorcall", "PyObject_CallOneArg", "PyObject_CallNoArgs",
    "PyObject_RichCompareBool", "PyContextVar_Get", "PyFloat_AsDouble", "PyLong_AsLongLongAndOverflow",
    "PyLong_AsVoidPtr", "PyLong_FromVoidPtr", "PyTuple_New", "PyTuple_SetItem", "PyTuple_GetItem",
    "PyType_GenericAlloc", "PyMem_RawMalloc", "PyMem_RawFree", "PyErr_NoMemory", "PyEval_SaveThread",
    "PyEval_RestoreThread",
)  # fmt: skip
FIELDS = {
    "Array": ("_buffer", "_host", "shape", "dtype"),
    "Buffer": ("backend", "handle", "nbytes"),
    "Handle": ("address", "nbytes", "owner"),
}
WORLD = (
    *FUNCTIONS,
    "empty",
    "True",
    "None",
    *FIELDS,
    *(f"{k}.{name}" for k, names in FIELDS.items() for name in names),
)
"""What all tables share: functions of the interpreter, objects, classes, and where the slots of their instances are."""


class Head(enum.IntEnum):
    """The words a table starts with."""

    WORLD = 0
    OTHERWISE = 1
    POOL = 2
    GUARDS = 3
    ARGUMENTS = 4
    CONSTS = 5
    OUTPUTS = 6
    ARENA = 7
    PLACES = 8
    STEPS = 9
    SLOTS = 10
    WORDS = 11
    HEAVY = 12
    FINISH = 13
    POOLED = 14
    GONE = 15
    GIVEN = 16
    READ = 17
    SCRATCH = 18


class Kind(enum.IntEnum):
    """What an argument is."""

    NDARRAY = 0
    ARRAY = 1
    FLOAT = 2
    INT = 3
    BOOL = 4
    DONATED = 5


TAKEN = 1
"""Stands where the address of what makes a result stands else: the result is made in the memory of an argument."""

_NUMBERS = {float: Kind.FLOAT, int: Kind.INT, bool: Kind.BOOL}


class _Definition(ctypes.Structure):
    """``PyMethodDef``."""

    _fields_ = (("name", ctypes.c_char_p), ("code", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


_FASTCALL, _KEYWORDS = 0x80, 0x02


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def _half(address: int) -> int:
    return ctypes.c_int32.from_address(address).value


def supported() -> bool:
    """Whether objects of this interpreter are what the code takes them for."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    if object.__basicsize__ != TYPE + 8:  # without a GIL objects begin otherwise
        return False
    if not all(hasattr(ctypes.pythonapi, name) for name in (*FUNCTIONS, "PyCMethod_New")):
        return False
    return _as_expected(np.zeros((3, 5), np.float32)[::2, ::-1]) and _as_expected(np.zeros((), np.int64))


def _as_expected(x: np.ndarray[Any, Any]) -> bool:
    at = id(x)
    nd, dims, strides = _half(at + NDARRAY["nd"]), _word(at + NDARRAY["dims"]), _word(at + NDARRAY["strides"])
    if nd != x.ndim or _word(at + TYPE) != id(np.ndarray) or _word(at + NDARRAY["descr"]) != id(x.dtype):
        return False
    if _word(at + NDARRAY["data"]) != x.__array_interface__["data"][0]:
        return False
    before = _half(at + NDARRAY["flags"])
    x.flags.writeable = False
    if before & ~_half(at + NDARRAY["flags"]) != WRITEABLE or not before & ALIGNED:
        return False
    return (
        tuple(_word(dims + 8 * k) for k in range(nd)) == x.shape
        and tuple(_word(strides + 8 * k) for k in range(nd)) == x.strides
    )


def _slots(kind: type, names: Sequence[str]) -> list[int]:
    """Return where in an instance its slots are.

    Raises:
        LookupError: where they are not to be found.
    """
    found = []
    for name in names:
        x: Any = object.__new__(kind)
        mark = object()
        setattr(x, name, mark)
        offsets = [at for at in range(TYPE + 8, kind.__basicsize__, 8) if _word(id(x) + at) == id(mark)]
        if len(offsets) != 1:
            raise LookupError(name)
        found += offsets
    return found


@functools.cache
def _world(array: type, buffer: type, handle: type) -> ctypes.Array[Any] | None:
    """Make the words that tables share; None where there can be no entries."""
    if not supported():
        return None
    kinds = dict(zip(FIELDS, (array, buffer, handle), strict=True))
    known = {name: ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0 for name in FUNCTIONS}
    known |= {"empty": id(EMPTY), "True": id(True), "None": id(None)}
    for name, kind in kinds.items():
        known[name] = id(kind)
        try:
            offsets = _slots(kind, FIELDS[name])
        except LookupError:
            return None
        known |= {f"{name}.{field}": at for field, at in zip(FIELDS[name], offsets, strict=True)}
    return (ctypes.c_int64 * len(WORLD))(*(known[name] for name in WORLD))


class Entry:
    """The tables of one plan; they differ in what a call is made under, and where it goes if it does not match."""

    def __init__(self, call: Call, like: Sequence[Any], world: ctypes.Array[Any], code: int) -> None:
        self._definition = _definition(code)
        self._refs: list[Any] = [world, call]
        arguments = [word for k, x in enumerate(like) for word in self._argument(x, call.array, k in call.given)]
        results = [word for result in call.results for word in self._result(result, call.backend, bool(call.given))]
        # another thread may donate these while the call has no GIL
        read = [k for k, x in enumerate(like) if type(x) is call.array and k not in call.given and call.work > HEAVY]
        slots = len(like) + len(call.consts) + len(call.results) + 1 + len(call.places)
        frame = max((len(taken) for _, taken in call.launches), default=0)
        steps = [w for executable, taken in call.launches for w in (executable.address, len(taken), *taken)]
        self._head = {
            Head.WORLD: ctypes.addressof(world),
            Head.POOL: ctypes.addressof(POOL.word),
            Head.ARGUMENTS: len(like),
            Head.CONSTS: len(call.consts),
            Head.OUTPUTS: len(call.results),
            Head.ARENA: 0 if call.arena is None or call.room <= SMALL else id(call.arena),
            Head.PLACES: len(call.places),
            Head.STEPS: len(call.launches),
            Head.SLOTS: slots,
            Head.WORDS: slots + len(like) + frame,
            Head.HEAVY: int(call.work > HEAVY),
            Head.FINISH: 0 if call.finish is None else id(call.finish),
            Head.POOLED: id(call.pooled),
            Head.GONE: id(call.gone),
            Head.GIVEN: len(call.given),
            Head.READ: len(read),
            Head.SCRATCH: call.room + LINE if 0 < call.room <= SMALL else 0,
        }
        consts = [h.address for h in call.consts]
        self._rest = [*arguments, *consts, *call.given, *read, *results, *itertools.chain(*call.places), *steps]

    def _argument(self, x: Any, array: type, donated: bool) -> list[int]:
        """Say what an argument must be; one that ``x`` is itself."""
        kind = type(x)
        if kind in _NUMBERS:
            return [_NUMBERS[kind], id(kind)]
        if kind is array:
            parts = (x.dtype, x.shape, x._buffer.backend)
            self._refs.append(parts)
            return [Kind.DONATED if donated else Kind.ARRAY, id(kind), *map(id, parts)]
        self._refs.append(x.dtype)
        return [Kind.NDARRAY, id(kind), id(x.dtype), x.ndim, *x.shape, *x.strides]

    def _result(self, result: Result, backend: Any, pooled: bool) -> list[int]:
        parts = (result.make, result.shape, result.dtype, result.nbytes, backend)
        self._refs.append(parts)
        if result.taken is not None:
            return [TAKEN, id(result.shape), id(result.dtype), result.taken, 0]
        # what is donated next must be the pool's
        return [0 if result.nbytes <= SMALL and not pooled else id(parts[0]), *map(id, parts[1:])]

    def under(self, guards: Guards, otherwise: Function) -> Function:
        """Return what calls the plan, or ``otherwise`` when a guard does not hold or an argument is not as it must be.

        Args:
            guards: context variables and the objects that they must have as values.
            otherwise: is given all arguments of a call, by position and by name.
        """
        head = {**self._head, Head.OTHERWISE: id(otherwise), Head.GUARDS: len(guards)}
        held = [id(x) for guard in guards for x in guard]
        words = np.array([*(head[name] for name in Head), *held, *self._rest], np.int64)
        # the table is the builtin's self; what it has addresses of is its module, for the garbage collector to see
        refs = (otherwise, guards, self._refs)
        made: Function = _new(ctypes.addressof(self._definition), words, refs, None)
        return made


@functools.cache
def _definition(code: int) -> _Definition:
    return _Definition(b"entry", code, _FASTCALL | _KEYWORDS, None)


def _new(definition: int, table: Any, refs: Any, cls: None) -> Function:
    make = ctypes.pythonapi.PyCMethod_New
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.py_object, ctypes.c_void_p]
    made: Function = make(definition, table, refs, cls)
    return made


def entry(call: Call, like: Sequence[Any], handle: type) -> Entry | None:
    """Make the entry of a plan for arguments like these; None where the interpreter is not one it knows."""
    world = _world(call.array, call.buffer, handle)
    code = POOL.symbol("enter")
    return Entry(call, like, world, code) if world is not None and code else None
