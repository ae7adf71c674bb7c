"""Object files to callable code, without the compiler.

Importing llvmlite costs more than everything else a warm start does, so on Linux the sections of an ELF object
are mapped and relocated here. Elsewhere, and for a relocation unknown here, LLVM's own loader does it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import mmap
import platform
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from kernelforge.errors import CompilationFailed, DamagedBinary
from kernelforge.ir.kernel import MATH_BINARY, MATH_UNARY

MAGIC = b"kfcpu001"
_DIGEST = 16

_SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS = 2, 4, 8
_SHF_ALLOC = 2
_PAGE = mmap.PAGESIZE


def pack(objects: Sequence[bytes], fingerprint: str) -> bytes:
    """Wrap object files for the disk: magic, digest, then each with its length before it."""
    body = b"".join(struct.pack("<Q", len(obj)) + obj for obj in objects)
    return MAGIC + _digest(body, fingerprint) + body


def unpack(binary: bytes, kernel: str, fingerprint: str) -> list[bytes]:
    """Return the object files of a packed binary.

    Raises:
        DamagedBinary: when a byte is not as it was written, or it was compiled for another machine.
    """
    head = len(MAGIC) + _DIGEST
    if len(binary) < head or not binary.startswith(MAGIC):
        raise DamagedBinary(kernel=kernel, problem="it has no header")
    body = binary[head:]
    if binary[len(MAGIC) : head] != _digest(body, fingerprint):
        raise DamagedBinary(kernel=kernel, problem="its checksum does not match its content and this machine")
    objects = []
    while body:
        size = struct.unpack_from("<Q", body)[0]
        objects.append(body[8 : 8 + size])
        body = body[8 + size :]
    return objects


def _digest(body: bytes, fingerprint: str) -> bytes:
    return hashlib.blake2b(
        body, digest_size=_DIGEST, key=hashlib.blake2b(fingerprint.encode(), digest_size=16).digest()
    ).digest()


class Code(NamedTuple):
    """Loaded code; it is there as long as ``owner`` is."""

    symbols: dict[str, int]
    owner: Any


class _MissingSymbolError(Exception):
    """An external function that is nowhere; the argument is its name."""


class _UnknownRelocationError(Exception):
    """A relocation that this loader does not do; LLVM's does."""


def load(obj: bytes, kernel: str) -> Code:
    """Map an object file and return the addresses of its global functions.

    Raises:
        DamagedBinary: when it is not an object file for this machine.
        CompilationFailed: when it calls a function that the C library does not have.
    """
    if sys.platform == "linux":
        try:
            return _load_elf(obj)
        except (struct.error, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
            raise DamagedBinary(kernel=kernel, problem=f"it is not a whole ELF object ({error})") from error
        except _MissingSymbolError as error:
            log = f"the C library here has no function {error}"
            raise CompilationFailed(kernel=kernel, device="cpu", log=log, source="") from None
        except _UnknownRelocationError:
            pass
    return _load_llvm(obj)


@functools.cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    if sys.platform == "win32":
        return (ctypes.CDLL("ucrtbase"), ctypes.CDLL("kernelbase"))
    found = [ctypes.CDLL(None)]
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # musl has it all in one library
            found.append(ctypes.CDLL("libm.so.6"))
    return tuple(found)


def external(name: str) -> int:
    """Return the address of a function of the C library.

    Raises:
        _MissingSymbolError: when there is none of that name.
    """
    for library in _libraries():
        try:
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        except AttributeError:
            continue
    raise _MissingSymbolError(name)


class _Section(NamedTuple):
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


def _load_elf(obj: bytes) -> Code:
    if obj[:6] != b"\x7fELF\x02\x01":
        raise IndexError("no ELF header")
    machine = struct.unpack_from("<H", obj, 18)[0]
    stub, relocate = _MACHINES.get(machine, (b"", None))
    if relocate is None:
        raise _UnknownRelocationError
    table, _, _, _, _, width, count = struct.unpack_from("<QIHHHHH", obj, 40)
    sections = []
    for k in range(count):
        fields = struct.unpack_from("<IIQQQQIIQQ", obj, table + k * width)
        sections.append(_Section(fields[1], fields[2], fields[4], fields[5], fields[6], fields[7], fields[8]))
    # unwind tables are the last thing anyone needs here, and the only sections that name others' addresses absolutely
    names = sections[struct.unpack_from("<H", obj, 62)[0]]
    keep = {}
    size = 0
    for k, s in enumerate(sections):
        if s.flags & _SHF_ALLOC and not _name(
            obj, names, struct.unpack_from("<I", obj, table + k * width)[0]
        ).startswith(".eh_frame"):
            size = -(-size // max(s.align, 1)) * max(s.align, 1)
            keep[k] = size
            size += s.size
    symtab = next(s for s in sections if s.kind == _SHT_SYMTAB)
    strings = sections[symtab.link]
    symbols: list[tuple[str, int, int, int]] = []
    for at in range(symtab.offset, symtab.offset + symtab.size, 24):
        name, info, _, shndx, value, _ = struct.unpack_from("<IBBHQQ", obj, at)
        symbols.append((_name(obj, strings, name), info, shndx, value))
    # one slot for each external function: its address, then a jump there
    slots = -(-size // 16) * 16
    outside = {s[0]: slots + 32 * k for k, s in enumerate(s for s in symbols if s[2] == 0 and s[0])}
    total = slots + 32 * len(outside)
    memory = mmap.mmap(-1, -(-max(total, 1) // _PAGE) * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = ctypes.c_char.from_buffer(memory)
    base = ctypes.addressof(view)
    for k, start in keep.items():
        s = sections[k]
        if s.kind != _SHT_NOBITS:
            content = obj[s.offset : s.offset + s.size]
            if len(content) != s.size:
                raise IndexError("a section is cut off")
            memory[start : start + s.size] = content
    for name, start in outside.items():
        memory[start : start + 8 + len(stub)] = struct.pack("<Q", external(name)) + stub
    for s in sections:
        if s.kind != _SHT_RELA or s.info not in keep:
            continue
        for at in range(s.offset, s.offset + s.size, 24):
            offset, info, addend = struct.unpack_from("<QQq", obj, at)
            name, _, shndx, value = symbols[info >> 32]
            if offset >= sections[s.info].size:
                raise IndexError("a relocation is out of its section")
            slot = base + outside[name] if shndx == 0 else 0
            target = slot + 8 if shndx == 0 else base + keep[shndx] + value
            relocate(memory, keep[s.info] + offset, info & 0xFFFFFFFF, base, target, addend, slot)
    _protect(base, len(memory))
    found = {name: base + keep[shndx] + value for name, info, shndx, value in symbols if info == 0x12 and shndx in keep}
    return Code(found, (memory, view))


def _name(obj: bytes, strings: _Section, at: int) -> str:
    start = strings.offset + at
    return obj[start : obj.index(b"\0", start)].decode()


def _x86_64(memory: mmap.mmap, at: int, kind: int, base: int, target: int, addend: int, slot: int) -> None:
    """Do a relocation of the System V ABI for AMD64, table 4.9."""
    place = base + at
    if kind == 1:  # R_X86_64_64
        memory[at : at + 8] = struct.pack("<Q", (target + addend) % 2**64)
    elif kind in (2, 4):  # PC32, PLT32
        memory[at : at + 4] = struct.pack("<i", target + addend - place)
    elif kind in (9, 41, 42) and slot:  # GOTPCREL, GOTPCRELX, REX_GOTPCRELX
        memory[at : at + 4] = struct.pack("<i", slot + addend - place)
    elif kind == 24:  # PC64
        memory[at : at + 8] = struct.pack("<q", target + addend - place)
    else:
        raise _UnknownRelocationError


def _aarch64(memory: mmap.mmap, at: int, kind: int, base: int, target: int, addend: int, slot: int) -> None:
    """Do a relocation of the ELF for the Arm 64-bit Architecture, section 5.7."""
    place = base + at
    if kind in (311, 312):  # ADR_GOT_PAGE, LD64_GOT_LO12_NC
        if not slot:
            raise _UnknownRelocationError
        target, kind = slot, 275 if kind == 311 else 286
    value = target + addend
    if kind == 257:  # ABS64
        memory[at : at + 8] = struct.pack("<Q", value % 2**64)
        return
    if kind == 260:  # PREL64
        memory[at : at + 8] = struct.pack("<q", value - place)
        return
    if kind == 261:  # PREL32
        memory[at : at + 4] = struct.pack("<i", value - place)
        return
    word = struct.unpack_from("<I", memory, at)[0]
    if kind in (282, 283):  # JUMP26, CALL26
        word = word & 0xFC000000 | (value - place) >> 2 & 0x3FFFFFF
    elif kind == 275:  # ADR_PREL_PG_HI21
        pages = (value >> 12) - (place >> 12)
        word = word & 0x9F00001F | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
    elif kind in _LOW12:
        word = word & 0xFFC003FF | (value & 0xFFF) >> _LOW12[kind] << 10
    else:
        raise _UnknownRelocationError
    memory[at : at + 4] = struct.pack("<I", word)


_LOW12 = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
"""The relocations of a load's, store's or addition's low 12 bits, with the scale of the instruction's offset."""

_MACHINES = {
    62: (b"\xff\x25\xf2\xff\xff\xff", _x86_64),  # jmp [rip - 14], the slot
    183: (struct.pack("<II", 0x58FFFFD0, 0xD61F0200), _aarch64),  # ldr x16, the slot; br x16
}
"""By ELF machine: the jump that stands after an external function's address, and how relocations are done."""


def _protect(base: int, size: int) -> None:
    """Make the memory executable and no longer writable."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.mprotect(base, size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise _UnknownRelocationError
    if platform.machine() != "x86_64":
        # elsewhere instruction fetch does not see what was stored until it is told
        ctypes.CDLL("libgcc_s.so.1").__clear_cache(ctypes.c_void_p(base), ctypes.c_void_p(base + size))


_SYMBOLS = (
    "malloc",
    "free",
    "syscall",
    "sched_getcpu",
    "__ulock_wait",
    "__ulock_wake",
    "WaitOnAddress",
    "WakeByAddressAll",
)
"""What kernels call besides mathematics."""


def _load_llvm(obj: bytes) -> Code:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        opt=3, reloc="pic", codemodel="small"
    )
    for name in (*_SYMBOLS, *(f"{n}{end}" for n in (*MATH_UNARY, *MATH_BINARY) for end in ("", "f"))):
        with contextlib.suppress(_MissingSymbolError):
            llvm.add_symbol(name, external(name))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(obj))
    engine.finalize_object()
    found = {name: engine.get_function_address(name) for name in ("run", "fork", "worker", "enter")}
    return Code({name: address for name, address in found.items() if address}, engine)
