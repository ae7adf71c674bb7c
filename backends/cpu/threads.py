"""A pool of parked threads that run ranges of iterations, in LLVM IR, started through the system's C library.

The code is compiled once and travels in every kernel's binary, with that of ``entry``; the first that is loaded gives
it to the process, which has one block of state. The threads know no Python: they spin a little, then sleep on a word
of the state. A launch opens the ``gate``; a thread that finds it open enters, claims chunks until there are none, and
leaves; the launch closes the gate when no chunk is left and waits for those inside, so a thread that wakes late costs
nothing. While one launch has the pool, another one, from a second Python thread, runs its iterations itself.

A launch that finds itself on another processor than the last one asks the system to keep the pool's threads off it: a
thread that is woken on the processor of who woke it does not begin before that one is done, however many are idle.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

from kernelforge.backends.cpu.host import Host, host
from kernelforge.backends.cpu.loader import Code
from kernelforge.forks import UNFORKED, Lock

WORTH = 1 << 16
"""Estimated instructions (see ``work``) below which waking the threads does not pay: some 10 microseconds."""
CHUNKS = 8
"""Chunks per thread: enough for balance when a thread is late, few enough to cost nothing."""
SPIN = 4000
"""Pauses before a thread sleeps: some 50 microseconds."""

_GATE, _NEXT, _BUSY, _SLEEPERS, _WAITING, _JOB, FORK, _HOME, _ALLOWED, _NAMES = *range(64, 577, 64), 1600
"""Offsets into the state, each on its own cache line, after the epoch, on which threads sleep. The job is function,
frame, total, chunk, then how many parts to cut into, 0 when there is one thread; at ``FORK`` is its address. The
processor of the last launch comes before the number of names, which are the system's of the pool's threads; the
processors that the process may use are a bit each."""
_PROCESSORS = 8 * (_NAMES - _ALLOWED)

_PAUSE = {"x86_64": "llvm.x86.sse2.pause()", "aarch64": "llvm.aarch64.hint(i32 1)"}

_SLEEP = {
    "linux": (
        "declare i64 @syscall(i64, ...)",
        "call i64 (i64, ...) @syscall(i64 {futex}, ptr %word, i64 128, i32 %seen, ptr null, ptr null, i64 0)",
        "call i64 (i64, ...) @syscall(i64 {futex}, ptr %word, i64 129, i64 2147483647, ptr null, ptr null, i64 0)",
    ),
    "darwin": (
        "declare i32 @__ulock_wait(i32, ptr, i64, i32)\ndeclare i32 @__ulock_wake(i32, ptr, i64)",
        "%wide = zext i32 %seen to i64\ncall i32 @__ulock_wait(i32 1, ptr %word, i64 %wide, i32 0)",
        "call i32 @__ulock_wake(i32 257, ptr %word, i64 0)",
    ),
    "win32": (
        "declare i32 @WaitOnAddress(ptr, ptr, i64, i32)\ndeclare void @WakeByAddressAll(ptr)",
        "%copy = alloca i32\nstore i32 %seen, ptr %copy\ncall i32 @WaitOnAddress(ptr %word, ptr %copy, i64 4, i32 -1)",
        "call void @WakeByAddressAll(ptr %word)",
    ),
}
"""Declarations, "sleep while the word is %seen", "wake all who sleep on the word": Linux's private futex, Darwin's
UL_COMPARE_AND_WAIT, Windows' address waits."""
_FUTEX = {"x86_64": 202, "aarch64": 98}
_GETTID = {"x86_64": 186, "aarch64": 178}
_SETAFFINITY = {"x86_64": 203, "aarch64": 122}

_ENLIST = """
%home = getelementptr i8, ptr %state, i64 {home}
%count = getelementptr i8, ptr %home, i64 4
%names = getelementptr i8, ptr %state, i64 {names}
%k = atomicrmw add ptr %count, i32 1 seq_cst
%at = getelementptr i32, ptr %names, i32 %k
%name = call i64 (i64, ...) @syscall(i64 {gettid})
%short = trunc i64 %name to i32
store atomic i32 %short, ptr %at seq_cst, align 4
store atomic i32 -1, ptr %home seq_cst, align 4
"""
_PLACE = """
%home = getelementptr i8, ptr %state, i64 {home}
%here = call i32 @sched_getcpu()
%before = load atomic i32, ptr %home seq_cst, align 4
%moved = icmp ne i32 %here, %before
%known = icmp ult i32 %here, {processors}
%both = and i1 %moved, %known
br i1 %both, label %move, label %out
move:
store atomic i32 %here, ptr %home seq_cst, align 4
%count.at = getelementptr i8, ptr %home, i64 4
%names = getelementptr i8, ptr %state, i64 {names}
%allowed = getelementptr i8, ptr %state, i64 {allowed}
%byte = lshr i32 %here, 3
%held.at = getelementptr i8, ptr %allowed, i32 %byte
%held = load i8, ptr %held.at, align 1
%bit = and i32 %here, 7
%one = shl i32 1, %bit
%mask = trunc i32 %one to i8
%off = xor i8 %mask, -1
%others = and i8 %held, %off
store i8 %others, ptr %held.at, align 1
%count = load atomic i32, ptr %count.at seq_cst, align 4
br label %each
each:
%k = phi i32 [ 0, %move ], [ %k1, %next ]
%some = icmp ult i32 %k, %count
br i1 %some, label %named, label %done
named:
%name.at = getelementptr i32, ptr %names, i32 %k
%name = load atomic i32, ptr %name.at seq_cst, align 4
%there = icmp ne i32 %name, 0
br i1 %there, label %send, label %next
send:
call i64 (i64, ...) @syscall(i64 {setaffinity}, i32 %name, i64 {bytes}, ptr %allowed)
br label %next
next:
%k1 = add i32 %k, 1
br label %each
done:
store i8 %held, ptr %held.at, align 1
br label %out
out:
"""
"""What a thread does when it starts, and a launch before it opens the gate, on Linux: sched_setaffinity(2)."""

_TEXT = """
{declarations}
define internal void @pause() alwaysinline #0 {{
{pause}
ret void
}}
define internal void @sleep(ptr %word, i32 %seen) noinline #0 {{
{wait}
ret void
}}
define internal void @wake(ptr %word) noinline #0 {{
{wake}
ret void
}}
define internal void @enlist(ptr %state) noinline #0 {{
{enlist}
ret void
}}
define internal void @place(ptr %state) noinline #0 {{
{place}
ret void
}}
define internal i32 @watch(ptr %word, i32 %value, i1 %wanted) alwaysinline #0 {{
entry:
br label %spin
spin:
%n = phi i32 [ 0, %entry ], [ %n1, %again ]
%now = load atomic i32, ptr %word seq_cst, align 4
%same = icmp eq i32 %now, %value
%there = icmp eq i1 %same, %wanted
br i1 %there, label %out, label %tired
tired:
%enough = icmp sgt i32 %n, {spin}
br i1 %enough, label %out, label %again
again:
call void @pause()
%n1 = add i32 %n, 1
br label %spin
out:
ret i32 %now
}}
define internal void @claim(ptr %state) noinline #0 {{
entry:
%next = getelementptr i8, ptr %state, i64 {next}
%job = getelementptr i8, ptr %state, i64 {job}
%fn = load ptr, ptr %job, align 8
%frame.at = getelementptr ptr, ptr %job, i64 1
%frame = load ptr, ptr %frame.at, align 8
%total.at = getelementptr i64, ptr %job, i64 2
%total = load i64, ptr %total.at, align 8
%chunk.at = getelementptr i64, ptr %job, i64 3
%chunk = load i64, ptr %chunk.at, align 8
br label %take
take:
%low = atomicrmw add ptr %next, i64 %chunk seq_cst
%some = icmp slt i64 %low, %total
br i1 %some, label %work, label %done
work:
%end = add i64 %low, %chunk
%short = icmp slt i64 %end, %total
%high = select i1 %short, i64 %end, i64 %total
call void %fn(ptr %frame, i64 %low, i64 %high)
br label %take
done:
ret void
}}
define void @worker(ptr %state) #0 {{
entry:
%gate = getelementptr i8, ptr %state, i64 {gate}
%sleepers = getelementptr i8, ptr %state, i64 {sleepers}
%waiting = getelementptr i8, ptr %state, i64 {waiting}
call void @enlist(ptr %state)
br label %idle
idle:
%seen = phi i32 [ 0, %entry ], [ %new, %missed ], [ %new, %left ], [ %new, %signal ]
br label %spin
spin:
%new = call i32 @watch(ptr %state, i32 %seen, i1 false)
%changed = icmp ne i32 %new, %seen
br i1 %changed, label %enter, label %slept
slept:
%s1 = atomicrmw add ptr %sleepers, i32 1 seq_cst
call void @sleep(ptr %state, i32 %seen)
%s2 = atomicrmw sub ptr %sleepers, i32 1 seq_cst
br label %spin
enter:
%g = atomicrmw add ptr %gate, i32 1 seq_cst
%open = icmp slt i32 %g, 0
br i1 %open, label %inside, label %missed
missed:
%g2 = atomicrmw sub ptr %gate, i32 1 seq_cst
%w2 = load atomic i32, ptr %waiting seq_cst, align 4
%told2 = icmp ne i32 %w2, 0
br i1 %told2, label %signal, label %idle
inside:
call void @claim(ptr %state)
%g3 = atomicrmw sub ptr %gate, i32 1 seq_cst
%w = load atomic i32, ptr %waiting seq_cst, align 4
%told = icmp ne i32 %w, 0
br i1 %told, label %signal, label %left
signal:
call void @wake(ptr %gate)
br label %idle
left:
br label %idle
}}
define void @fork(ptr %state, ptr %fn, ptr %frame, i64 %total, i64 %each) #0 {{
entry:
%some = icmp sgt i64 %total, 0
br i1 %some, label %sized, label %out
sized:
%job = getelementptr i8, ptr %state, i64 {job}
%parts.at = getelementptr i64, ptr %job, i64 4
%parts = load i64, ptr %parts.at, align 8
%pool = icmp ne i64 %parts, 0
%several = icmp sgt i64 %total, 1
%heavy.at = add i64 %each, 1
%enough = udiv i64 {worth}, %heavy.at
%worth = icmp ugt i64 %total, %enough
%a = and i1 %pool, %several
%b = and i1 %a, %worth
br i1 %b, label %try, label %alone
alone:
call void %fn(ptr %frame, i64 0, i64 %total)
br label %out
try:
%busy = getelementptr i8, ptr %state, i64 {busy}
%lock = cmpxchg ptr %busy, i32 0, i32 1 seq_cst seq_cst
%got = extractvalue {{ i32, i1 }} %lock, 1
br i1 %got, label %open, label %alone
open:
call void @place(ptr %state)
%next = getelementptr i8, ptr %state, i64 {next}
%gate = getelementptr i8, ptr %state, i64 {gate}
%sleepers = getelementptr i8, ptr %state, i64 {sleepers}
%waiting = getelementptr i8, ptr %state, i64 {waiting}
store ptr %fn, ptr %job, align 8
%frame.at = getelementptr ptr, ptr %job, i64 1
store ptr %frame, ptr %frame.at, align 8
%total.at = getelementptr i64, ptr %job, i64 2
store i64 %total, ptr %total.at, align 8
%most = add i64 %parts, -1
%padded = add i64 %total, %most
%share = udiv i64 %padded, %parts
%light = udiv i64 {grain}, %heavy.at
%small = icmp ult i64 %share, %light
%chunk = select i1 %small, i64 %light, i64 %share
%chunk.at = getelementptr i64, ptr %job, i64 3
store i64 %chunk, ptr %chunk.at, align 8
store atomic i64 0, ptr %next seq_cst, align 8
%o = atomicrmw or ptr %gate, i32 -2147483648 seq_cst
%e = atomicrmw add ptr %state, i32 1 seq_cst
%asleep = load atomic i32, ptr %sleepers seq_cst, align 4
%any = icmp ne i32 %asleep, 0
br i1 %any, label %rouse, label %own
rouse:
call void @wake(ptr %state)
br label %own
own:
call void @claim(ptr %state)
%c = atomicrmw and ptr %gate, i32 2147483647 seq_cst
br label %spin
spin:
%inside = call i32 @watch(ptr %gate, i32 0, i1 true)
%empty = icmp eq i32 %inside, 0
br i1 %empty, label %close, label %rest
rest:
store atomic i32 1, ptr %waiting seq_cst, align 4
%still = load atomic i32, ptr %gate seq_cst, align 4
%gone = icmp eq i32 %still, 0
br i1 %gone, label %awake, label %nap
nap:
call void @sleep(ptr %gate, i32 %still)
br label %awake
awake:
store atomic i32 0, ptr %waiting seq_cst, align 4
br label %spin
close:
store atomic i32 0, ptr %busy seq_cst, align 4
br label %out
out:
ret void
}}
attributes #0 = {{ nounwind "no-stack-arg-probe" }}
"""


def pool_ir(host: Host) -> str:
    """Return the module of ``fork(state, fn, frame, total, work of each)`` and ``worker(state)``.

    ``fork`` runs ``fn(frame, low, high)`` over ranges that cover 0 .. total-1.
    """
    declarations, wait, wake = _SLEEP.get(host.system, ("", "", ""))
    pause = _PAUSE.get(host.arch)
    enlist = place = ""
    if host.system == "linux" and host.arch in _FUTEX:
        declarations += "\ndeclare i32 @sched_getcpu()"
        enlist = _ENLIST.format(home=_HOME, names=_NAMES, gettid=_GETTID[host.arch])
        place = _PLACE.format(
            home=_HOME,
            names=_NAMES,
            allowed=_ALLOWED,
            processors=_PROCESSORS,
            bytes=_PROCESSORS // 8,
            setaffinity=_SETAFFINITY[host.arch],
        )
    if pause:
        declarations += f"\ndeclare void @{pause.replace('i32 1', 'i32')}"
    return _TEXT.format(
        declarations=declarations,
        pause=f"call void @{pause}" if pause else "",
        wait=wait.format(futex=_FUTEX.get(host.arch, 0)),
        wake=wake.format(futex=_FUTEX.get(host.arch, 0)),
        enlist=enlist,
        place=place,
        gate=_GATE,
        next=_NEXT,
        busy=_BUSY,
        sleepers=_SLEEPERS,
        waiting=_WAITING,
        job=_JOB,
        spin=SPIN,
        worth=WORTH,
        grain=WORTH // 8,
    )


def threads(host: Host) -> int:
    """Return how many threads run a launch: one where the pool does not know how to sleep."""
    known = host.system in _SLEEP and (host.system != "linux" or host.arch in _FUTEX)
    return host.threads if known else 1


class Pool:
    """The threads of the process.

    Attributes:
        word: holds the address of the state, which kernels take; 0 until ``start``, and again in a forked child.
    """

    def __init__(self) -> None:
        self.word = ctypes.c_int64()
        self._symbols: dict[str, int] = {}
        self._lock = Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """Give up the state: its threads are not in this process."""
        self.word.value = 0

    @property
    def provided(self) -> bool:
        """Whether there is code."""
        return bool(self._symbols)

    def symbol(self, name: str) -> int:
        """Return the address of a function; 0 while there is no code."""
        return self._symbols.get(name, 0)

    @property
    def names(self) -> list[int]:
        """What Linux calls the threads that run."""
        if not self.word.value:
            return []
        count = ctypes.c_int32.from_address(self.word.value + _HOME + 4).value
        return [n for n in (ctypes.c_int32 * count).from_address(self.word.value + _NAMES) if n]

    def provide(self, code: Code) -> None:
        """Take the loaded code of ``pool_ir`` and ``entry_ir``, unless there is some."""
        with UNFORKED, self._lock:
            if not self._symbols:
                self._symbols = code.symbols
                _keep(code.owner)

    def start(self) -> int:
        """Make the state and start the threads; return the state."""
        with UNFORKED, self._lock:
            if self.word.value:
                return self.word.value
            count = threads(host())
            memory = mmap.mmap(-1, _NAMES + 4 * count)
            _keep(memory)
            if hasattr(os, "sched_getaffinity"):
                allowed = sum(1 << k for k in os.sched_getaffinity(0) if k < _PROCESSORS)
                memory[_ALLOWED:_NAMES] = allowed.to_bytes(_NAMES - _ALLOWED, "little")
            state = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            ctypes.c_int64.from_address(state + FORK).value = self._symbols["fork"]
            started = [_spawn(self._symbols["worker"], state) for _ in range(count - 1)]
            ctypes.c_int64.from_address(state + _JOB + 32).value = (sum(started) + 1) * CHUNKS if any(started) else 0
            self.word.value = state
            return state


def _keep(owner: object) -> None:
    """Never free an object: the threads use it until the process is gone, which is later than any finalizer."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


def _spawn(worker: int, state: int) -> bool:
    """Start one thread by the C library; return whether that worked."""
    if sys.platform == "win32":
        create = ctypes.WinDLL("kernel32").CreateThread
        create.restype = ctypes.c_void_p
        create.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_void_p,
        ]
        return bool(create(None, 0, worker, state, 0, None))
    libc = ctypes.CDLL(None)
    thread = ctypes.c_void_p()
    create = libc.pthread_create
    create.argtypes = [ctypes.c_void_p] * 4
    if create(ctypes.byref(thread), None, worker, state):
        return False
    libc.pthread_detach(thread)
    return True


POOL = Pool()
