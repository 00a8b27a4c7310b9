"""Figures 5, 8, 12 and 13 of the paper: privacy against accuracy of every defense, without Diffence and in scenario 1."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from common.report import row_metrics
from common.report.distributions import NO_IMAGENET
from common.report.editions import (
    FACES,
    Edition,
    Measurement,
    Metric,
    StoredRow,
    has_values,
    in_order,
    measure_over_seeds,
    missing_from,
)
from common.report.paper import PAPER_DEFENSES, PaperNumbers
from common.report.paper_commands import evaluation_command, experiment_command
from common.report.paper_figures import PaperFigure, no_rows
from common.report.style import (
    ARCHITECTURE_TITLES,
    COLUMN,
    DATASET_TITLES,
    DEFENSE_TITLES,
    DIFFENCE_STYLES,
    PAGE,
    marker_of,
    new_figure,
    title_of,
)
from common.report.tables import Cell, Column, Line, PaperTable, reduction

METRICS: dict[str, Metric] = {"AUC": row_metrics.best_auc, "accuracy": row_metrics.best_accuracy}
PRINTED = {"AUC": "auc", "accuracy": "attack_accuracy"}  # the names of the metrics in paper.csv

Point = tuple[float, float]  # accuracy against undefended (points), and a metric of the best attack (%)
Arrow = tuple[Point, Point]  # without Diffence, and in scenario 1
Panel = dict[str, dict[str, Arrow]]  # by metric and defense


def draw_trade_off(panels: dict[str, Panel], protected: str = "1") -> Figure:
    """A column for each panel and a line for each metric: an arrow from each defense without Diffence to a scenario."""
    width = COLUMN if len(panels) == 1 else PAGE
    figure, axes = new_figure(len(METRICS), len(panels), width, 4.4, sharey="row", sharex="col")
    for line, name in zip(axes, METRICS, strict=True):
        for axis, (title, panel) in zip(line, panels.items(), strict=True):
            for defense, (before, after) in panel[name].items():
                axis.plot(*zip(before, after, strict=True), color="#999999", linewidth=0.7, zorder=1)
                for (x, y), scenario in ((before, None), (after, protected)):
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
    figure.legend(
        handles=_legend(defenses, protected), loc="outside lower center", ncols=4 if width == COLUMN else 5, columnspacing=1.0
    )
    return figure


def _legend(defenses: Iterable[str], protected: str) -> list[Artist]:
    """Markers of the defenses, then the colours without Diffence and in the scenario `protected`."""
    grey: dict[str, Any] = {"linestyle": "", "markeredgecolor": "black", "markerfacecolor": "white"}
    markers = [Line2D([], [], marker=marker_of(name), label=title_of(DEFENSE_TITLES, name), **grey) for name in defenses]
    without = Patch(facecolor="white", edgecolor=DIFFENCE_STYLES[None]["color"], label="without Diffence")
    return [*markers, without, Patch(facecolor=DIFFENCE_STYLES[protected]["color"], label=f"scenario {protected}")]


def panel_of(rows: Sequence[StoredRow], protected: str = "1") -> Panel:
    """The arrows, to the scenario `protected`, of evaluations that differ in defense, scenario and seed only."""
    panel: Panel = {name: {} for name in METRICS}
    undefended = _accuracy(rows, "undefended")
    for defense in in_order({stored.row["defense"] for stored in rows}, PAPER_DEFENSES):
        accuracy = _accuracy(rows, defense)
        for name, metric in METRICS.items():
            before, after = (
                measure_over_seeds([one for one in rows if has_values(one.row, defense=defense, scenario=scenario)], metric)
                for scenario in (None, protected)
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
    rows = {dataset: edition.find("evaluation", dataset=dataset) for dataset in missing_from(edition.datasets, FACES)}
    panels = {title_of(DATASET_TITLES, dataset): panel_of(found) for dataset, found in rows.items()}
    panels = {name: panel for name, panel in panels.items() if panel["AUC"]}
    if not panels:
        return no_rows("5", title, evaluation_command(edition, edition.datasets[0]))
    caption = (
        f"Each defense on {', '.join(panels)}, without Diffence (open marker) and in scenario 1 (filled marker): the best AUC "
        "and accuracy of the paper's five attacks against the change of test accuracy. Each panel has its own horizontal axis. "
        "The right panel is the paper's Table III, a mean over CIFAR-10, CIFAR-100 and SVHN."
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


def figure_8(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 8: as Figure 5 on CelebA and UTKFace, in scenario 3."""
    title = "Best attack against accuracy on CelebA and UTKFace, without Diffence and in scenario 3"
    panels, drawn, lines = {}, [], []
    columns: list[Column] = [("", "AUC falls by (%)"), ("", "ACC falls by (%)")]
    for dataset in FACES:
        rows, name = edition.find("evaluation", dataset=dataset), DATASET_TITLES[dataset]
        panel = panel_of(rows, "3")
        if panel["AUC"]:
            panels[name] = panel
            drawn += rows
            cells = [Cell(mean_fall(panel[metric])) for metric in METRICS]
            lines.append(Line((name, "ours"), dict(zip(columns, cells, strict=True))))
            find = partial(paper.find, "Figure 8", dataset=dataset, defense="average", diffence="scenario 3", attack="best")
            printed = [Cell(find(f"{metric}_reduction")) for metric in PRINTED.values()]
            lines.append(Line((name, "paper"), dict(zip(columns, printed, strict=True)), paper=True))
    if not panels:
        return PaperFigure("8", title, missing=f"The images could not be downloaded here. {NO_IMAGENET}")
    caption = (
        f"As Figure 5, on {' and '.join(panels)} in scenario 3. The paper's diffusion model is trained on ImageNet, with N = "
        "10 and T = 200; ours is that of the profile."
    )
    numbers = PaperTable("Figure 8", "Mean relative fall over the defenses", ("data set", "from"), columns, lines)
    return PaperFigure("8", title, caption, draw_trade_off(panels, "3"), numbers, rows=tuple(drawn))


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
