"""A pair of values, one for the members and one for the non-members."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")

SIDES = ("members", "non_members")  # the names of the sides in files and rows


@dataclass(frozen=True)
class Pair(Generic[T]):
    """One value for the members and one for the non-members.

    Iterating gives the members' value first. `Pair(x, y).map(f)` is `Pair(f(x), f(y))`.
    """

    members: T
    non_members: T

    def __iter__(self) -> Iterator[T]:
        return iter((self.members, self.non_members))

    def map(self, function: Callable[..., U], *others: "Pair[Any]") -> "Pair[U]":
        """Apply `function` to each side. Its further arguments are the values of the same side in `others`."""
        return Pair(*(function(*values) for values in zip(self, *others, strict=True)))

    def as_dict(self) -> dict[str, T]:
        """The values by the names of the sides."""
        return dict(zip(SIDES, self, strict=True))
