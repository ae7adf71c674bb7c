"""What a recipe leaves open: parameters with a value by formula, in whose place a tuner may put another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kernelforge.errors import IllegalSchedule


class Choices:
    """Values for the parameters of recipes, by name.

    Attributes:
        given: the values that replace those of the formulae.
        offered: the parameters that were asked for, each with the values it takes, that of the formula first.
    """

    def __init__(self, given: Mapping[str, int]) -> None:
        self.given = dict(given)
        self.offered: dict[str, tuple[int, ...]] = {}

    def take(self, name: str, default: int, others: Sequence[int]) -> int:
        """Return the value given for ``name``, else ``default``.

        Raises:
            IllegalSchedule: when the value given is none of those.
        """
        offered = self.offered.setdefault(name, tuple(dict.fromkeys((default, *others))))
        value = self.given.get(name, default)
        if value not in offered and value != default:
            raise IllegalSchedule(step="choose", target=name, reason=f"{value} is none of {offered}")
        return value
