"""Figures 6 and 7 of the paper: calibration, and rates at few errors, as bars for each defense."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from common.report import row_metrics
from common.report.editions import Edition, Measurement, Metric, StoredRow, has_values, in_order, measure_over_seeds
from common.report.paper import PAPER_DEFENSES, PaperNumbers
from common.report.paper_commands import evaluation_command, experiment_command
from common.report.paper_figures import PaperFigure, dataset_titles, no_rows
from common.report.style import (
    COLUMN,
    DATASET_TITLES,
    DEFENSE_TITLES,
    DIFFENCE_STYLES,
    DIFFENCE_TITLES,
    PAGE,
    new_figure,
    title_of,
)
from common.report.tables import Cell, Column, Line, PaperTable, reduction


def figure_6(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 6: expected calibration error of the undefended classifier, without and with Diffence, and of the defenses."""
    title = "Expected calibration error"
    panels = {}
    for dataset in edition.datasets:
        bars: list[tuple[str, str | None, Measurement | None, float | None]] = []
        for scenario, name in DIFFENCE_TITLES.items():
            rows = edition.find("evaluation", dataset=dataset, defense="undefended", scenario=scenario)
            printed = paper.find("Figure 6", "ece", diffence=f"scenario {scenario}" if scenario else "without")
            label = "Undefended" if scenario is None else name
            bars.append((label, scenario, measure_over_seeds(rows, row_metrics.calibration_error), printed))
        for defense in edition.defenses():
            rows = edition.find("evaluation", dataset=dataset, defense=defense, scenario=None)
            if defense != "undefended":
                name = title_of(DEFENSE_TITLES, defense)
                bars.append((name, None, measure_over_seeds(rows, row_metrics.calibration_error), None))
        if bars[0][2]:
            panels[dataset] = [bar for bar in bars if bar[2]]
    if not panels:
        return no_rows("6", title, evaluation_command(edition, edition.datasets[0]))
    most = max(map(len, panels.values()))
    width = COLUMN if len(panels) == 1 else PAGE
    figure, axes = new_figure(1, len(panels), width, 0.9 + 0.2 * most, sharex=True)
    for axis, (dataset, bars) in zip(axes[0], panels.items(), strict=True):
        for i, (_, scenario, measurement, printed) in enumerate(bars):
            assert measurement is not None
            style = DIFFENCE_STYLES[scenario]
            axis.barh(
                i, measurement.value, 0.7, xerr=measurement.sd, color=style["color"], hatch=style["hatch"], edgecolor="white"
            )
            if printed is not None:
                axis.plot([printed, printed], [i - 0.45, i + 0.45], color="black", linewidth=1.8)
        axis.set_yticks(range(len(bars)), [label for label, *_ in bars])
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set(title=title_of(DATASET_TITLES, dataset), xlabel="expected calibration error")
    mark = Line2D([], [], color="black", linewidth=1.8, marker="", label="paper, mean of 3 data sets")
    figure.legend(handles=[mark], loc="outside lower right")
    caption = (
        f"Expected calibration error (10 bins) on {dataset_titles(list(panels))}: the undefended classifier without Diffence "
        "and in each scenario, and every defense without Diffence. Black lines are the paper's means over three data sets, "
        "where its text gives one. Lower is better."
    )
    drawn = tuple(one for dataset in panels for one in edition.find("evaluation", dataset=dataset))
    return PaperFigure("6", title, caption, figure, calibration_6(edition, paper, list(panels)), rows=drawn)


def calibration_6(edition: Edition, paper: PaperNumbers, datasets: list[str]) -> PaperTable:
    """What Section IV-B2 says of Figure 6."""
    columns: list[Column] = [
        *(("ECE of undefended", name) for name in ("without", "scenario 1", "scenario 2", "scenario 3")),
        ("", "HAMP above undefended (%)"),
    ]
    lines = []
    for dataset in datasets:
        cells = {}
        for column, scenario in zip(columns, (None, "1", "2", "3"), strict=False):
            rows = edition.find("evaluation", dataset=dataset, defense="undefended", scenario=scenario)
            found = measure_over_seeds(rows, row_metrics.calibration_error)
            cells[column] = Cell() if found is None else Cell(found.value, found.sd, seeds=found.seeds, digits=3)
        plain, hamp = (
            measure_over_seeds(
                edition.find("evaluation", dataset=dataset, defense=name, scenario=None), row_metrics.calibration_error
            )
            for name in ("undefended", "hamp")
        )
        cells[columns[-1]] = Cell(100 * (hamp.value / plain.value - 1)) if hamp and plain else Cell()
        lines.append(Line((title_of(DATASET_TITLES, dataset),), cells))
    printed = {column: Cell(paper.find("Figure 6", "ece", diffence=column[1]), digits=3) for column in columns[:4]}
    printed[columns[-1]] = Cell(paper.find("Figure 6", "ece_increase", defense="hamp"))
    lines.append(Line(("paper, mean of 3",), printed, paper=True))
    return PaperTable("Figure 6", "Calibration", ("data set",), columns, lines)


RATES = {"tpr_at_fpr": ("TPR", "FPR", "tpr_at_0.1_fpr_reduction"), "tnr_at_fnr": ("TNR", "FNR", "tnr_at_0.1_fnr_reduction")}


def figure_7(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 7: TPR at 0.1% FPR and TNR at 0.1% FNR of the best attack, LiRA and RMIA among them, without and in scenario 3."""
    title = "Rates at 0.1% errors of the best attack, LiRA among them, without Diffence and in scenario 3"
    shadowed = [
        stored
        for stored in edition.of_kind("evaluation")
        if len(stored.row["overrides"]) == 1 and stored.row["overrides"][0].startswith("attack.shadows=")
    ]
    if not shadowed:
        return no_rows("7", title, experiment_command(edition, edition.datasets[0], "lira"))
    datasets = in_order({stored.row["dataset"] for stored in shadowed}, edition.datasets)
    defenses = in_order({stored.row["defense"] for stored in shadowed}, PAPER_DEFENSES)
    figure, axes = new_figure(len(datasets), 2, PAGE, 0.5 + (0.5 + 0.32 * len(defenses)) * len(datasets), sharey="row")
    lines = []
    columns: list[Column] = [("", "TPR falls by (%)"), ("", "TNR falls by (%)")]
    for dataset, panel in zip(datasets, axes, strict=True):
        for axis, (rate, (name, error, _)) in zip(panel, RATES.items(), strict=True):
            for i, defense in enumerate(defenses):
                for offset, scenario in ((-0.2, None), (0.2, "3")):
                    found = measure_over_seeds(_of(shadowed, dataset, defense, scenario), _rate(rate))
                    if found:
                        _rate_bar(axis, i + offset, found, scenario)
            axis.set_yticks(range(len(defenses)), [title_of(DEFENSE_TITLES, one) for one in defenses])
            axis.set_xscale("symlog", linthresh=0.1, linscale=0.4)
            axis.set_xlim(0, 100)
            axis.set_xticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
            axis.grid(axis="y", visible=False)
            axis.set(title=title_of(DATASET_TITLES, dataset), xlabel=f"{name} at 0.1% {error} (%)")
        panel[0].invert_yaxis()
        for defense in defenses:
            pairs = [
                [measure_over_seeds(_of(shadowed, dataset, defense, one), _rate(rate)) for one in (None, "3")] for rate in RATES
            ]
            cells = dict(zip(columns, (reduction(*pair) for pair in pairs), strict=True))
            lines.append(Line((title_of(DEFENSE_TITLES, defense), title_of(DATASET_TITLES, dataset)), cells))
    for defense, name in (("undefended", "Undefended"), ("average", "mean of 6 defenses")):
        printed = [
            paper.find("Figure 7", metric, dataset="svhn", defense=defense, diffence="scenario 3", attack="best")
            for *_, metric in RATES.values()
        ]
        lines.append(Line((name, "paper, SVHN"), dict(zip(columns, map(Cell, printed), strict=True)), paper=True))
    patches = [
        Patch(facecolor=style["color"], hatch=style["hatch"], edgecolor="white", label=DIFFENCE_TITLES[scenario])
        for scenario, style in DIFFENCE_STYLES.items()
        if scenario in (None, "3")
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=2)
    shadows = ", ".join(str(number) for number in sorted({stored.row["config"]["attack"]["shadows"] for stored in shadowed}))
    caption = (
        f"The largest rate of any attack on {dataset_titles(datasets)}, LiRA and RMIA with {shadows} shadow models among them. "
        "Error bars are as wide as Clopper-Pearson's 95% intervals. The paper has more than 100 shadow models, on SVHN."
    )
    numbers = PaperTable("Figure 7", "Relative fall of the rates in scenario 3", ("defense", "data set"), columns, lines)
    return PaperFigure("7", title, caption, figure, numbers, rows=tuple(shadowed))


def _rate(rate: str) -> Metric:
    return lambda row: row_metrics.largest_rate(row, rate)


def _of(rows: Sequence[StoredRow], dataset: str, defense: str, scenario: str | None) -> list[StoredRow]:
    return [one for one in rows if has_values(one.row, dataset=dataset, defense=defense, scenario=scenario)]


def _rate_bar(axis: Axes, position: float, rate: Measurement, scenario: str | None) -> None:
    style, value = DIFFENCE_STYLES[scenario], 100 * rate.value
    spread = [[min(value, 100 * rate.uncertainty)], [100 * rate.uncertainty]]
    bar = {"color": style["color"], "hatch": style["hatch"], "edgecolor": "white"}
    axis.barh(position, value, 0.36, xerr=spread, error_kw={"linewidth": 0.8, "capsize": 1.5}, **bar)
