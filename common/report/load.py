"""Load the rows in results/."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from common.pair import Pair
from common.report.paper import PAPER_DEFENSES
from common.report.rows import SCENARIO_TITLES, read_row, scenario_of, setting

Rows = list[dict[str, Any]]


def read_rows(root: Path) -> Rows:
    """The rows under `root`/results, in the order of their files."""
    return [read_row(path) for path in sorted((root / "results").glob("*/*/*.json"))]


def of_kind(rows: Iterable[dict[str, Any]], kind: str) -> Rows:
    """The rows of one kind."""
    return [row for row in rows if row["kind"] == kind]


def by_setting(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], Rows]:
    """The evaluations among the rows by (data set, `setting`).

    The rows of a setting are in the order of a table: the paper's defenses as in Table III, then others by name. The rows of a
    defense are without Diffence first, then by scenario.
    """
    groups: dict[tuple[str, str], Rows] = {}
    for row in of_kind(rows, "evaluation"):
        groups.setdefault((row["dataset"], setting(row)), []).append(row)
    scenarios = [None, *SCENARIO_TITLES]

    def sort_key(row: dict[str, Any]) -> tuple[int, str, int]:
        defense = row["defense"]
        rank = PAPER_DEFENSES.index(defense) if defense in PAPER_DEFENSES else len(PAPER_DEFENSES)
        return rank, defense, scenarios.index(scenario_of(row))

    return {key: sorted(group, key=sort_key) for key, group in groups.items()}


def stored_scores(row: Path) -> dict[str, Pair[np.ndarray]] | None:
    """The scores [n] and [m] of members and non-members beside the JSON file of a row, by attack; None where there are none.

    They lie in a .npz file in results/ (`collect.pack_scores`), and in .npy files where an evaluation writes
    (`rows.write_result`).
    """
    packed = row.with_suffix(".npz")
    if packed.is_file():
        with np.load(packed) as arrays:
            names = [name for name in arrays.files if not name.endswith(" members")]
            return {name: Pair(*np.split(arrays[name].astype(np.float64), [int(arrays[f"{name} members"])])) for name in names}
    scores = {}
    for path in sorted((row.parent / "scores").glob(f"*-based-{row.stem}.npy")):
        values, membership = np.load(path).T
        scores[path.name.removesuffix(f"-based-{row.stem}.npy")] = Pair(values[membership == 1], values[membership == 0])
    return scores or None
