"""The committed rows, as the tests of what docs/findings.md says of them read them."""

from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

from common.report.load import by_setting, read_rows
from common.report.paper import paper_table

Row = dict[str, Any]

SMALL = "small-clean-seed0"
BOTH = pytest.mark.parametrize("dataset", ["cifar10", "synthetic"])


def by_name(dataset: str, setting: str = SMALL) -> dict[tuple[str, str | None], Row]:
    """The committed rows of a setting by defense and scenario; None is without Diffence."""
    rows = by_setting(read_rows(ROOT))[dataset, setting]
    return {(row["defense"], row["diffence"]["scenario"] if row["diffence"] else None): row for row in rows}


def best(row: Row) -> SimpleNamespace:
    """AUC and interval [low, high] of the best of the paper's five attacks, and how far above the gap floor it is."""
    low, high = row["attacks"][row["best"]["attack"]]["auc_interval"]
    return SimpleNamespace(auc=row["best"]["auc"], low=low, high=high, above_floor=row["best"]["auc"] - row["gap_floor"])


def paper(defense: str, scenario: str = "without") -> SimpleNamespace:
    """The line of the paper's Table III: `auc` 0..1 and `delta`, points of accuracy over the undefended classifier."""
    table = {(line["defense"], line["scenario"]): line for line in paper_table(ROOT).to_dict("records")}
    line = table[defense, scenario]
    return SimpleNamespace(auc=line["auc"] / 100, delta=line["accuracy_delta"])
