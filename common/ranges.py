"""The ranges of settings, and the check that refuses a value outside of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True)
class Range:
    """The values that a setting may have.

    words: what follows "must" in the sentence that refuses a value.
    holds: whether a value is allowed.
    """

    words: str
    holds: Callable[[float], bool]


def at_least(lowest: int) -> Range:
    """The numbers from `lowest` on."""
    return Range(f"be at least {lowest}", lambda value: value >= lowest)


def within(lowest: int, highest: int) -> Range:
    """The numbers from `lowest` to `highest`, both included."""
    return Range(f"lie in {lowest}..{highest}", lambda value: lowest <= value <= highest)


POSITIVE = Range("be positive", lambda value: value > 0)
NOT_NEGATIVE = Range("not be negative", lambda value: value >= 0)
BELOW_1 = Range("be at least 0 and below 1", lambda value: 0 <= value < 1)
BETWEEN_0_AND_1 = Range("lie between 0 and 1, both excluded", lambda value: 0 < value < 1)


def check_range(settings: object, section: str, allowed: Range, *names: str) -> None:
    """Raise UserError for the first of the named fields of `settings` whose value is not allowed, or not finite.

    settings: a dataclass.
    section: its section of the config, such as "train", for the message.
    """
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and allowed.holds(value)):
            raise UserError(f"{section}.{name} must {allowed.words}, not {value}.")
