"""Attacks on canaries and on random images, of every defense without and with Diffence, from the rows of worst_case.py.

The best attack on a group of points is `best_attack`: the one with the largest TPR at 0.1% FPR.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from common.pair import SIDES
from common.report.editions import Edition, Row, StoredRow, in_order
from common.report.experiments import best_attack, rate_text, tpr_of
from common.report.load import Rows, of_kind
from common.report.paper import PAPER_DEFENSES, PaperNumbers
from common.report.paper_commands import profile_for
from common.report.paper_figures import PaperFigure, no_rows
from common.report.rows import SCENARIO_TITLES, as_markdown
from common.report.style import (
    ATTACK_TITLES,
    COLUMN,
    DATASET_TITLES,
    DEFENSE_TITLES,
    DIFFENCE_STYLES,
    DIFFENCE_TITLES,
    PAGE,
    new_figure,
    title_of,
)
from common.report.tables import Cell, Column, Line, PaperTable

COMMAND = "bash all-train-all.sh --datasets {dataset} --profile {profile} --experiments worst_case"
TITLE = "The most exposed members: attacks on images with a wrong label, and on random images"
GROUPS = {"canaries": "canaries", "controls": "random images"}


def worst_case_tables(rows: Rows) -> list[str]:
    """A table for each data set, profile and seed with a line for each row, as Markdown."""
    parts = []
    for (dataset, profile, seed, models, *_), of_setting in by_setting(rows).items():
        first = of_setting[0]
        scored = "{members:,} + {non_members:,}".format(**first["scored"])
        commits = sorted({row["commit"] for row in of_setting})
        parts.append(
            f"**images with a wrong label: {dataset}, {profile}, seed{seed}**: {models} models, {first['canaries']['points']} "
            f"canaries and as many random images, scored {scored}; commit {' '.join(commits)}.\n\n"
            f"{as_markdown(pd.DataFrame(map(_columns, of_setting)))}"
        )
    return parts


def by_setting(rows: Iterable[Row]) -> dict[tuple[Any, ...], Rows]:
    """The rows of worst_case by `_setting`, in the order of a table."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in of_kind(rows, "worst_case"):
        groups.setdefault(_setting(row), []).append(row)
    return {key: in_table_order(groups[key]) for key in groups}


def _setting(row: Row) -> tuple[Any, ...]:
    """Data set, profile, seed, number of models and of canaries, and the further settings that rows of one table share."""
    own = ("data.canaries=", "diffence.fallback=", "attack.shadows=")
    shared = tuple(sorted(change for change in row["overrides"] if not change.startswith(own)))
    return row["dataset"], row["profile"], row["seed"], row["models"], row["canaries"]["points"], shared


def in_table_order(rows: Iterable[Row]) -> Rows:
    """One row for each defense, scenario and fallback: those of the paper first, without Diffence before with it.

    Without Diffence there is no fallback. Of its rows the first is taken, because the others have the same answers.
    """
    found: dict[tuple[str, str | None, str], Row] = {}
    for row in rows:
        found.setdefault((row["defense"], row["scenario"], row["fallback"] if row["scenario"] else ""), row)
    defenses, scenarios = in_order({key[0] for key in found}, PAPER_DEFENSES), [None, *SCENARIO_TITLES]
    return [found[key] for key in sorted(found, key=lambda key: (defenses.index(key[0]), scenarios.index(key[1]), key[2]))]


def way_of(row: Row) -> str:
    """What Diffence does in a row: `without`, `scenario 1`, or `scenario 1, reorder` under that fallback."""
    if row["scenario"] is None:
        return "without"
    return SCENARIO_TITLES[row["scenario"]] + (f", {row['fallback']}" if row["fallback"] != "original" else "")


def epsilon_of(row: Row) -> float | None:
    """The epsilon that the training of a row's models spent; None where it had no noise, or no such guarantee."""
    epsilon: float | None = row.get("training", {}).get("epsilon")
    return epsilon


def _columns(row: Row) -> dict[str, str]:
    """A row as a line of a Markdown table. The accuracy is that of the random images that are no members."""
    epsilon = epsilon_of(row)
    line = {
        "defense": row["defense"],
        "Diffence": way_of(row),
        "accuracy %": f"{100 * row['controls']['given_label']['non_members']:.1f}",
        "epsilon": "-" if epsilon is None else f"{epsilon:.3g}",
    }
    for group, title in GROUPS.items():
        facts = row[group]
        best = best_attack(facts)
        line |= {
            f"{title}: TPR @0.1%FPR": rate_text(tpr_of(facts, best)),
            f"{title}: TPR @1%FPR": rate_text(tpr_of(facts, best, "0.01")),
            f"{title}: best attack": best,
        }
    lost = (f"{100 * row['canaries']['no_match'][side]:.1f}%" for side in SIDES)
    return line | {"canaries without a match, members / non-members": " / ".join(lost)}


def worst_case_findings(rows: Rows) -> str:
    """The tables and sentences of docs/worst_case.md. Without rows, the command that makes them."""
    tables = worst_case_tables([row for row in rows if row["seed"] == 0])
    if not tables:
        return f"There are no rows yet. This makes them: `{COMMAND.format(dataset='synthetic', profile='small')}`"
    sentences = []
    for (dataset, profile, seed, *_), of_setting in by_setting(rows).items():
        if seed == 0:
            sentences += [f"- {title_of(DATASET_TITLES, dataset)}, {profile}, {text}" for text in _findings(of_setting)]
    return "\n\n".join([*(["\n".join(sentences)] if sentences else []), *tables])


def _findings(rows: Rows) -> list[str]:
    """Which defense protects canaries least and most, a sentence for each way of answering that has rows of several."""
    texts = []
    for way in dict.fromkeys(map(way_of, rows)):
        of_way = [row for row in rows if way_of(row) == way]
        most, least = max(of_way, key=_exposure), min(of_way, key=_exposure)
        if most is least:
            continue
        shown = "without Diffence" if way == "without" else f"with Diffence in {way}"
        texts.append(f"{shown}: at 0.1% FPR, most canaries are found for {_found(most)}, fewest for {_found(least)}.")
    return texts


def _exposure(row: Row) -> float:
    return float(tpr_of(row["canaries"], best_attack(row["canaries"]))["rate"])


def _found(row: Row) -> str:
    attack = best_attack(row["canaries"])
    return f"{title_of(DEFENSE_TITLES, row['defense'])} ({rate_text(tpr_of(row['canaries'], attack))}, {attack})"


def figure_worst_case(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """The TPR of the best attack at 0.1% FPR on canaries and on random images, for every defense and scenario."""
    found = {dataset: shown_rows(edition, dataset) for dataset in edition.datasets}
    found = {dataset: rows for dataset, rows in found.items() if rows}
    if not found:
        dataset = edition.datasets[0]
        command = COMMAND.format(dataset=dataset, profile=profile_for(dataset, edition.profile))
        return no_rows("worst_case", TITLE, command)
    figure, axes = new_figure(1, len(found), COLUMN if len(found) == 1 else PAGE, 3.4, sharey=False)
    scenarios: dict[str | None, None] = {}
    for axis, (dataset, stored) in zip(axes[0], found.items(), strict=True):
        rows = [one.row for one in stored if one.row["fallback"] == "original"]
        defenses = list(dict.fromkeys(row["defense"] for row in rows))
        ways = list(dict.fromkeys(row["scenario"] for row in rows))
        scenarios |= dict.fromkeys(ways)
        for row in rows:
            offset = (ways.index(row["scenario"]) - (len(ways) - 1) / 2) * 0.8 / len(ways)
            for group, marker in zip(GROUPS, "os", strict=True):
                rate = tpr_of(row[group], best_attack(row[group]))
                value, (low, high) = rate["rate"], rate["interval"]
                color = DIFFENCE_STYLES[row["scenario"]]["color"]
                axis.errorbar(
                    100 * value,
                    defenses.index(row["defense"]) + offset,
                    xerr=100 * np.array([[max(value - low, 0)], [max(high - value, 0)]]),
                    fmt=marker,
                    color=color,
                    markerfacecolor=color if group == "canaries" else "white",
                    markersize=4,
                    elinewidth=0.7,
                )
        axis.set_yticks(range(len(defenses)), [title_of(DEFENSE_TITLES, name) for name in defenses])
        axis.invert_yaxis()
        axis.set(title=title_of(DATASET_TITLES, dataset), xlabel="TPR at 0.1% FPR (%)")
    handles = [
        *(Line2D([], [], color=DIFFENCE_STYLES[name]["color"], label=DIFFENCE_TITLES[name]) for name in scenarios),
        Line2D([], [], marker="o", linestyle="", color="black", label="canaries"),
        Line2D([], [], marker="s", linestyle="", color="black", markerfacecolor="white", label="random images"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(found) == 1 else 5)
    shown = tuple(one for stored in found.values() for one in stored)
    caption = (
        "The best of all attacks on each group of points, the one of an attacker who knows the defense included. Bars are 95% "
        "intervals of the bootstrap over points. Where no candidate keeps the label, the original prediction is released; the "
        "table also has the fallback `reorder`."
    )
    return PaperFigure("worst_case", TITLE, caption, figure, _numbers(found), rows=shown)


def shown_rows(edition: Edition, dataset: str) -> list[StoredRow]:
    """The rows of a data set that are shown, in the order of a table: those of the first seed with the most models.

    Of several settings the one with the most canaries and the fewest changes is taken.
    """
    stored = [one for one in edition.of_kind("worst_case") if one.row["dataset"] == dataset]

    def preferred(one: StoredRow) -> tuple[Any, ...]:
        _, _, seed, models, canaries, shared = _setting(one.row)
        return seed, -models, -canaries, len(shared), shared

    best = min(map(preferred, stored), default=None)
    kept = {id(one.row): one for one in stored if preferred(one) == best}
    return [kept[id(row)] for row in in_table_order(one.row for one in kept.values())]


def _numbers(found: dict[str, list[StoredRow]]) -> PaperTable:
    """A line for each row and group of points. The ends of an interval are columns of their own."""
    rates = [(f"TPR at {name} FPR (%)", part) for name in ("0.1%", "1%") for part in ("value", "from", "to")]
    columns: Sequence[Column] = [*rates, ("", "AUC (%)"), ("", "no match (%)"), ("", "accuracy (%)"), ("", "epsilon")]
    lines = []
    for dataset, stored in found.items():
        for row in (one.row for one in stored):
            for group, title in GROUPS.items():
                facts, attack = row[group], best_attack(row[group])
                values = [
                    *(100 * value for fpr in ("0.001", "0.01") for value in _three(tpr_of(facts, attack, fpr))),
                    100 * facts["attacks"][attack]["auc"],
                    50 * sum(facts["no_match"].values()),
                    100 * row["controls"]["given_label"]["non_members"],
                    epsilon_of(row),
                ]
                heads = (
                    title_of(DATASET_TITLES, dataset),
                    title_of(DEFENSE_TITLES, row["defense"]),
                    way_of(row),
                    title,
                    title_of(ATTACK_TITLES, attack),
                )
                lines.append(Line(heads, dict(zip(columns, map(Cell, values), strict=True))))
    notes = (
        "accuracy: of random images that are no members. no match: the share of answers for which no candidate keeps the "
        "label. The best attack is the one with the largest TPR at 0.1% FPR.",
    )
    names = ("data set", "defense", "Diffence", "points", "best attack")
    return PaperTable("Worst case", "Canaries and random images", names, columns, lines, notes)


def _three(rate: dict[str, Any]) -> tuple[float, float, float]:
    low, high = rate["interval"]
    return rate["rate"], low, high
