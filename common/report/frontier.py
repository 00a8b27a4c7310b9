"""How small may Diffence's diffusion model be? The attack and the cost of a query by the network and its training, from rows.

The paper has no such figure. The rows are those of evaluate_MIAs/frontier.py.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from common.report.editions import Edition, Row, StoredRow
from common.report.paper import PaperNumbers
from common.report.paper_commands import profile_for
from common.report.paper_figures import PaperFigure, no_rows
from common.report.style import COLUMN, DATASET_TITLES, DIFFENCE_STYLES, DIFFENCE_TITLES, PAGE, new_figure, title_of
from common.report.tables import Cell, Column, Line, PaperTable

NETWORKS = ("width 16", "width 32", "width 64")  # by size, the largest last
TRAININGS = ("up to T", "T alone")
GOALS = {"3": 5.0, "1": 12.0}  # the most that a query may cost over the bare classifier's, by scenario
MARKERS = dict(zip(NETWORKS, "o^s", strict=True))
COMMAND = "python {dataset}/evaluate_MIAs/frontier.py --profile {profile}"


def figure_frontier(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """The AUC of the best attack against the cost of a query, for every network and training, in scenarios 1 and 3."""
    title = "How small the diffusion model may be: best attack against the cost of a query"
    found = {dataset: cells_of(edition, dataset) for dataset in edition.datasets}
    found = {dataset: cells for dataset, cells in found.items() if cells}
    if not found:
        return no_rows("frontier", title, frontier_command(edition, edition.datasets[0]))
    panels = list(product(found, GOALS))
    figure, axes = new_figure(1, len(panels), COLUMN if len(panels) == 1 else PAGE, 3.1, sharey=False)
    for axis, (dataset, scenario) in zip(axes[0], panels, strict=True):
        _draw_panel(axis, [stored.row for stored in found[dataset].values()], scenario)
        axis.set_title(f"{title_of(DATASET_TITLES, dataset)}\n{DIFFENCE_TITLES[scenario]}")
    axes[0][0].set_ylabel("best AUC (%)")
    point = partial(Line2D, [], [], linestyle="", color="black")
    shown = [stored for cells in found.values() for stored in cells.values()]
    networks = [name for name in NETWORKS if any(stored.row["network"] == name for stored in shown)]
    markers = [point(marker=MARKERS[name], label=f"UNet, {name}") for name in networks]
    trainings = [
        Patch(facecolor=face, edgecolor="black", label=f"trained on {name}")
        for name, face in zip(TRAININGS, ("black", "white"), strict=True)
    ]
    lines = [
        Line2D([], [], color=DIFFENCE_STYLES[None]["color"], label="without Diffence"),
        Line2D([], [], color="black", linestyle=":", linewidth=1, label="gap floor"),
    ]
    figure.legend(handles=[*markers, *trainings, *lines], loc="outside lower center", ncols=4, columnspacing=1.0)
    goal = f"at most {GOALS['3']:g} times in scenario 3 and {GOALS['1']:g} times in scenario 1, with an AUC"
    minutes = sorted({stored.row["budget"]["minutes"] for stored in shown})
    caption = (
        f"Each diffusion model was trained for {' or '.join(f'{one:g}' for one in minutes)} CPU minutes. The cost is the CPU "
        "time of a query that is asked alone, over that of the bare classifier at its published size. Bars are 95% intervals. "
        f"The goal, grey where it can be judged: {goal} no higher than the 95% interval of the largest network, of the "
        "training whose interval ends lower. " + " ".join(goal_sentence(dataset, cells) for dataset, cells in found.items())
    )
    return PaperFigure("frontier", title, caption, figure, _numbers(edition, found), rows=tuple(shown))


def cells_of(edition: Edition, dataset: str) -> dict[tuple[str, str], StoredRow]:
    """The rows of the undefended classifier by network and training.

    Of several, the one of the longest training, then of the most scored images, then of the first seed is taken.
    """
    cells: dict[tuple[str, str], StoredRow] = {}
    for stored in sorted(edition.find("frontier", dataset=dataset, defense="undefended"), key=_preferred, reverse=True):
        cells.setdefault((stored.row["network"], stored.row["training"]), stored)
    return {key: cells[key] for key in product(NETWORKS, TRAININGS) if key in cells}


def _preferred(stored: StoredRow) -> tuple[float, int, int]:
    return stored.row["budget"]["minutes"], stored.row["scored"]["members"], -stored.row["seed"]


def frontier_command(edition: Edition, dataset: str) -> str:
    """The command that makes every cell of a data set."""
    return COMMAND.format(dataset=dataset, profile=profile_for(dataset, edition.profile))


def over_bare(row: Row, scenario: str, classifier: str = "published", batch: int = 1) -> float:
    """The cost of a query over that of the bare classifier."""
    wanted = {"classifier": classifier, "batch": batch}
    (ratio,) = (one["over_bare"][scenario] for one in row["cost"]["queries"] if wanted.items() <= one.items())
    return float(ratio)


def cell_in(row: Row, scenario: str) -> dict[str, Any]:
    """What attacks reach behind a cell in a scenario."""
    (cell,) = (one for one in row["cells"] if one["scenario"] == scenario)
    return dict(cell)


def ceiling(rows: Iterable[Row], scenario: str) -> float | None:
    """The largest AUC that meets the goal: the upper end of the largest network's interval, the lower one of its trainings'."""
    return min((cell_in(row, scenario)["auc_interval"][1] for row in rows if row["network"] == NETWORKS[-1]), default=None)


def goal_sentence(dataset: str, cells: dict[tuple[str, str], StoredRow]) -> str:
    """Which networks and trainings meet the goal in each scenario."""
    name, rows, parts = title_of(DATASET_TITLES, dataset), [stored.row for stored in cells.values()], []
    for scenario, most in GOALS.items():
        limit = ceiling(rows, scenario)
        if limit is None:
            return f"{name}: without the largest network, the goal cannot be judged."
        met = [
            f"{row['network']} trained on {row['training']}"
            for row in rows
            if over_bare(row, scenario) <= most and cell_in(row, scenario)["best"]["auc"] <= limit
        ]
        parts.append(f"in scenario {scenario} by {', '.join(met) or 'none'}")
    return f"{name}: the goal is met {'; '.join(parts)}."


def _draw_panel(axis: Axes, rows: Sequence[Row], scenario: str) -> None:
    """A point with an interval for each row, the goal, and the values without Diffence and of the gap attack."""
    for row in rows:
        cell, color = cell_in(row, scenario), DIFFENCE_STYLES[scenario]["color"]
        auc, (low, high) = cell["best"]["auc"], cell["auc_interval"]
        face = color if row["training"] == TRAININGS[0] else "white"
        axis.errorbar(
            over_bare(row, scenario),
            100 * auc,
            [[100 * (auc - low)], [100 * (high - auc)]],
            fmt=MARKERS[row["network"]],
            color=color,
            markerfacecolor=face,
            elinewidth=0.7,
        )
    limit = ceiling(rows, scenario)
    if limit is not None:
        axis.fill_between([0, GOALS[scenario]], 100 * rows[0]["gap_floor"], 100 * limit, color="#e8e8e8", zorder=0)
    axis.axhline(100 * rows[0]["without"]["best"]["auc"], color=DIFFENCE_STYLES[None]["color"])
    axis.axhline(100 * rows[0]["gap_floor"], color="black", linestyle=":", linewidth=1)
    axis.set(xlabel="CPU time of a query / bare classifier's", xlim=(0, 1.1 * max(over_bare(row, scenario) for row in rows)))


def _numbers(edition: Edition, found: dict[str, dict[tuple[str, str], StoredRow]]) -> PaperTable:
    """A line for each data set, network and training; a cell without a row has the command."""
    columns: list[Column] = [("", "GFLOP an image"), ("", "training steps")]
    metrics = ("best AUC (%)", "no match (%)", "draws", "x published", "x trained")
    columns += [(DIFFENCE_TITLES[scenario], name) for scenario in GOALS for name in metrics]
    lines = []
    for dataset, (network, training) in product(found, product(NETWORKS, TRAININGS)):
        heads, stored = (title_of(DATASET_TITLES, dataset), network, training), found[dataset].get((network, training))
        if stored is None:
            lines.append(Line(heads, dict.fromkeys(columns, Cell(command=frontier_command(edition, dataset)))))
            continue
        row = stored.row
        cells = [Cell(row["cost"]["gflop"]["unet"], digits=2), Cell(row["budget"]["steps"], digits=0)]
        for scenario in GOALS:
            cell, images = cell_in(row, scenario), sum(row["scored"].values())
            low, high = cell["auc_interval"]
            cells += [
                Cell(100 * cell["best"]["auc"], half_width=50 * (high - low), seeds=(row["seed"],)),
                Cell(100 * sum(cell["no_match"].values()) / images),
                Cell(row["cost"]["draws"][scenario], digits=2),
                Cell(over_bare(row, scenario), digits=1),
                Cell(over_bare(row, scenario, "trained"), digits=1),
            ]
        lines.append(Line(heads, dict(zip(columns, cells, strict=True))))
    notes = (
        "x published and x trained: the CPU time of a query over that of the bare classifier, at the architecture's published "
        "size and as it was trained. Candidates are drawn one by one, and images are asked about alone.",
    )
    return PaperTable("Frontier", "Networks and trainings", ("data set", "UNet", "trained on"), columns, lines, notes)
