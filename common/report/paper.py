"""The paper's Table III, and our rows beside it."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import UserError
from common.report.rows import SCENARIO_TITLES, accuracy_delta, as_markdown, name_columns, setting_title

PAPER_DEFENSES = ("undefended", "selena", "advreg", "hamp", "relaxloss", "dpsgd", "memguard")  # in the order of Table III

PaperLines = dict[tuple[str, str], dict[Hashable, Any]]  # by defense and by scenario as in `name_columns`


def read_paper(root: Path) -> pd.DataFrame:
    """Every number of the paper that results/paper.csv holds: a line for each, as the head of that file says."""
    path = root / "results" / "paper.csv"
    if not path.is_file():
        raise UserError(f"{path} is missing. Get it back with: git checkout results")
    return pd.read_csv(path, comment="#")


@dataclass(frozen=True)
class PaperNumbers:
    """The numbers of the paper, to look up."""

    values: dict[
        tuple[str, ...], float
    ]  # by source, data set, model, defense, diffence, attack and metric; "" = does not apply

    def find(
        self,
        source: str,
        metric: str,
        *,
        dataset: str = "average",
        model: str = "resnet18",
        defense: str = "undefended",
        diffence: str = "without",
        attack: str = "",
    ) -> float | None:
        """A number in the paper's unit, None where it prints none."""
        return self.values.get((source, dataset, model, defense, diffence, attack, metric))


def paper_numbers(root: Path) -> PaperNumbers:
    """The numbers of results/paper.csv under `root`."""
    keys = ["source", "dataset", "model", "defense", "diffence", "attack", "metric"]
    table = read_paper(root)
    names = table[keys].fillna("").astype(str).itertuples(index=False, name=None)
    return PaperNumbers(dict(zip(names, table["value"].astype(float), strict=True)))


def paper_table(root: Path) -> pd.DataFrame:
    """Table III: defense, scenario, accuracy_delta (points), auc and accuracy (percent)."""
    cells = read_paper(root)
    cells = cells[cells["source"] == "Table III"]
    table = cells.pivot(index=["defense", "diffence"], columns="metric", values="value")
    scenarios = ["without", *SCENARIO_TITLES.values()][:4]
    order = pd.MultiIndex.from_product([PAPER_DEFENSES, scenarios], names=["defense", "diffence"])
    table = table.reindex(order).reset_index()
    # The paper prints one accuracy delta for each defense: Diffence changes no label.
    table["accuracy_delta"] = table.groupby("defense")["accuracy_delta"].transform("max")
    return table.rename(columns={"diffence": "scenario", "attack_accuracy": "accuracy"})


def paper_lines(root: Path) -> PaperLines:
    """The lines of `paper_table` as dicts, by defense and scenario."""
    return {(line["defense"], line["scenario"]): line for line in paper_table(root).to_dict("records")}


def is_compared_with_paper(row: dict[str, Any]) -> bool:
    """Whether a row is of a run that is compared with Table III: CIFAR-10, profile small or narrow, no setting changed."""
    return row["dataset"] == "cifar10" and row["profile"] in ("small", "narrow") and not row["overrides"]


def paper_comparison(rows: list[dict[str, Any]], paper: PaperLines) -> str:
    """The rows of one setting beside the paper's, as Markdown. Rows that the paper does not have are left out."""
    lines = []
    for row in rows:
        columns, change = name_columns(row), accuracy_delta(row, rows)
        published = paper.get((columns["defense"], columns["Diffence"]))
        if published is not None:
            lines.append(
                {
                    **columns,
                    "delta acc": "-" if change is None else f"{change:+.1f}",
                    "paper: delta acc": f"{published['accuracy_delta']:+.1f}",
                    "best AUC": f"{row['best']['auc']:.3f}",
                    "paper: best AUC": f"{published['auc'] / 100:.3f}",
                    "best ACC": f"{row['best']['accuracy']:.3f}",
                    "oracle ACC": f"{row['best']['accuracy_oracle']:.3f}",
                    "paper: best ACC": f"{published['accuracy'] / 100:.3f}",
                    "null AUC": f"{row['null']['best']['auc']:.3f}",
                }
            )
    caption = (
        f"The rows above ({setting_title(rows[0])}) beside the paper's Table III. Sizes differ, so compare directions, not "
        "values: the paper's are averages over CIFAR-10, CIFAR-100 and SVHN of a full ResNet18 with 25,000 members (SVHN: "
        "5,000), and its accuracies are at oracle thresholds."
    )
    return f"{caption}\n\n{as_markdown(pd.DataFrame(lines))}"
