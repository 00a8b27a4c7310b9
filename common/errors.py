"""The exception for bad input. Scripts print its sentence and exit with code 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A wrong name, shape, range or file. The message is one sentence that says what is wrong and what to do."""


def check_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`. Else raise UserError, which suggests the nearest known name.

    `kind` says what is named, as in "defense".
    """
    names = list(known)
    if name in names:
        return name
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
