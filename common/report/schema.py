"""The schema of a row. Rows of an older schema are brought up to date; a file that is no row of this project is refused."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.run import SCHEMA

# The keys that the tables read: those of every row, and those of the rows of one kind.
OF_EVERY_ROW = ("dataset", "profile", "protocol", "defense", "seed", "overrides", "commit", "config")
OF_KIND = {
    "evaluation": ("accuracy", "attacks", "best", "diffence", "gap_floor", "null", "scored", "utility", "warnings"),
    "label_only": ("attacks", "scored"),
    "repeated_queries": ("runs", "scored"),
    "frontier": ("budget", "cells", "cost", "gap_floor", "network", "scored", "training", "without"),
    "intervals": ("intervals", "scored"),
    "worst_case": ("canaries", "controls", "models", "scenario", "scored"),
}


def current_row(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The row in the JSON file at `path`, whose `content` may be of an older schema, in the schema of this version.

    Raises UserError, which names the file, for a newer schema, a missing key, and a number that is NaN or infinite.
    """
    schema = content.get("schema", 1)
    if type(schema) is not int or schema < 1:
        raise UserError(f"{path} is no row of this project (its schema is {schema!r}): move it away.")
    if schema > SCHEMA:
        raise UserError(f"{path} has schema {schema}, and this version reads up to {SCHEMA}: update the code (git pull).")
    row = {**_kind_of_schema_1(content), **content, "schema": SCHEMA} if schema == 1 else content
    keys = ("kind", *OF_EVERY_ROW, *OF_KIND.get(row.get("kind", ""), ()))
    missing = [key for key in keys if key not in row]
    remedy = f"make it again with its command, or restore it with: git checkout {path}"
    if missing:
        raise UserError(f"{path} (schema {schema}) lacks {', '.join(missing)}: {remedy}")
    broken = list(_not_finite(row))
    if broken:
        raise UserError(f"{path} holds NaN or infinite numbers ({', '.join(broken[:4])}): {remedy}")
    return row


def _kind_of_schema_1(content: dict[str, Any]) -> dict[str, str]:
    """The kind of a row of schema 1, some of which do not say it. Nothing where their keys are not those of any kind."""
    kinds = {"best": "evaluation", "runs": "repeated_queries", "boundary": "label_only"}
    return next(({"kind": kind} for key, kind in kinds.items() if key in content), {})


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """The names of the numbers in nested dicts and lists that are NaN or infinite, such as attacks.nn.auc."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield name
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(item, f"{name}.{key}" if name else str(key))
