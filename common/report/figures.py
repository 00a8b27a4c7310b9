"""The pictures that an evaluation, an audit or a grid writes: ROC curves, histograms of phi, reliability, trade-offs.

The figures of the paper, which are made from rows, are in distributions.py, trade_offs.py and ablations.py.
"""

from pathlib import Path

import numpy as np
from sklearn.metrics import roc_curve

from common.attacks import Outputs, Scores
from common.metrics.calibration import calibration_bins, ece
from common.metrics.privacy import phi
from common.pair import Pair
from common.report.style import (
    ATTACK_STYLES,
    ATTACK_TITLES,
    COLUMN,
    DIFFENCE_STYLES,
    DIFFENCE_TITLES,
    MEMBER_STYLES,
    PAGE,
    PHI,
    PHI_FORMULA,
    new_figure,
    save_figure,
    title_of,
)


def draw_roc(path: Path, title: str, scores: dict[str, Scores]) -> None:
    """ROC curves of all attacks, on linear and on logarithmic axes. Loss and confidence rank points alike."""
    figure, ((linear, logarithmic),) = new_figure(1, 2, PAGE, 3.4)
    for name, attack_scores in scores.items():
        scored = attack_scores.scored
        membership = np.repeat([1, 0], [*scored.map(len)])
        fpr, tpr, _ = roc_curve(membership, np.concatenate([*scored]))
        for axis in (linear, logarithmic):
            axis.plot(fpr, tpr, label=title_of(ATTACK_TITLES, name), **ATTACK_STYLES.get(name, {}))
    smallest = min(0.5 / len(attack_scores.scored.non_members) for attack_scores in scores.values())
    for axis in (linear, logarithmic):
        diagonal = np.geomspace(smallest, 1)
        axis.plot(diagonal, diagonal, color="grey", linewidth=0.8, linestyle=":", label="guessing")
        axis.set(xlabel="FPR", ylabel="TPR")
    logarithmic.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1))
    linear.legend(loc="lower right")
    figure.suptitle(title)
    save_figure(figure, path)


def draw_phi(
    path: Path,
    title: str,
    logits: dict[str, Pair[np.ndarray]],
    labels: Pair[np.ndarray] | None = None,
) -> None:
    """Histograms of phi of members and of non-members, with a panel for each title (paper Figures 3 and 4).

    `logits` are those of the members [n, C] and of the non-members [m, C]. phi is that of the classes `labels` [n] and [m], or
    by default that of the predicted class, as in the paper's figures.
    """
    values = {name: pair.map(phi, labels) if labels else pair.map(phi) for name, pair in logits.items()}
    pooled = np.concatenate([side for pair in values.values() for side in pair])
    low, high = np.quantile(pooled, [0.002, 0.998])
    if low == high:  # nearly all points have the same phi: use the full range, so that the others are visible
        low, high = pooled.min(), pooled.max() + 1
    bins = np.linspace(float(low), float(high), 50).tolist()
    width = COLUMN if len(values) == 1 else PAGE
    figure, (axes,) = new_figure(1, len(values), width, 2.2, sharey=True)
    for axis, (name, sides) in zip(axes, values.items(), strict=True):
        for side, (side_name, style) in zip(sides, MEMBER_STYLES.items(), strict=True):
            axis.hist(side, bins, density=True, histtype="stepfilled", label=side_name, edgecolor="white", linewidth=0, **style)
        axis.set(title=name, xlabel=PHI_FORMULA if len(values) == 1 else PHI)
    axes[0].set_ylabel("density")
    axes[0].legend()
    figure.suptitle(title)
    save_figure(figure, path)


def draw_reliability(path: Path, title: str, predictions: dict[str | None, Outputs]) -> None:
    """Reliability diagrams with a panel for each scenario, where None is without Diffence (paper Figure 6).

    A diagram shows accuracy against confidence in 10 bins, with the number of predictions in each.

    On the diagonal, a prediction with confidence p is right with probability p. Bars below it are overconfident.
    """
    figure, (axes,) = new_figure(1, len(predictions), len(predictions) * PAGE / 4, 2.6, sharey=True)
    for axis, (scenario, outputs) in zip(axes, predictions.items(), strict=True):
        bins = calibration_bins(outputs.probabilities, outputs.labels)
        centres = (np.arange(len(bins.counts)) + 0.5) / len(bins.counts)
        color = DIFFENCE_STYLES[scenario]["color"]
        axis.bar(centres, np.nan_to_num(bins.accuracy), width=0.9 / len(centres), color=color, alpha=0.6, label="accuracy")
        axis.plot(bins.confidence, bins.confidence, "o", color="black", markersize=3, label="confidence")
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
        for centre, count in zip(centres, bins.counts, strict=True):
            axis.text(centre, 1.03, f"{count}", ha="center", va="bottom", rotation=90, fontsize=7)
        gap = ece(outputs.probabilities, outputs.labels)
        axis.set(title=f"{DIFFENCE_TITLES[scenario]}\nECE {gap:.3f}", xlabel="confidence", xlim=(0, 1), ylim=(0, 1.25))
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes[0].set_ylabel("accuracy\n(above: predictions)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(title)
    save_figure(figure, path)


def draw_trade_off(
    path: Path, title: str, points: dict[str, tuple[float, float]], front: set[str], undefended: tuple[float, float]
) -> None:
    """Settings by test accuracy and best AUC, with a line through those on the Pareto `front`.

    `points` and `undefended` are (test accuracy, largest AUC of any attack), both 0..1.
    """
    figure, ((axis,),) = new_figure(1, 1, 5.0, 3.8)
    for name, point in points.items():
        axis.plot(*point, "o", color=DIFFENCE_STYLES[None]["color"])
        axis.annotate(name, point, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axis.plot(*zip(*sorted(points[name] for name in front), strict=True), "o-", color="#d55e00", label="Pareto front")
    axis.margins(0.12)
    axis.plot(*undefended, marker="*", markersize=12, color="black", linestyle="", label="undefended")
    axis.set(xlabel="test accuracy", ylabel="best attack AUC (lower = more private)", title=title)
    axis.legend()
    save_figure(figure, path)
