"""Figures 9 to 11 of the paper: the interval of scenario 1, draws until an interval is hit, and N and T."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from common.report.editions import Edition, StoredRow, has_values
from common.report.paper import PaperNumbers
from common.report.paper_commands import experiment_command
from common.report.paper_figures import PaperFigure, first_seed, no_rows, shown_datasets
from common.report.style import COLUMN, DATASET_TITLES, DIFFENCE_STYLES, DIFFENCE_TITLES, PAGE, new_figure, title_of
from common.report.tables import Cell, Line, PaperTable

ORDERED = colormaps["viridis"]  # for what has an order, such as T; it is readable in grey and ends before yellow
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def interval_rows(edition: Edition, n: int, t: int) -> list[StoredRow]:
    """One row on intervals for each data set: of the undefended classifier, the nearest to the given T and N."""
    found = []
    for dataset in edition.datasets:
        rows = [
            stored
            for stored in edition.of_kind("intervals")
            if has_values(stored.row, dataset=dataset, defense="undefended")
            and all(override.startswith(("diffence.n=", "diffence.t=")) for override in stored.row["overrides"])
        ]
        distance = {id(one): (abs(one.row["t"] - t), abs(one.row["n"] - n), one.row["seed"]) for one in rows}
        found += sorted(rows, key=lambda one: distance[id(one)])[:1]
    return found


def figure_9(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 9: attack AUC and accuracy against the Jensen-Shannon divergence of every interval that scenario 1 may choose."""
    title = "Best attack against the Jensen-Shannon divergence of an interval"
    rows = interval_rows(edition, n=50, t=40)
    if not rows:
        options = "--set diffence.n=50 --set diffence.t=40"
        return no_rows(
            "9", title, experiment_command(edition, edition.datasets[0], "intervals", options, defenses=["undefended"])
        )
    width = COLUMN if len(rows) == 1 else PAGE
    figure, axes = new_figure(2, len(rows), width, 3.6, sharex="col", sharey="row")
    metrics = {"best_auc": "best AUC (%)", "best_accuracy": "best accuracy (%)"}
    lines = []
    for column, stored in enumerate(rows):
        row = stored.row
        for line, (metric, label) in zip(axes, metrics.items(), strict=True):
            js, values = (np.array([one[key] for one in row["intervals"]]) for key in ("js", metric))
            line[column].plot(
                js, 100 * values, ".", color=DIFFENCE_STYLES["1"]["color"], markersize=3, alpha=0.7, rasterized=True
            )
            line[0].set_ylabel(label)
        axes[0][column].set_title(f"{title_of(DATASET_TITLES, row['dataset'])}, N = {row['n']}, T = {row['t']}")
        axes[1][column].set_xlabel("JS divergence (nats)")
        correlation = Cell(row["rank_correlation"]["js_and_auc"], digits=2)
        heads = (title_of(DATASET_TITLES, row["dataset"]), str(row["n"]), str(row["t"]))
        lines.append(Line(heads, {("", "rank correlation of divergence and AUC"): correlation}))
    caption = (
        f"Every interval that the search of scenario 1 compares on {shown_datasets(rows)}, undefended classifier: the "
        "Jensen-Shannon divergence between members and non-members on the defender's points, and the best attack "
        f"({', '.join(rows[0].row['attacks'])}) on the scored points. The paper has N = 50, T = 40, and states no correlation."
    )
    numbers = PaperTable(
        "Figure 9",
        "Spearman's rank correlation",
        ("data set", "N", "T"),
        [("", "rank correlation of divergence and AUC")],
        lines,
    )
    return PaperFigure("9", title, caption, figure, numbers, rows=tuple(rows))


def figure_10(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 10: the share of images of which one of the first 1, 2, .., N candidates lies in an interval."""
    title = "Draws until a candidate lies in an interval"
    rows = interval_rows(edition, n=30, t=100)
    if not rows:
        options = "--set diffence.t=100"
        return no_rows(
            "10", title, experiment_command(edition, edition.datasets[0], "intervals", options, defenses=["undefended"])
        )
    width = COLUMN if len(rows) == 1 else PAGE
    figure, axes = new_figure(1, len(rows), width, 2.6, sharey=True)
    for axis, stored in zip(axes[0], rows, strict=True):
        row = stored.row
        for i, draws in enumerate(row["draws"]):
            color, style = ORDERED(0.85 * i / len(row["draws"])), LINE_STYLES[i % len(LINE_STYLES)]
            counts = np.arange(1, len(draws["cdf"]) + 1)
            axis.plot(counts, 100 * np.array(draws["cdf"]), color=color, linestyle=style, label=f"{100 * draws['share']:.0f}%")
        axis.set(title=f"{title_of(DATASET_TITLES, row['dataset'])}, T = {row['t']}", xlabel="candidates drawn", ylim=(0, 101))
    axes[0][0].set_ylabel("images with one inside (%)")
    axes[0][-1].legend(title="interval holds", loc="lower right", title_fontsize=7)
    caption = (
        f"The share of scored images of {shown_datasets(rows)} of which at least one of the first candidates keeps the label "
        "and lies in the interval. Each interval holds the given share of the defender's candidates. Undefended classifier. "
        "The paper has CIFAR-100 and T = 100."
    )
    return PaperFigure("10", title, caption, figure, rows=tuple(rows))


def figure_11(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 11: the best attack's AUC and accuracy by T, with a line for each N."""
    title = "Best attack by the number of candidates N and the diffusion step T"
    rows = [
        stored
        for dataset in edition.datasets
        if (stored := first_seed(edition.find("n_and_t", dataset=dataset, defense="undefended")))
    ]
    if not rows:
        return no_rows("11", title, experiment_command(edition, edition.datasets[0], "n_and_t", defenses=["undefended"]))
    panels = [(stored, scenario) for stored in rows for scenario in stored.row["scenarios"]]
    figure, axes = new_figure(2, len(panels), COLUMN if len(panels) == 1 else PAGE, 4.0, sharex="col", sharey="row")
    lines = []
    for column, (stored, scenario) in enumerate(panels):
        row = stored.row
        for line, metric in zip(axes, ("auc", "accuracy"), strict=True):
            _draw_grid(line[column], row, scenario, metric)
            line[0].set_ylabel({"auc": "best AUC (%)", "accuracy": "best accuracy (%)"}[metric])
        axes[0][column].set_title(f"{title_of(DATASET_TITLES, row['dataset'])}\n{DIFFENCE_TITLES[scenario]}")
        axes[1][column].set_xlabel("T")
        ends = [min(row["n_values"]), max(row["n_values"])], [min(row["t_values"]), max(row["t_values"])]
        cells = {
            ("best AUC (%)", f"{size} N, {step} T"): Cell(100 * _cell(row, scenario, n, t)["best"]["auc"])
            for size, n in zip(("least", "most"), ends[0], strict=True)
            for step, t in zip(("least", "most"), ends[1], strict=True)
        }
        heads = (
            title_of(DATASET_TITLES, row["dataset"]),
            DIFFENCE_TITLES[scenario],
            "{}..{}".format(*ends[0]),
            "{}..{}".format(*ends[1]),
        )
        lines.append(Line(heads, {("best AUC (%)", "without Diffence"): Cell(100 * row["without"]["best"]["auc"]), **cells}))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    caption = (
        f"AUC and accuracy of the best of the paper's five attacks on {shown_datasets(rows)}, undefended classifier, with N "
        "candidates of each image, noised up to step T. The paper shows means over three data sets for N of 2 to 50 and T of "
        "40 to 260, and prints no number."
    )
    heads = ("data set", "Diffence", "N", "T")
    numbers = PaperTable("Figure 11", "The corners of the grid", heads, list(lines[0].cells), lines)
    return PaperFigure("11", title, caption, figure, numbers, rows=tuple(rows))


def _draw_grid(axis: Axes, row: dict[str, Any], scenario: str, metric: str) -> None:
    """A line for each N, and the values without Diffence and of the gap attack."""
    for i, n in enumerate(row["n_values"]):
        color, style = ORDERED(0.85 * i / len(row["n_values"])), LINE_STYLES[i % len(LINE_STYLES)]
        values = [100 * _cell(row, scenario, n, t)["best"][metric] for t in row["t_values"]]
        axis.plot(row["t_values"], values, color=color, linestyle=style, marker=".", label=f"N = {n}")
    axis.axhline(100 * row["without"]["best"][metric], color=DIFFENCE_STYLES[None]["color"], label="without Diffence")
    axis.axhline(100 * row["gap_floor"], color="black", linestyle=":", linewidth=1, label="gap attack")


def _cell(row: dict[str, Any], scenario: str, n: int, t: int) -> dict[str, Any]:
    return next(cell for cell in row["cells"] if (cell["scenario"], cell["n"], cell["t"]) == (scenario, n, t))
