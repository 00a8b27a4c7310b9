"""Figures 5 to 8, 12 and 13 of the paper: privacy against accuracy, calibration, and rates at few errors, by defense."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from common.report import row_metrics
from common.report.distributions import NO_IMAGENET
from common.report.editions import (
    Edition,
    Measurement,
    Metric,
    StoredRow,
    has_values,
    in_order,
    is_noise,
    measure_over_seeds,
)
from common.report.paper import PAPER_DEFENSES, PaperNumbers
from common.report.paper_commands import evaluation_command, experiment_command
from common.report.paper_figures import PaperFigure, dataset_titles, no_rows
from common.report.style import (
    ARCHITECTURE_TITLES,
    COLUMN,
    DATASET_TITLES,
    DEFENSE_TITLES,
    DIFFENCE_STYLES,
    DIFFENCE_TITLES,
    PAGE,
    marker_of,
    new_figure,
    title_of,
)
from common.report.tables import Cell, Column, Line, PaperTable

METRICS: dict[str, Metric] = {"AUC": row_metrics.best_auc, "accuracy": row_metrics.best_accuracy}
PRINTED = {"AUC": "auc", "accuracy": "attack_accuracy"}  # the names of the metrics in paper.csv

Point = tuple[float, float]  # accuracy against undefended (points), and a metric of the best attack (%)
Arrow = tuple[Point, Point]  # without Diffence, and in scenario 1
Panel = dict[str, dict[str, Arrow]]  # by metric and defense


def reduction(without: Measurement | None, protected: Measurement | None) -> Cell:
    """By how many percent a number falls."""
    if without is None or protected is None or not without.value:
        return Cell()
    return Cell(100 * (1 - protected.value / without.value), noise=is_noise(protected, without))


def draw_trade_off(panels: dict[str, Panel]) -> Figure:
    """A column for each panel and a line for each metric: an arrow from each defense without Diffence to scenario 1."""
    width = COLUMN if len(panels) == 1 else PAGE
    figure, axes = new_figure(len(METRICS), len(panels), width, 4.4, sharey="row", sharex="col")
    for line, name in zip(axes, METRICS, strict=True):
        for axis, (title, panel) in zip(line, panels.items(), strict=True):
            for defense, (before, after) in panel[name].items():
                axis.plot(*zip(before, after, strict=True), color="#999999", linewidth=0.7, zorder=1)
                for (x, y), scenario in ((before, None), (after, "1")):
                    style = DIFFENCE_STYLES[scenario]
                    face = "white" if scenario is None else style["color"]
                    axis.plot(x, y, marker_of(defense), markeredgecolor=style["color"], markerfacecolor=face, zorder=2)
            axis.margins(0.12)
            if line is axes[0]:
                axis.set_title(title)
            if line is axes[-1]:
                axis.set_xlabel("accuracy against undefended (points)" if len(panels) < 3 else "accuracy change (points)")
        line[0].set_ylabel(f"best attack {name} (%)")
    defenses = in_order({defense for panel in panels.values() for defense in panel["AUC"]}, PAPER_DEFENSES)
    figure.legend(handles=_legend(defenses), loc="outside lower center", ncols=4 if width == COLUMN else 5, columnspacing=1.0)
    return figure


def _legend(defenses: Iterable[str]) -> list[Line2D]:
    """Markers of the defenses, then colours of the scenarios."""
    grey: dict[str, Any] = {"linestyle": "", "markeredgecolor": "black", "markerfacecolor": "white"}
    handles = [Line2D([], [], marker=marker_of(name), label=title_of(DEFENSE_TITLES, name), **grey) for name in defenses]
    for scenario, face in ((None, "white"), ("1", DIFFENCE_STYLES["1"]["color"])):
        colors: dict[str, Any] = {"markeredgecolor": DIFFENCE_STYLES[scenario]["color"], "markerfacecolor": face}
        title = {None: "without Diffence", "1": "scenario 1"}[scenario]
        handles.append(Line2D([], [], marker="o", linestyle="", label=title, **colors))
    return handles


def panel_of(rows: Sequence[StoredRow]) -> Panel:
    """The arrows of evaluations that differ in defense, scenario and seed only."""
    panel: Panel = {name: {} for name in METRICS}
    undefended = _accuracy(rows, "undefended")
    for defense in in_order({stored.row["defense"] for stored in rows}, PAPER_DEFENSES):
        accuracy = _accuracy(rows, defense)
        for name, metric in METRICS.items():
            before, after = (
                measure_over_seeds([one for one in rows if has_values(one.row, defense=defense, scenario=scenario)], metric)
                for scenario in (None, "1")
            )
            if before and after and accuracy and undefended and defense != "dpsgd-private":  # which is far off to the left
                x = 100 * (accuracy.value - undefended.value)
                panel[name][defense] = ((x, 100 * before.value), (x, 100 * after.value))
    return panel


def _accuracy(rows: Sequence[StoredRow], defense: str) -> Measurement | None:
    plain = [stored for stored in rows if has_values(stored.row, defense=defense, scenario=None)]
    return measure_over_seeds(plain, row_metrics.test_accuracy)


def paper_panel(paper: PaperNumbers) -> Panel:
    """The arrows of the paper's Table III."""
    panel: Panel = {name: {} for name in METRICS}
    for defense in PAPER_DEFENSES:
        x = paper.find("Table III", "accuracy_delta", defense=defense)
        for name, printed in PRINTED.items():
            ends = [
                paper.find("Table III", printed, defense=defense, diffence=one, attack="best")
                for one in ("without", "scenario 1")
            ]
            if x is not None and None not in ends:
                panel[name][defense] = ((x, ends[0]), (x, ends[1]))  # type: ignore[assignment]
    return panel


def figure_5(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 5: the best attack against accuracy, for every defense, without Diffence and in scenario 1."""
    title = "Best attack against accuracy, without Diffence and in scenario 1"
    rows = {dataset: edition.find("evaluation", dataset=dataset) for dataset in edition.datasets}
    panels = {title_of(DATASET_TITLES, dataset): panel_of(found) for dataset, found in rows.items()}
    panels = {name: panel for name, panel in panels.items() if panel["AUC"]}
    if not panels:
        return no_rows("5", title, evaluation_command(edition, edition.datasets[0]))
    caption = (
        f"Each defense on {', '.join(panels)}, without Diffence (open marker) and in scenario 1 (filled marker): the best AUC "
        "and accuracy of the paper's five attacks against the change of test accuracy. The right panel is the paper's "
        "Table III, a mean over CIFAR-10, CIFAR-100 and SVHN."
    )
    drawing = draw_trade_off(panels | {"paper, mean of 3 data sets": paper_panel(paper)})
    numbers = reductions_5(edition, paper)
    return PaperFigure("5", title, caption, drawing, numbers, rows=tuple(one for found in rows.values() for one in found))


def reductions_5(edition: Edition, paper: PaperNumbers) -> PaperTable:
    """What Section IV-B1 says of Figure 5: by how many percent the best attack falls in scenario 1."""
    columns = [("", "AUC falls by (%)"), ("", "ACC falls by (%)")]
    lines = []
    for defense in PAPER_DEFENSES:
        title, ours = title_of(DEFENSE_TITLES, defense), []
        for dataset in edition.datasets:
            rows = [edition.find("evaluation", dataset=dataset, defense=defense, scenario=one) for one in (None, "1")]
            if all(rows):
                cells = [reduction(*(measure_over_seeds(found, metric) for found in rows)) for metric in METRICS.values()]
                ours.append(Line((title, title_of(DATASET_TITLES, dataset)), dict(zip(columns, cells, strict=True))))
        printed = [
            paper.find("Figure 5", f"{name}_reduction", defense=defense, diffence="scenario 1", attack="best")
            for name in PRINTED.values()
        ]
        lines += ours
        if ours and None not in printed:
            cells = [Cell(value) for value in printed]
            lines.append(Line((title, "paper, mean of 3"), dict(zip(columns, cells, strict=True)), paper=True))
    return PaperTable("Figure 5", "Relative fall of the best attack in scenario 1", ("defense", "data set"), columns, lines)


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


def figure_8(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 8: CelebA and UTKFace with a diffusion model trained on ImageNet, none of which is here."""
    missing = "CelebA and UTKFace are not part of this repository. " + NO_IMAGENET
    return PaperFigure("8", "Best attack on CelebA and UTKFace", missing=missing)


def figure_12(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 12: as Figure 5, on DenseNet121, VGG16 and ViT."""
    title = "Best attack against accuracy on other architectures, without Diffence and in scenario 1"
    rows = [stored for stored in edition.of_kind("evaluation") if is_architecture(stored)]
    pairs = sorted({(stored.row["model"], stored.row["dataset"]) for stored in rows})
    panels, drawn, lines = {}, [], []
    columns: list[Column] = [("", "AUC falls by (%)"), ("", "ACC falls by (%)")]
    for model, dataset in pairs:
        found = [stored for stored in rows if (stored.row["model"], stored.row["dataset"]) == (model, dataset)]
        panel, names = panel_of(found), (title_of(ARCHITECTURE_TITLES, model), title_of(DATASET_TITLES, dataset))
        if panel["AUC"]:
            panels[", ".join(names)] = panel
            drawn += found
            cells = [Cell(mean_fall(panel[name])) for name in METRICS]
            lines.append(Line((*names, str(len(panel["AUC"]))), dict(zip(columns, cells, strict=True))))
    if not panels:
        return no_rows("12", title, experiment_command(edition, edition.datasets[0], "architectures"))
    for model in ("vgg16", "vit"):
        find = partial(
            paper.find, "Figure 12", dataset="cifar10", model=model, defense="average", diffence="with", attack="best"
        )
        cells = [Cell(find(f"{name}_reduction")) for name in PRINTED.values()]
        printed = (ARCHITECTURE_TITLES[model], "paper, CIFAR-10", "7" if model == "vgg16" else "6")
        lines.append(Line(printed, dict(zip(columns, cells, strict=True)), paper=True))
    caption = f"As Figure 5, on {', '.join(panels)}. The paper has DenseNet121, VGG16 and ViT on CIFAR-10."
    heads = ("architecture", "data set", "defenses")
    numbers = PaperTable("Figure 12", "Mean relative fall over the defenses", heads, columns, lines)
    return PaperFigure("12", title, caption, draw_trade_off(panels), numbers, rows=tuple(drawn))


def is_architecture(stored: StoredRow) -> bool:
    """Whether a row is of an architecture other than the paper's default, with no other setting changed than those of it."""
    return stored.row["model"] != "resnet18" and all(
        override.startswith(("model.", "train.")) for override in stored.row["overrides"]
    )


def mean_fall(arrows: dict[str, Arrow]) -> float:
    """By how many percent the arrows fall, on average."""
    return sum(100 * (1 - after[1] / before[1]) for before, after in arrows.values()) / len(arrows)


def figure_13(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 13: as Figure 5 with a diffusion model trained on ImageNet, which is not here."""
    return PaperFigure("13", "Best attack with a diffusion model trained on ImageNet", missing=NO_IMAGENET)
