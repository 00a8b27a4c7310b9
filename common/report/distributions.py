"""Figures 1, 3, 4 and 14 of the paper: reconstructions, and how members and non-members are predicted."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import imread

from common.pair import Pair
from common.report.editions import Edition, StoredRow
from common.report.load import stored_scores
from common.report.paper import PaperNumbers
from common.report.paper_commands import evaluation_command
from common.report.paper_figures import PaperFigure, dataset_titles, first_seed, no_rows
from common.report.style import DATASET_TITLES, DIFFENCE_TITLES, MEMBER_STYLES, PAGE, PHI, PHI_FORMULA, new_figure, title_of

SHOWN_IMAGES = 5  # of each side in Figure 1
CORRECT_ONLY = (
    "Only correctly classified images are drawn, because the stored scores are about the true label; on these images it is the "
    "predicted one, as in the paper's figure."
)


def figure_1(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 1: images above one reconstruction of each, from the pictures that the training of the diffusion model leaves."""
    title = "Images and their reconstructions"
    found = [(dataset, grid) for dataset in edition.datasets if (grid := _reconstructions(edition, dataset)) is not None]
    if not found:
        return no_rows("1", title, evaluation_command(edition, edition.datasets[0]))
    figure, axes = new_figure(len(found), 2, PAGE, 0.1 + 1.5 * len(found))
    for (dataset, grid), line in zip(found, axes, strict=True):
        half = grid.shape[1] // 2
        width = half * SHOWN_IMAGES // 8  # the picture has eight images of each side
        for axis, part, side in zip(
            line, (grid[:, :width], grid[:, half : half + width]), ("members", "non-members"), strict=True
        ):
            axis.imshow(part, interpolation="nearest")
            axis.set(title=f"{title_of(DATASET_TITLES, dataset)}, {side}", xticks=[])
            quarter = part.shape[0] / 4
            axis.set_yticks([quarter, 3 * quarter], ["image", "recon-\nstruction"] if side == "members" else ["", ""])
            axis.tick_params(length=0)
            axis.grid(False)
            axis.spines[:].set_visible(False)
    caption = (
        f"Images of {dataset_titles([dataset for dataset, _ in found])} (top) and one reconstruction of each (bottom). The "
        "paper shows CIFAR-10 images that an attack calls members and whose reconstructions it calls non-members."
    )
    return PaperFigure("1", title, caption, figure)


def _reconstructions(edition: Edition, dataset: str) -> np.ndarray | None:
    """The picture of reconstructions of a data set: beside its rows or, before they are collected, with the diffusion model."""
    folders = []
    for stored in edition.find("evaluation", dataset=dataset):
        row, path = stored.row, stored.path
        roots = [parent.parent for parent in path.parents if parent.name == "evaluate_MIAs"]
        models = [root / "diff_defense" / "diff_models" / row["profile"] / f"seed{row['seed']}" for root in roots]
        folders += [path.parent, *models]
    pictures = [folder / "reconstructions.png" for folder in folders]
    return next((imread(picture) for picture in pictures if picture.is_file()), None)


@dataclass(frozen=True)
class Predictions:
    """What the stored scores say of correctly classified scored images, by side: confidence, entropy (nats) and phi."""

    confidence: Pair[np.ndarray]
    entropy: Pair[np.ndarray]
    phi: Pair[np.ndarray]


def correct_predictions(stored: StoredRow) -> Predictions | None:
    """The predictions of a row, None where no scores lie beside it."""
    scores = stored_scores(stored.path)
    if scores is None:
        return None
    correct = scores["correctness"].map(lambda side: side == 1)
    log_p = scores["loss"].map(lambda side, kept: np.minimum(side[kept], -1e-30), correct)  # log of the true label's confidence
    entropy = scores["entropy"].map(lambda side, kept: -side[kept], correct)
    return Predictions(log_p.map(np.exp), entropy, log_p.map(lambda side: side - np.log(-np.expm1(side))))


def draw_sides(axis: Axes, values: Pair[np.ndarray], bins: np.ndarray) -> None:
    """Histograms of members and of non-members, as densities."""
    for side, (name, style) in zip(values, MEMBER_STYLES.items(), strict=True):
        edge = "white" if "hatch" in style else style["color"]
        axis.hist(
            np.clip(side, bins[0], bins[-1]),
            bins.tolist(),
            histtype="stepfilled",
            density=True,
            label=name,
            edgecolor=edge,
            linewidth=0,
            **style,
        )


def figure_3(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 3: confidence, entropy and phi of members and non-members on the undefended classifier."""
    title = "Predictions of members and non-members, without defense"
    drawn = [
        (dataset, stored, predictions)
        for dataset in edition.datasets
        if (stored := first_seed(edition.find("evaluation", dataset=dataset, defense="undefended", scenario=None)))
        and (predictions := correct_predictions(stored))
    ]
    if not drawn:
        return no_rows("3", title, evaluation_command(edition, edition.datasets[0], defenses=["undefended"]))
    figure, axes = new_figure(len(drawn), 3, PAGE, 0.3 + 1.6 * len(drawn))
    for (dataset, _, predictions), line in zip(drawn, axes, strict=True):
        for axis, (name, values) in zip(line, vars(predictions).items(), strict=True):
            draw_sides(axis, values, _bins(values))
            axis.set(xlabel={"phi": PHI_FORMULA, "entropy": "entropy (nats)"}.get(name, name))
            if name != "phi":  # nearly all points lie at one end
                axis.set_yscale("log")
        line[0].set_ylabel(f"{title_of(DATASET_TITLES, dataset)}\ndensity")
    axes[0][0].legend(loc="upper left")
    caption = (
        f"Confidence, entropy (both with a logarithmic axis) and phi of the predictions for members and non-members of "
        f"{dataset_titles([one[0] for one in drawn])}, undefended classifier. {CORRECT_ONLY} The paper shows CIFAR-100."
    )
    return PaperFigure("3", title, caption, figure, rows=tuple(stored for _, stored, _ in drawn))


def figure_4(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 4: phi of members and non-members without Diffence and in each scenario, with the interval that is aimed at."""
    title = "phi of members and non-members under Diffence"
    scenarios = (None, "1", "2", "3")
    drawn = []
    for dataset in edition.datasets:
        panels = []
        for scenario in scenarios:
            row = first_seed(edition.find("evaluation", dataset=dataset, defense="undefended", scenario=scenario))
            predictions = correct_predictions(row) if row else None
            panels += [(row, predictions)] if row and predictions else []
        if len(panels) == len(scenarios):
            drawn.append((dataset, panels))
    if not drawn:
        return no_rows("4", title, evaluation_command(edition, edition.datasets[0], defenses=["undefended"]))
    figure, axes = new_figure(len(drawn), len(scenarios), PAGE, 0.35 + 1.5 * len(drawn), sharey="row")
    for (dataset, panels), line in zip(drawn, axes, strict=True):
        bins = _bins(panels[0][1].phi)
        for axis, (stored, values), scenario in zip(line, panels, scenarios, strict=True):
            draw_sides(axis, values.phi, bins)
            interval = (stored.row["diffence"] or {}).get("interval")
            for end in interval or []:
                axis.axvline(np.clip(end, bins[0], bins[-1]), color="black", linewidth=0.8, linestyle=":")
            if line is axes[0]:
                axis.set_title(DIFFENCE_TITLES[scenario])
            axis.set_xlabel(PHI)
        line[0].set_ylabel(f"{title_of(DATASET_TITLES, dataset)}\ndensity")
    axes[0][-1].legend(loc="upper right")  # where densities are lowest
    caption = (
        f"phi of the released predictions for members and non-members of {dataset_titles([one[0] for one in drawn])}, "
        f"undefended classifier. Dotted lines: the interval that a scenario prefers. {CORRECT_ONLY} The paper has CIFAR-100."
    )
    return PaperFigure("4", title, caption, figure, rows=tuple(row for _, panels in drawn for row, _ in panels))


def figure_14(edition: Edition, paper: PaperNumbers) -> PaperFigure:
    """Figure 14: reconstructions by a diffusion model trained on ImageNet, which is not here."""
    return PaperFigure("14", "Reconstructions by a diffusion model trained on ImageNet", missing=NO_IMAGENET)


NO_IMAGENET = (
    "It needs the public diffusion model trained on ImageNet, whose weights could not be downloaded here. No command of this "
    "repository makes it; docs/reproduce.md says what is left out."
)


def _bins(values: Pair[np.ndarray]) -> np.ndarray:
    """Bins that hold all but the outermost values."""
    low, high = np.quantile(np.concatenate([*values]), [0.002, 0.998])
    return np.linspace(low, high if high > low else low + 1, 41)
