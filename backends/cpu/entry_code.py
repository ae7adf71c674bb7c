"""The machine code behind ``entry``, as LLVM IR: match the arguments of a call against a table, and run a plan.

It is the same for every compiled function, so it is compiled once and travels with the pool's code. All it works on
are 64-bit words: objects, addresses and numbers alike. The functions of the interpreter come with the table, so the
code names nothing outside of itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kernelforge.backends.cpu.entry import ALIGNED, FEW, NDARRAY, TAKEN, TYPE, WORLD, WRITEABLE, Head, Kind
from kernelforge.ir.schedule.limits import LINE

_EQUAL = 2
"""``Py_EQ``."""

Word = str | int
"""A value or a literal."""


class _Code:
    """Instructions being written."""

    def __init__(self, world: str, cursor: str) -> None:
        self.lines: list[str] = []
        self.variables: list[str] = []
        self.count = 0
        self.world = world
        self.cursor = cursor

    def fresh(self, prefix: str = "v") -> str:
        self.count += 1
        return f"%{prefix}{self.count}"

    def put(self, line: str) -> None:
        self.lines.append(line)

    def ins(self, text: str) -> str:
        ref = self.fresh()
        self.put(f"{ref} = {text}")
        return ref

    def variable(self, value: Word) -> str:
        """Make a word that changes; returns its pointer."""
        ref = self.fresh("at")
        self.variables.append(f"{ref} = alloca i64, align 8")
        self.put(f"store i64 {value}, ptr {ref}")
        return ref

    def get(self, pointer: str) -> str:
        return self.ins(f"load i64, ptr {pointer}, align 8")

    def set(self, value: Word, pointer: str) -> None:
        self.put(f"store i64 {value}, ptr {pointer}, align 8")

    def add(self, x: Word, y: Word) -> str:
        return self.ins(f"add i64 {x}, {y}")

    def pointer(self, base: Word, offset: Word = 0) -> str:
        return self.ins(f"inttoptr i64 {self.add(base, offset)} to ptr")

    def load(self, base: Word, offset: Word = 0) -> str:
        return self.get(self.pointer(base, offset))

    def store(self, value: Word, base: Word, offset: Word = 0) -> None:
        self.set(value, self.pointer(base, offset))

    def half(self, base: Word, offset: Word) -> str:
        """Load a C int."""
        return self.ins(f"sext i32 {self.ins(f'load i32, ptr {self.pointer(base, offset)}, align 4')} to i64")

    def address(self, pointer: str) -> str:
        return self.ins(f"ptrtoint ptr {pointer} to i64")

    def bytes(self, words: Word) -> str:
        return self.ins(f"shl i64 {words}, 3")

    def next(self) -> str:
        """Read the next word of the table."""
        return self.pop(self.cursor)

    def pop(self, cursor: str) -> str:
        at = self.get(cursor)
        self.set(self.add(at, 8), cursor)
        return self.load(at)

    def push(self, value: Word, cursor: str) -> None:
        at = self.get(cursor)
        self.store(value, at)
        self.set(self.add(at, 8), cursor)

    def given(self, name: str) -> str:
        return self.load(self.world, 8 * WORLD.index(name))

    def invoke(self, function: str, *args: Word, result: str = "i64") -> str:
        code = self.pointer(function)
        call = f"call {result} {code}({', '.join(f'i64 {a}' for a in args)})"
        if result == "void":
            self.put(call)
            return ""
        return self.ins(call)

    def call(self, name: str, *args: Word, result: str = "i64") -> str:
        """Call a function of the interpreter."""
        return self.invoke(self.given(name), *args, result=result)

    def drop(self, obj: Word) -> None:
        self.call("Py_DecRef", obj, result="void")

    def field(self, obj: Word, name: str) -> str:
        """Return the object in a slot."""
        return self.load(obj, self.given(name))

    def own(self, value: Word, obj: Word, name: str) -> None:
        """Put an object into an empty slot, with its reference."""
        self.store(value, obj, self.given(name))

    def share(self, value: Word, obj: Word, name: str) -> None:
        """Put an object into an empty slot, with a reference of its own."""
        self.call("Py_IncRef", value, result="void")
        self.own(value, obj, name)

    def label(self, name: str) -> None:
        self.put(f"{name[1:]}:")

    def branch(self, condition: str, yes: str, no: str) -> None:
        self.put(f"br i1 {condition}, label {yes}, label {no}")

    def jump(self, to: str) -> None:
        self.put(f"br label {to}")

    def compare(self, how: str, x: Word, y: Word) -> str:
        return self.ins(f"icmp {how} i64 {x}, {y}")

    def require(self, how: str, x: Word, y: Word, otherwise: str) -> None:
        """Go on where the comparison holds."""
        on = self.fresh("on")
        self.branch(self.compare(how, x, y), on, otherwise)
        self.label(on)

    @contextlib.contextmanager
    def where(self, how: str, x: Word, y: Word) -> Iterator[None]:
        """Do the body only where the comparison holds."""
        then, after = self.fresh("then"), self.fresh("after")
        self.branch(self.compare(how, x, y), then, after)
        self.label(then)
        yield
        self.jump(after)
        self.label(after)

    @contextlib.contextmanager
    def times(self, count: Word) -> Iterator[str]:
        """Do the body for 0 .. count-1."""
        k = self.variable(0)
        head, body, done = self.fresh("head"), self.fresh("body"), self.fresh("done")
        self.jump(head)
        self.label(head)
        now = self.get(k)
        self.branch(self.compare("slt", now, count), body, done)
        self.label(body)
        yield now
        self.set(self.add(now, 1), k)
        self.jump(head)
        self.label(done)


_SLOW, _FAILED = "%slow", "%failed"


def _ndarray(c: _Code, x: str, number: str) -> str:
    c.require("eq", c.load(x, NDARRAY["descr"]), c.next(), _SLOW)
    nd = c.next()
    c.require("eq", c.half(x, NDARRAY["nd"]), nd, _SLOW)
    c.require("ne", c.ins(f"and i64 {c.half(x, NDARRAY['flags'])}, {ALIGNED}"), 0, _SLOW)
    for name in ("dims", "strides"):
        extents = c.load(x, NDARRAY[name])
        with c.times(nd) as k:
            c.require("eq", c.load(extents, c.bytes(k)), c.next(), _SLOW)
    return c.load(x, NDARRAY["data"])


def _array(c: _Code, x: str, number: str) -> str:
    c.require("eq", c.field(x, "Array.dtype"), c.next(), _SLOW)
    same = c.call("PyObject_RichCompareBool", c.field(x, "Array.shape"), c.next(), _EQUAL, result="i32")
    c.require("eq", c.ins(f"sext i32 {same} to i64"), 1, _SLOW)
    c.require("eq", c.field(c.field(x, "Array._buffer"), "Buffer.backend"), c.next(), _SLOW)
    return _held(c, c.field(x, "Array._buffer"))


def _float(c: _Code, x: str, number: str) -> str:
    value = c.call("PyFloat_AsDouble", x, result="double")
    c.put(f"store double {value}, ptr {c.pointer(number)}, align 8")
    return number


def _int(c: _Code, x: str, number: str) -> str:
    overflow = c.variable(0)
    c.store(c.call("PyLong_AsLongLongAndOverflow", x, c.address(overflow)), number)
    c.require("eq", c.half(c.address(overflow), 0), 0, _SLOW)
    return number


def _bool(c: _Code, x: str, number: str) -> str:
    value = c.ins(f"zext i1 {c.compare('eq', x, c.given('True'))} to i8")
    c.put(f"store i8 {value}, ptr {c.pointer(number)}, align 1")
    return number


_MATCH = {
    Kind.NDARRAY: _ndarray, Kind.ARRAY: _array, Kind.DONATED: _array, Kind.FLOAT: _float, Kind.INT: _int,
    Kind.BOOL: _bool,
}  # fmt: skip
"""Each reads what must be from the table and returns the address of the argument's elements."""


def _held(c: _Code, buffer: str) -> str:
    """Return the address of a buffer's memory."""
    return c.call("PyLong_AsVoidPtr", c.field(c.field(buffer, "Buffer.handle"), "Handle.address"))


def _new(c: _Code, kind: str) -> str:
    made = c.call("PyType_GenericAlloc", c.given(kind), 0)
    c.require("ne", made, 0, _FAILED)
    return made


def _alone(c: _Code, x: str, at: str, pooled: str) -> None:
    """Go on where nothing but the argument ``x``, at ``at``, has its memory: no view, no call, no other argument."""
    buffer = c.field(x, "Array._buffer")
    c.require("eq", c.load(buffer, TYPE), pooled, _SLOW)
    c.require("eq", c.half(buffer, 0), 1, _SLOW)
    with c.times("%n") as k, c.where("ne", k, at):
        c.require("ne", c.load("%args", c.bytes(k)), x, _SLOW)


def _result(c: _Code, results: str, k: str, buffers: str) -> str:
    """Make a result as the table says, put it among the others and return its memory's address.

    Every object goes into the one that owns it as soon as it is there, so dropping the results drops all. ``buffers``
    are those of donated arguments.
    """
    recipe = c.next()
    like = c.get(c.cursor)  # the two arguments of ``empty`` follow each other in the table
    shape, dtype, nbytes, backend = (c.next() for _ in range(4))
    address = c.variable(0)
    with c.where("eq", recipe, TAKEN):
        array = _new(c, "Array")
        c.call("PyTuple_SetItem", results, k, array, result="i32")
        c.share(shape, array, "Array.shape")
        c.share(dtype, array, "Array.dtype")
        c.share(c.given("None"), array, "Array._host")
        buffer = c.load(buffers, c.bytes(nbytes))
        c.share(buffer, array, "Array._buffer")
        c.set(_held(c, buffer), address)
    with c.where("ugt", recipe, TAKEN):
        array = c.call("PyObject_CallNoArgs", recipe)
        c.require("ne", array, 0, _FAILED)
        c.call("PyTuple_SetItem", results, k, array, result="i32")
        c.set(_held(c, c.field(array, "Array._buffer")), address)
    with c.where("eq", recipe, 0):
        array = _new(c, "Array")
        c.call("PyTuple_SetItem", results, k, array, result="i32")
        c.share(shape, array, "Array.shape")
        c.share(dtype, array, "Array.dtype")
        buffer = _new(c, "Buffer")
        c.own(buffer, array, "Array._buffer")
        c.share(backend, buffer, "Buffer.backend")
        c.share(nbytes, buffer, "Buffer.nbytes")
        handle = _new(c, "Handle")
        c.own(handle, buffer, "Buffer.handle")
        c.share(nbytes, handle, "Handle.nbytes")
        host = c.call("PyObject_Vectorcall", c.given("empty"), like, 2, 0)
        c.require("ne", host, 0, _FAILED)
        c.own(host, handle, "Handle.owner")
        c.share(host, array, "Array._host")
        flags = c.ins(f"trunc i64 {c.half(host, NDARRAY['flags'])} to i32")
        c.put(f"store i32 {c.ins(f'and i32 {flags}, {~WRITEABLE}')}, ptr {c.pointer(host, NDARRAY['flags'])}, align 4")
        c.set(c.load(host, NDARRAY["data"]), address)
        number = c.call("PyLong_FromVoidPtr", c.get(address))
        c.require("ne", number, 0, _FAILED)
        c.own(number, handle, "Handle.address")
    return c.get(address)


def entry_ir() -> str:
    """Return the function ``enter(table, arguments, how many, names)``, a ``METH_FASTCALL | METH_KEYWORDS`` builtin."""
    c = _Code("%world", "%cursor")
    c.put(f"%few = ptrtoint ptr %stack to i64\n%words = add i64 0, {c.load('%table', NDARRAY['data'])}")
    head = {name: c.load("%words", 8 * name) for name in Head}
    c.put(f"%world = add i64 0, {head[Head.WORLD]}")
    c.set(c.add("%words", 8 * len(Head)), c.cursor)
    heap, results, arena, scratch = c.variable(0), c.variable(0), c.variable(0), c.variable(0)
    pool, n = c.load(head[Head.POOL]), "%n"
    c.require("eq", "%names", 0, _SLOW)
    c.require("eq", n, head[Head.ARGUMENTS], _SLOW)
    c.require("ne", pool, 0, _SLOW)
    with c.times(head[Head.GUARDS]):
        variable, value, found = c.next(), c.next(), c.variable(0)
        c.call("PyContextVar_Get", variable, 0, c.address(found), result="i32")
        now = c.get(found)
        c.drop(now)
        c.require("eq", now, value, _SLOW)

    space = c.variable("%few")
    with c.where("sgt", head[Head.WORDS], FEW):
        made = c.call("PyMem_RawMalloc", c.bytes(head[Head.WORDS]))
        c.require("ne", made, 0, _SLOW)
        c.set(made, heap)
        c.set(made, space)
    memory = c.get(space)  # the plan's slots, then numbers and buffers of arguments, then the frame of a kernel
    numbers = c.add(memory, c.bytes(head[Head.SLOTS]))
    frame = c.add(numbers, c.bytes(n))
    slots = c.variable(memory)
    with c.times(n) as k:
        x = c.load("%args", c.bytes(k))
        kind = c.next()
        c.require("eq", c.load(x, TYPE), c.next(), _SLOW)
        number = c.add(numbers, c.bytes(k))
        for case, match in _MATCH.items():
            with c.where("eq", kind, case):
                c.push(match(c, x, number), slots)
        with c.where("eq", kind, Kind.DONATED):
            _alone(c, x, k, head[Head.POOLED])
    with c.times(head[Head.CONSTS]):
        c.push(c.next(), slots)

    kept = c.get(c.cursor)
    # another thread may call while results are made and kernels run: it finds nothing in what is donated
    with c.times(head[Head.GIVEN]):
        at = c.next()
        x = c.load("%args", c.bytes(at))
        c.store(c.field(x, "Array._buffer"), numbers, c.bytes(at))
        c.share(head[Head.GONE], x, "Array._buffer")
    with c.times(head[Head.READ]):
        at = c.next()
        buffer = c.field(c.load("%args", c.bytes(at)), "Array._buffer")
        c.call("Py_IncRef", buffer, result="void")
        c.store(buffer, numbers, c.bytes(at))
    held = c.add(head[Head.GIVEN], head[Head.READ])

    made = c.call("PyTuple_New", head[Head.OUTPUTS])
    c.set(made, results)
    c.require("ne", made, 0, _FAILED)
    with c.times(head[Head.OUTPUTS]) as k:
        c.push(_result(c, made, k, numbers), slots)
    base = c.variable(0)
    with c.where("ne", head[Head.ARENA], 0):
        buffer = c.call("PyObject_CallNoArgs", head[Head.ARENA])
        c.set(buffer, arena)
        c.require("ne", buffer, 0, _FAILED)
        c.set(_held(c, buffer), base)
    with c.where("ne", head[Head.SCRATCH], 0):
        room = c.call("PyMem_RawMalloc", head[Head.SCRATCH])
        c.set(room, scratch)
        with c.where("eq", room, 0):
            c.call("PyErr_NoMemory")
        c.require("ne", room, 0, _FAILED)
        c.set(c.ins(f"and i64 {c.add(room, LINE)}, {-LINE}"), base)
    c.push(c.get(base), slots)
    with c.times(head[Head.PLACES]):
        c.push(c.add(c.load(memory, c.bytes(c.next())), c.next()), slots)

    state = c.variable(0)
    with c.where("ne", head[Head.HEAVY], 0):
        c.set(c.call("PyEval_SaveThread"), state)
    with c.times(head[Head.STEPS]):
        code, count = c.next(), c.next()
        with c.times(count) as k:
            c.store(c.load(memory, c.bytes(c.next())), frame, c.bytes(k))
        c.invoke(code, frame, pool, result="void")
    with c.where("ne", head[Head.HEAVY], 0):
        c.call("PyEval_RestoreThread", c.get(state), result="void")

    answer = c.variable(0)
    with c.where("eq", head[Head.FINISH], 0):
        only = c.call("PyTuple_GetItem", made, 0)
        c.call("Py_IncRef", only, result="void")
        c.set(only, answer)
    with c.where("ne", head[Head.FINISH], 0):
        c.set(c.call("PyObject_CallOneArg", head[Head.FINISH], made), answer)
    c.drop(made)
    _let_go(c, kept, held, numbers)
    _clean(c, arena, scratch, heap)
    c.put(f"ret i64 {c.get(answer)}")

    c.label(_FAILED)
    with c.where("ne", c.get(results), 0):
        c.drop(c.get(results))
    _let_go(c, kept, held, numbers)
    _clean(c, arena, scratch, heap)
    c.put("ret i64 0")

    c.label(_SLOW)
    _clean(c, arena, scratch, heap)
    c.put(f"ret i64 {c.call('PyObject_Vectorcall', head[Head.OTHERWISE], '%args', n, '%names')}")
    body = "\n".join(
        [f"%stack = alloca [{FEW} x i64], align 8", "%cursor = alloca i64, align 8", *c.variables, *c.lines]
    )
    return f"define i64 @enter(i64 %table, i64 %args, i64 %n, i64 %names) #0 {{\nentry:\n{body}\n}}\n"


def _let_go(c: _Code, kept: str, count: str, buffers: str) -> None:
    """Drop the buffers of arguments whose places begin at ``kept``."""
    with c.times(count) as k:
        c.drop(c.load(buffers, c.bytes(c.load(kept, c.bytes(k)))))


def _clean(c: _Code, arena: str, scratch: str, heap: str) -> None:
    with c.where("ne", c.get(arena), 0):
        c.drop(c.get(arena))
    for memory in (scratch, heap):
        with c.where("ne", c.get(memory), 0):
            c.call("PyMem_RawFree", c.get(memory), result="void")
