"""``einsum``: terms of named axes, and the order in which several operands are contracted in pairs."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kernelforge.errors import InvalidParameter, ShapeMismatch
from kernelforge.ir.build import Sym
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.products import contract, together, total
from kernelforge.numpy.shapes import diagonal
from kernelforge.told import telling

EXHAUSTIVE = 6
"""Operands up to which all orders that contract what shares an axis are weighed."""

Path = list[tuple[int, ...]]
"""The positions of the operands that each step takes out of the list, at whose end it puts what they make."""


def _subscripts(text: str, operands: Sequence[Sym]) -> tuple[list[str], str]:
    """Return the names of each operand's axes and of the result's; axes under an ellipsis get Greek capitals."""
    text = text.replace(" ", "")
    left, arrow, out = text.partition("->")
    inputs = left.split(",")
    if len(inputs) != len(operands):
        raise InvalidParameter(
            op="np.einsum", name="subscripts", found=text, expected=f"{len(operands)} terms, one for each operand"
        )
    spread = [x.ndim - len(t.replace("...", "")) if "..." in t else 0 for t, x in zip(inputs, operands, strict=True)]
    dots = "".join(chr(0x391 + i) for i in range(max([*spread, 0])))
    terms = [t.replace("...", dots[len(dots) - n :]) for t, n in zip(inputs, spread, strict=True)]
    if arrow:
        out = out.replace("...", dots)
    else:
        once = sorted(c for c in set("".join(inputs).replace(".", "")) if left.count(c) == 1)
        out = dots + "".join(once)
    for term, x in zip(terms, operands, strict=True):
        if len(term) != x.ndim or any(n < 0 for n in spread):
            raise ShapeMismatch(op="np.einsum", found=x.shape, expected=f"{len(term)} axes, as {text} says")
    strange = [c for c in "".join(terms) + out if not c.isalpha()]
    if strange or len(set(out)) != len(out) or not set(out) <= set("".join(terms)):
        expected = "letters, an output that has none twice and none of its own"
        raise InvalidParameter(op="np.einsum", name="subscripts", found=text, expected=expected)
    return terms, out


def _without_repeats(x: Sym, term: str) -> tuple[Sym, str]:
    """Take diagonals until no name stands twice in a term."""
    for name in dict.fromkeys(term):
        while term.count(name) > 1:
            i = term.index(name)
            j = term.index(name, i + 1)
            if x.shape[i] != x.shape[j]:
                raise ShapeMismatch(op="np.einsum", found=x.shape, expected=f"one extent for both axes named {name}")
            x = diagonal(x, 0, i, j)
            term = "".join(c for k, c in enumerate(term) if k not in (i, j)) + name
    return x, term


def _sum_out(x: Sym, term: str, needed: str) -> tuple[Sym, str]:
    """Add up over the names nobody else needs."""
    axes = tuple(i for i, n in enumerate(term) if n not in needed)
    return total(x, axes), "".join(n for n in term if n in needed)


def _pair(x: Sym, x_term: str, y: Sym, y_term: str, needed: str) -> tuple[Sym, str]:
    x, x_term = _sum_out(x, x_term, y_term + needed)
    y, y_term = _sum_out(y, y_term, x_term + needed)
    extents: dict[str, int] = {}
    for term, v in ((x_term, x), (y_term, y)):
        for name, n in zip(term, v.shape, strict=True):
            extents[name] = n if extents.get(name, 1) == 1 else extents[name]
    # an extent of 1 broadcasts
    (x, x_term), (y, y_term) = (_drop_ones(v, term, extents) for v, term in ((x, x_term), (y, y_term)))
    out = "".join(n for n in dict.fromkeys(x_term + y_term) if n in needed)
    only = (
        [n for n in x_term if n not in y_term and n not in needed],
        [n for n in y_term if n not in x_term and n not in needed],
    )
    x, x_term = _sum_out(x, x_term, "".join(n for n in x_term if n not in only[0]))
    y, y_term = _sum_out(y, y_term, "".join(n for n in y_term if n not in only[1]))
    return contract(x, x_term, y, y_term, out), out


def _drop_ones(x: Sym, term: str, extents: dict[str, int]) -> tuple[Sym, str]:
    kept = [i for i, n in enumerate(term) if x.shape[i] == extents[n]]
    return x.reshape(tuple(x.shape[i] for i in kept)), "".join(term[i] for i in kept)


def einsum(*operands: Any, **kwargs: Any) -> Any:
    """``numpy.einsum``: subscripts as a string before the operands, or as a list of numbers after each.

    Several operands are contracted in pairs: those first that take the fewest multiplications, then the least memory
    between them. ``optimize`` says how the order is found: ``"optimal"`` weighs all orders, ``"greedy"`` takes the best
    pair of each step, ``True`` or ``False`` the former for few operands, and a list, as ``numpy.einsum_path`` gives it,
    is the order. Limits of memory are not heeded.
    """
    return _einsum(*_spelled(operands), **kwargs)


FUNCTIONS["einsum"] = telling(einsum)


def _spelled(given: Sequence[Any]) -> Sequence[Any]:
    """Write lists of numbers, after each operand and at the end for the result, as a string before the operands."""
    if len(given) < 2 or isinstance(given[0], str) or not isinstance(given[1], list | tuple):
        return given
    count = len(given) // 2
    lists = [*given[1 : 2 * count : 2], *given[2 * count :]]
    letters = string.ascii_uppercase + string.ascii_lowercase  # as NumPy orders them where no result is given
    terms = ["".join("..." if n is ... else letters[range(len(letters)).index(n)] for n in axes) for axes in lists]
    return "->".join([",".join(terms[:count]), *terms[count:]]), *given[: 2 * count : 2]


@array_function("*operands", name="einsum", table={})
def _einsum(subscripts: str, /, *operands: Sym, dtype: Any = None, optimize: Any = True) -> Sym:
    if not isinstance(subscripts, str):
        raise InvalidParameter(
            op="np.einsum", name="subscripts", found=type(subscripts).__name__, expected="a string such as 'ij,jk->ik'"
        )
    syms = together(operands, dtype)
    terms, out = _subscripts(subscripts, syms)
    extents = _extents(terms, syms, subscripts)
    work = [_without_repeats(x, t) for x, t in zip(syms, terms, strict=True)]
    for places in _order([set(t) for _, t in work], set(out), extents, optimize):
        picked = [work[i] for i in sorted(places)]
        work = [w for i, w in enumerate(work) if i not in places]
        needed = out + "".join(t for _, t in work)
        for i, j in path([set(t) for _, t in picked], set(needed), extents):
            pair, picked = (picked[i], picked[j]), [w for k, w in enumerate(picked) if k not in (i, j)]
            picked.append(_pair(*pair[0], *pair[1], needed + "".join(t for _, t in picked)))
        work.append(picked[0])
    ((x, term),) = work
    x, term = _sum_out(x, term, out)
    return x.transpose([term.index(n) for n in out])


def _extents(terms: Sequence[str], syms: Sequence[Sym], text: str) -> dict[str, int]:
    """Return the extent of each name; one of 1 broadcasts."""
    extents: dict[str, int] = {}
    for term, x in zip(terms, syms, strict=True):
        for name, n in zip(term, x.shape, strict=True):
            if n != 1 and extents.setdefault(name, n) != n:
                found = " and ".join(str(s.shape) for s in syms)
                raise ShapeMismatch(op=f"np.einsum({text!r})", found=found, expected=f"one extent for {name}")
    return {name: extents.get(name, 1) for term in terms for name in term}


def _order(terms: Sequence[set[str]], out: set[str], extents: Mapping[str, int], optimize: Any) -> Path:
    """Return which operands are contracted with each other, one step after the other."""
    how = optimize[0] if isinstance(optimize, tuple | list) and len(optimize) else optimize
    count = len(terms)
    if isinstance(how, bool) or how is None:
        return [tuple(range(count))]
    if isinstance(how, str) and how in ("optimal", "greedy"):
        return [*path(terms, out, extents, exhaustive=how == "optimal")] or [(0,)]
    steps = [tuple(int(i) for i in step) for step in (optimize[1:] if how == "einsum_path" else ())]
    left = count
    for step in steps:
        if not step or len(set(step)) < len(step) or not set(step) <= set(range(left)):
            left = 0
            break
        left += 1 - len(step)
    if how != "einsum_path" or left < 1:
        expected = "a bool, 'greedy', 'optimal', or a path such as ['einsum_path', (0, 1), (0, 1)]"
        raise InvalidParameter(op="np.einsum", name="optimize", found=optimize, expected=expected)
    return [*steps, tuple(range(left))]


def path(
    terms: Sequence[set[str]], out: set[str], extents: Mapping[str, int], exhaustive: bool | None = None
) -> list[tuple[int, int]]:
    """Return the order in which pairs of terms are contracted, as positions.

    What shares no axis is multiplied last. ``exhaustive`` is whether all other orders are weighed; None: for few terms.
    """
    count = len(terms)

    def size(names: Iterable[str]) -> int:
        return math.prod(extents[n] for n in names)

    def made(members: int) -> set[str]:
        """Return the names of what a set of terms makes."""
        inside = set().union(*(terms[k] for k in range(count) if members >> k & 1))
        return inside & out.union(*(terms[k] for k in range(count) if not members >> k & 1))

    names = {1 << k: made(1 << k) for k in range(count)}
    best: dict[int, tuple[tuple[int, int], list[tuple[int, int]]]] = {s: ((0, 0), []) for s in names}

    def weigh(a: int, b: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
        """Return multiplications and elements of making both, and then one of them; and the steps."""
        names.setdefault(a | b, made(a | b))
        (work, held), (more, other) = best[a][0], best[b][0]
        cost = work + more + size(names[a] | names[b]), held + other + size(names[a | b])
        return cost, [*best[a][1], *best[b][1], (a, b)]

    def try_all() -> list[int]:
        """Find the best order of all connected sets of terms; return those that share nothing with each other."""
        levels = [[], list(best)]
        for n in range(2, count + 1):
            levels.append([])
            for few in range(1, n // 2 + 1):
                for a, b in itertools.product(reversed(levels[few]), levels[n - few]):
                    if a & b or names[a].isdisjoint(names[b]):
                        continue
                    found = weigh(min(a, b), max(a, b))
                    if a | b not in best:
                        levels[n].append(a | b)
                    if a | b not in best or found[0] < best[a | b][0]:
                        best[a | b] = found
        largest: list[int] = []
        for members in reversed([m for level in levels for m in level]):
            if not any(members & m for m in largest):
                largest.append(members)
        return sorted(largest)

    def one_by_one() -> list[int]:
        left = list(best)
        while found := [(a, b) for a, b in itertools.combinations(left, 2) if not names[a].isdisjoint(names[b])]:
            grown = {(a, b): size(made(a | b)) - size(names[a]) - size(names[b]) for a, b in found}
            a, b = min(found, key=lambda p: (grown[p], size(names[p[0]] | names[p[1]])))
            best[a | b] = weigh(a, b)
            left = [*(m for m in left if m not in (a, b)), a | b]
        return left

    apart = try_all() if exhaustive or (exhaustive is None and count <= EXHAUSTIVE) else one_by_one()
    apart.sort(key=lambda m: size(names[m]))
    while len(apart) > 1:
        a, b, *apart = apart
        best[a | b] = weigh(a, b)
        apart.insert(0, a | b)
    listed = [1 << k for k in range(count)]
    steps = []
    for a, b in best[apart[0]][1]:
        steps.append((listed.index(a), listed.index(b)))
        listed = [*(m for m in listed if m not in (a, b)), a | b]
    return steps
