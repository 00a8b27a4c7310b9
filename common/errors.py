"""The one exception a user meets: a sentence that says what is wrong and what to do. Scripts turn it into exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: a wrong name, shape, range or file. The message is one sentence that says what to do."""


def check_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`, else refuse it, naming the nearest known one."""
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UserError(f"unknown {kind} '{name}'.{hint} Known: {', '.join(names)}.")
