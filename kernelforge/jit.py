"""``jit``: compile a function when it is called with new types, and run what was compiled when they are not."""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import optree

from kernelforge.array import Array, lent
from kernelforge.backends.base import Backend, Entry
from kernelforge.backends.targets import target
from kernelforge.config import CURRENT, Config
from kernelforge.config import current as current_config
from kernelforge.devices import CHOSEN
from kernelforge.devices import current as current_device
from kernelforge.errors import InvalidArgument, InvalidParameter, UnhashableStatic, UnknownParameter
from kernelforge.ir.build import BUILDERS, tracing
from kernelforge.ir.structure import exact
from kernelforge.methods import Methods
from kernelforge.program import Lowered, Program, program_of
from kernelforge.trace import Tracer, is_array, to_sym

if TYPE_CHECKING:
    from kernelforge.explain import Explanation

Fn = Callable[..., Any]
Names = Sequence[str] | str
Numbers = Sequence[int] | int

KEPT_PROGRAMS = 1024
"""Programs a function keeps; beyond that the oldest is forgotten."""

DEEPEST = 8
"""Entries that a call tries."""

_of_ndarray = operator.attrgetter("shape", "strides", "dtype", "flags.aligned")
_of_array = operator.attrgetter("shape", "dtype", "_buffer.backend")
KEYS: dict[type, Callable[[Any], Any]] = {np.ndarray: _of_ndarray, Array: _of_array, bool: type, int: type, float: type}
"""What of an argument is part of the key, by its type; one attribute lookup each, as it is done at every call."""


Programs = dict[Any, Program]


def name_of(fn: Fn) -> str:
    return getattr(fn, "__qualname__", type(fn).__qualname__)


def by_name(fn: Fn) -> str | None:
    """Return the name that a pickle finds ``fn`` by, as it finds functions; None where it has to be made anew."""
    found: Any = sys.modules.get(fn.__module__)
    name = name_of(fn)
    for part in name.split("."):
        found = getattr(found, part, None)
    return name if found is fn else None


def _argument(x: Any, name: Callable[[], str]) -> Any:
    """Return an argument of another type than those of ``KEYS`` as one of them."""
    if isinstance(x, int | float) and not isinstance(x, np.generic):
        return int(x) if isinstance(x, int) else float(x)  # of a subclass: an enumeration's member
    if isinstance(x, Tracer):
        x = x.sym  # raises: there is no trace it could be of
    try:
        array = lent(x)
    except InvalidArgument as error:
        raise InvalidArgument(name=name(), found=error.fields["found"]) from error.__cause__
    if array is None:
        raise InvalidArgument(name=name(), found=f"{type(x).__module__}.{type(x).__qualname__}")
    return array


def _named(
    fn: Fn, args: tuple[Any, ...], kwargs: dict[str, Any], nums: Collection[int] = (), names: Collection[str] = ()
) -> Iterator[tuple[int | str, str]]:
    """Yield for each leaf of the arguments where its argument is, and its name: ``x``, ``params['w']``.

    Args:
        nums: positions of arguments that are no trees.
        names: the same, by name.
    """
    try:
        parameters = list(inspect.signature(fn).bind(*args, **kwargs).signature.parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    listed = [p.name for p in parameters if p.kind in plain]
    listed += [f"argument {k}" for k in range(len(listed) + 1, len(args) + 1)]
    left: list[tuple[int | str, str, Any]] = []
    left += [(i, n, x) for i, (n, x) in enumerate(zip(listed, args, strict=False)) if i not in nums]
    left += [(k, k, x) for k, x in sorted(kwargs.items()) if k not in names]
    return ((at, a.codify(name)) for at, name, x in left for a in optree.tree_accessors(x))


def _flatten(
    args: tuple[Any, ...], kwargs: dict[str, Any], named: Callable[[], Iterator[tuple[int | str, str]]]
) -> tuple[list[Any], Any]:
    both: Any = (args, kwargs)
    leaves, tree = optree.tree_flatten(both)

    def name(i: int) -> Callable[[], str]:
        return lambda: list(named())[i][1]

    return [x if type(x) in KEYS else _argument(x, name(i)) for i, x in enumerate(leaves)], tree


def run(fn: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Trace, compile and run a function once; graphs that were compiled before are not compiled again."""
    leaves, tree = _flatten(args, kwargs, lambda: _named(fn, args, kwargs))

    def body(values: list[Tracer]) -> Any:
        a, k = tree.unflatten(values)
        return fn(*a, **k)

    return program_of(body, leaves, name_of(fn))(leaves)


class Jit:
    """A compiled function; see ``jit``.

    A call goes to what stands in the slot ``_entry``: a chain of entries, the newest first, of which each hands what is
    not for it to the next, and the last one to ``_call``.
    """

    __slots__ = ("__dict__", "__weakref__", "_depth", "_entry")
    __name__: str
    __wrapped__: Fn

    def __init__(
        self,
        fn: Fn,
        static_argnames: Names = (),
        static_argnums: Numbers = (),
        donate_argnames: Names = (),
        donate_argnums: Numbers = (),
    ) -> None:
        if not callable(fn):
            raise InvalidParameter(op="jit", name="fn", found=fn, expected="a function")
        functools.update_wrapper(self, fn)
        self._static_names, self._static_nums = _parameters("static", fn, static_argnames, static_argnums)
        self._donated_names, self._donated_nums = _parameters("donated", fn, donate_argnames, donate_argnums)
        both = [*(self._static_names & self._donated_names), *(self._static_nums & self._donated_nums)]
        if both:
            expected = "parameters that are not static"
            raise InvalidParameter(op="jit", name="donate_argnames", found=both[0], expected=expected)
        self._static = bool(self._static_names or self._static_nums)
        self._programs: dict[tuple[Config, Backend], Programs] = {}
        self._last: tuple[Config | None, Backend | None, Programs] = (None, None, {})
        self._depth = 0
        self._entry: Fn = self._call

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<kernelforge.jit of {self.__module__}.{name_of(self)}>"

    def __reduce__(self) -> Any:
        chosen = self._static_names, self._static_nums, self._donated_names, self._donated_nums
        return by_name(self) or (Jit, (self.__wrapped__, *(tuple(sorted(c)) for c in chosen)))

    def __copy__(self) -> Jit:
        return self

    def __deepcopy__(self, memo: Any) -> Jit:
        return self

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if tracing():
            return self._inline(args, kwargs)
        if not kwargs and not self._static:
            try:
                key = tuple([KEYS[type(x)](x) for x in args])
            except KeyError:
                key = None
            if key is not None:
                table = self._here()
                program = table.get(key)
                if program is None:
                    program = self._remember(table, key, self._compile(args, {})[0])
                made = program(args)
                if program.entry is not None:
                    self._enter(program.entry)
                return made
        program, leaves = self._compile(args, kwargs)
        return program(leaves)

    def _enter(self, entry: Entry) -> None:
        """Put an entry before the others; drop them where there are many."""
        if self._depth == DEEPEST:
            self._depth, self._entry = 0, self._call
        guards = ((BUILDERS, ()), (CURRENT, current_config()), (CHOSEN, CHOSEN.get()))
        self._depth, self._entry = self._depth + 1, entry.under(guards, self._entry)

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Compile for these arguments, without running; return what it was compiled to.

        ``target="cuda:sm_90"`` compiles for a processor that need not be there (``kernelforge.backends.targets``);
        ``target`` goes to the function where it is no string, or one of its static parameters.

        Raises:
            UnknownTarget: when there is no such target.
        """
        name, kwargs = self._aimed(kwargs)
        backend = None if name is None else target(name)
        _, body, leaves = self._prepare(args, kwargs)
        given = self._given(args, kwargs)
        return Lowered(program_of(body, leaves, name_of(self.__wrapped__), backend, True, given).plan)

    def explain(self, *args: Any, measure: bool = False, **kwargs: Any) -> Explanation:
        """Say in words what the function is compiled to for these arguments.

        What fused and why, what a backward pass keeps, what is moved and how long it takes. ``str`` of the result is
        the text and ``.html()`` a page; notebooks show it by themselves. ``measure`` also times each kernel by itself,
        on random data.

        With ``target``, as for ``lower``, also what the kernels take of that processor.
        """
        from kernelforge.explain import explain

        plan = self.lower(*args, **kwargs).plan
        names = [name for _, name in self._named(args, self._aimed(kwargs)[1])]
        return explain(plan, name_of(self), names, measure)

    def _aimed(self, kwargs: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Take the name of a target out of keyword arguments that have one."""
        name = kwargs.get("target")
        if not isinstance(name, str) or "target" in self._static_names:
            return None, kwargs
        return name, {k: v for k, v in kwargs.items() if k != "target"}

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[int | str, str]]:
        return _named(self.__wrapped__, args, kwargs, self._static_nums, self._static_names)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, str]:
        """Return the leaves of donated arguments and their names."""
        donated = self._donated_names | self._donated_nums
        return {k: n for k, (at, n) in enumerate(self._named(args, kwargs)) if at in donated} if donated else {}

    def _here(self) -> Programs:
        """Return the programs for the settings and the default device in force."""
        config, device = current_config(), current_device()
        last = self._last
        if last[0] is config and last[1] is device:
            return last[2]
        table = self._programs.setdefault((config, device), {})
        self._last = (config, device, table)
        return table

    def forget(self) -> None:
        """Drop what was compiled: later calls compile again."""
        self._programs = {}
        self._last = (None, None, {})
        self._depth, self._entry = 0, self._call

    def _remember(self, table: Programs, key: Any, program: Program) -> Program:
        kept = table.setdefault(key, program)
        for oldest in list(table)[:-KEPT_PROGRAMS]:
            table.pop(oldest, None)
        return kept

    def _compile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Program, list[Any]]:
        """Return the program for these arguments and what to call it with."""
        key, body, leaves = self._prepare(args, kwargs)
        table = self._here()
        program = table.get(key)
        if program is None:
            given = self._given(args, kwargs)
            program = self._remember(table, key, program_of(body, leaves, name_of(self.__wrapped__), names=given))
        return program, leaves

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Callable[[list[Tracer]], Any], list[Any]]:
        """Return the key of the program for these arguments, what to trace, and what to call the program with."""
        statics: dict[int, Any] = {}
        named: dict[str, Any] = {}
        fixed: tuple[Any, ...] = ()
        dynamic, by_name = args, kwargs
        if self._static:
            statics = {i: x for i, x in enumerate(args) if i in self._static_nums}
            named = {k: v for k, v in kwargs.items() if k in self._static_names}
            for where, value in (*statics.items(), *named.items()):
                try:
                    hash(value)
                except TypeError:
                    raise UnhashableStatic(name=where, found=type(value).__name__) from None
            dynamic = tuple(x for i, x in enumerate(args) if i not in statics)
            by_name = {k: v for k, v in kwargs.items() if k not in named}
            fixed = tuple((where, exact(x)) for where, x in (*statics.items(), *sorted(named.items())))
        leaves, tree = _flatten(dynamic, by_name, lambda: self._named(args, kwargs))
        shapes = tuple([KEYS.get(type(x), _of_ndarray)(x) for x in leaves])

        def body(values: list[Tracer]) -> Any:
            a, k = tree.unflatten(values)
            left = iter(a)
            return self.__wrapped__(
                *[statics[i] if i in statics else next(left) for i in range(len(args))], **k, **named
            )

        return (tree, fixed, shapes), body, leaves

    def _inline(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run inside of another trace; what the function writes to are its own arrays all the same."""
        both: Any = (args, kwargs)
        leaves, tree = optree.tree_flatten(both, none_is_leaf=True)
        read_only = [Tracer(to_sym(x)) if isinstance(x, Methods) else x for x in leaves]
        both = tree.unflatten(read_only)
        args, kwargs = both
        return self.__wrapped__(*args, **kwargs)


if not TYPE_CHECKING:
    Jit.__call__ = Jit._entry  # the slot itself: a call finds what stands there without running anything in between


def _parameters(kind: str, fn: Fn, argnames: Names, argnums: Numbers) -> tuple[frozenset[str], frozenset[int]]:
    """Complete names and numbers of parameters by each other."""
    names = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    nums = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not names and not nums:
        return frozenset(), frozenset()
    listed, known, takes_more, takes_any = _listed(fn)
    for name in names:
        if name not in known and not takes_any:
            raise UnknownParameter(
                kind=kind, name=name, function=name_of(fn), expected=", ".join(known) or "no parameters"
            )
    for n in nums:
        if not (-len(listed) <= n < len(listed) or takes_more):
            raise UnknownParameter(
                kind=kind, name=n, function=name_of(fn), expected=f"{len(listed)} positional parameters"
            )
    at = frozenset(n + len(listed) if n < 0 else n for n in nums) | frozenset(
        listed.index(n) for n in names if n in listed
    )
    return frozenset(names) | frozenset(listed[n] for n in at if n < len(listed)), at


def _listed(fn: Fn) -> tuple[Sequence[str], Sequence[str], bool, bool]:
    """Return the names of positional parameters and of all, and whether a function takes more of the former and others
    by any name.
    """
    plain = inspect.unwrap(fn, stop=lambda f: hasattr(f, "__signature__"))
    if isinstance(plain, types.FunctionType) and not hasattr(plain, "__signature__"):
        # what inspect would say of it, in a hundredth of the time: this package alone has a hundred of them
        code = plain.__code__
        known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        flags = code.co_flags
        return known[: code.co_argcount], known, bool(flags & inspect.CO_VARARGS), bool(flags & inspect.CO_VARKEYWORDS)
    parameters = list(inspect.signature(fn).parameters.values())
    return (
        [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)],
        [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)],
        any(p.kind is p.VAR_POSITIONAL for p in parameters),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


@overload
def jit(
    fn: Fn,
    *,
    static_argnames: Names = ...,
    static_argnums: Numbers = ...,
    donate_argnames: Names = ...,
    donate_argnums: Numbers = ...,
) -> Jit: ...


@overload
def jit(
    fn: None = None,
    *,
    static_argnames: Names = ...,
    static_argnums: Numbers = ...,
    donate_argnames: Names = ...,
    donate_argnums: Numbers = ...,
) -> Callable[[Fn], Jit]: ...


def jit(
    fn: Fn | None = None,
    *,
    static_argnames: Names = (),
    static_argnums: Numbers = (),
    donate_argnames: Names = (),
    donate_argnums: Numbers = (),
) -> Any:
    """Compile a function of arrays, written with NumPy or ``kernelforge.numpy``.

    It is traced and compiled at the first call with new shapes, dtypes or strides, for the device its arguments are
    on. NumPy arrays are read in place by host devices, whatever their strides. Results are ``Array``s in the
    structure that the function returned. The undecorated function is ``__wrapped__``. Called while another function
    is compiled, it becomes a part of that.

    Args:
        fn: takes and returns pytrees of arrays and numbers; a Python number counts by its kind only in promotion, and
            calls with another value do not compile again.
        static_argnames: parameters whose values are known while compiling; each value is compiled for anew.
        static_argnums: the same, by position.
        donate_argnames: parameters whose arrays the caller gives away with a call, such as those that a step of
            training replaces: results of their dtypes and sizes are made in their memory, where nothing reads it any
            more, and take none of their own. An ``Array`` cannot be used afterwards; a NumPy array that is row-major
            may then hold a result, on devices that work in host memory.
        donate_argnums: the same, by position.

    Raises:
        CannotDonate: in a call, when a donated array is read-only or shares memory with another argument.
        DonatedArray: when an ``Array`` is used that was donated before.
    """
    chosen = (static_argnames, static_argnums, donate_argnames, donate_argnums)
    return Jit(fn, *chosen) if fn is not None else lambda f: Jit(f, *chosen)


__all__ = ["Jit", "Lowered", "Program", "is_array", "jit", "run"]
