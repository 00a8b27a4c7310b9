"""Members and non-members side by side: whatever an experiment knows of both travels as one pair."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")

SIDES = ("members", "non_members")  # the names of the two in files and rows


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
        """`function` of each side; values of the same side of `others` are its further arguments."""
        return Pair(*(function(*values) for values in zip(self, *others, strict=True)))

    def as_dict(self) -> dict[str, T]:
        """The values by the names of the sides, as rows have them."""
        return dict(zip(SIDES, self, strict=True))
