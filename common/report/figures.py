"""Pictures: ROC curves, histograms of phi without and with Diffence (paper Figures 3 and 4), utility against privacy."""

from pathlib import Path

import matplotlib
import numpy as np
from sklearn.metrics import roc_curve

from common.attacks import Outputs, Scores
from common.files import atomic_write
from common.metrics.calibration import calibration_bins, ece
from common.metrics.privacy import phi
from common.pair import Pair

matplotlib.use("Agg")  # no screen needed
import matplotlib.pyplot as plt


def draw_roc(path: Path, title: str, scores: dict[str, Scores]) -> None:
    """ROC curves of all attacks, on linear and on logarithmic axes. Confidence is dashed, because loss ranks points alike."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for name, attack_scores in scores.items():
        scored = attack_scores.scored
        membership = np.repeat([1, 0], [*scored.map(len)])
        fpr, tpr, _ = roc_curve(membership, np.concatenate([*scored]))
        for axis in axes:
            axis.plot(fpr, tpr, label=name, linestyle="--" if name == "confidence" else "-")
    smallest = min(0.5 / len(attack_scores.scored.non_members) for attack_scores in scores.values())
    for axis in axes:
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":", label="guessing")
        axis.set(xlabel="FPR", ylabel="TPR")
    axes[1].plot(np.geomspace(smallest, 1), np.geomspace(smallest, 1), color="grey", linewidth=0.8, linestyle=":")
    axes[1].set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1))
    axes[0].legend(loc="lower right")
    figure.suptitle(title)
    _save(figure, path)


def draw_phi(
    path: Path,
    title: str,
    logits: dict[str, Pair[np.ndarray]],
    labels: Pair[np.ndarray] | None = None,
) -> None:
    """Histograms of phi of members and of non-members, with a panel for each name (paper Figures 3 and 4).

    `logits` are those of the members [n, C] and of the non-members [m, C]. phi is that of the classes `labels` [n] and [m], or
    by default that of the predicted class, as in the paper's figures.
    """
    values = {name: pair.map(phi, labels) if labels else pair.map(phi) for name, pair in logits.items()}
    pooled = np.concatenate([side for pair in values.values() for side in pair])
    low, high = np.quantile(pooled, [0.002, 0.998])
    if low == high:  # nearly all points have the same phi: use the full range, so that the others are visible
        low, high = pooled.min(), pooled.max() + 1
    bins = np.linspace(float(low), float(high), 50)
    figure, axes = plt.subplots(
        1, len(values), figsize=(4.2 * len(values), 3.6), sharey=True, layout="constrained", squeeze=False
    )
    for axis, (name, (members, non_members)) in zip(axes[0], values.items(), strict=True):
        axis.hist(members, bins, density=True, alpha=0.55, label="members")
        axis.hist(non_members, bins, density=True, alpha=0.55, label="non-members")
        axis.set(title=name, xlabel="phi")
    axes[0, 0].set_ylabel("density")
    axes[0, 0].legend()
    figure.suptitle(title)
    _save(figure, path)


def draw_reliability(path: Path, title: str, predictions: dict[str, Outputs]) -> None:
    """Reliability diagrams with a panel for each name: accuracy against confidence in 10 bins, with counts (paper Figure 6).

    On the diagonal, a prediction with confidence p is right with probability p. Bars below it are overconfident.
    """
    figure, axes = plt.subplots(
        1, len(predictions), figsize=(4.2 * len(predictions), 4.2), sharey=True, layout="constrained", squeeze=False
    )
    for axis, (name, outputs) in zip(axes[0], predictions.items(), strict=True):
        bins = calibration_bins(outputs.probabilities, outputs.labels)
        centres = (np.arange(len(bins.counts)) + 0.5) / len(bins.counts)
        axis.bar(centres, np.nan_to_num(bins.accuracy), width=0.9 / len(centres), alpha=0.6, label="accuracy")
        axis.plot(bins.confidence, bins.confidence, "o", color="C1", label="confidence")
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
        for centre, count in zip(centres, bins.counts, strict=True):
            axis.text(centre, 1.02, f"{count}", ha="center", fontsize=7)
        gap = ece(outputs.probabilities, outputs.labels)
        axis.set(title=f"{name}\nECE {gap:.3f}", xlabel="confidence", xlim=(0, 1), ylim=(0, 1.08))
    axes[0, 0].set_ylabel("accuracy (above: predictions in the bin)")
    axes[0, 0].legend(loc="center left")
    figure.suptitle(title)
    _save(figure, path)


def draw_trade_off(
    path: Path, title: str, points: dict[str, tuple[float, float]], front: set[str], undefended: tuple[float, float]
) -> None:
    """Settings by test accuracy and best AUC, with a line through those on the Pareto `front`.

    `points` and `undefended` are (test accuracy, largest AUC of any attack), both 0..1.
    """
    figure, axis = plt.subplots(figsize=(7.5, 5.5), layout="constrained")
    for name, point in points.items():
        axis.scatter(*point, color="C0")
        axis.annotate(name, point, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axis.plot(*zip(*sorted(points[name] for name in front), strict=True), "o-", color="C1", label="Pareto front")
    axis.margins(0.12)
    axis.scatter(*undefended, marker="*", s=180, color="black", label="undefended")
    axis.set(xlabel="test accuracy", ylabel="best attack AUC (lower = more private)", title=title)
    axis.legend()
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)
