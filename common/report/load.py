"""Load the rows in results/."""

from pathlib import Path
from typing import Any

from common.report.paper import PAPER_DEFENSES
from common.report.rows import SCENARIO_TITLES, read_row, scenario_of, setting

Rows = list[dict[str, Any]]


def rows_of_kind(root: Path, kind: str) -> Rows:
    """The rows of one kind under `root`/results, in the order of their files."""
    rows = map(read_row, sorted((root / "results").glob("*/*/*.json")))
    return [row for row in rows if row["kind"] == kind]


def load_rows(root: Path) -> dict[tuple[str, str], Rows]:
    """The evaluations under `root`/results by (data set, `setting`).

    The rows of a setting are in the order of a table: the paper's defenses as in Table III, then others by name. The rows of a
    defense are without Diffence first, then by scenario.
    """
    by_setting: dict[tuple[str, str], Rows] = {}
    for row in rows_of_kind(root, "evaluation"):
        by_setting.setdefault((row["dataset"], setting(row)), []).append(row)
    scenarios = [None, *SCENARIO_TITLES]

    def sort_key(row: dict[str, Any]) -> tuple[int, str, int]:
        defense = row["defense"]
        rank = PAPER_DEFENSES.index(defense) if defense in PAPER_DEFENSES else len(PAPER_DEFENSES)
        return rank, defense, scenarios.index(scenario_of(row))

    return {key: sorted(rows, key=sort_key) for key, rows in by_setting.items()}
