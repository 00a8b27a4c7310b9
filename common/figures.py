"""Pictures of an evaluation: ROC curves, and histograms of phi before and after Diffence (paper Figures 3 and 4)."""

from pathlib import Path

import matplotlib
import numpy as np
from sklearn.metrics import roc_curve

from common.attacks import Scores
from common.files import atomic_write
from common.metrics import phi

matplotlib.use("Agg")  # no screen needed
import matplotlib.pyplot as plt


def draw_roc(path: Path, title: str, scores: dict[str, Scores]) -> None:
    """ROC curves of all attacks, on linear and on logarithmic axes."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for name, points in scores.items():
        membership = np.repeat([1, 0], [len(points.members), len(points.non_members)])
        fpr, tpr, _ = roc_curve(membership, np.concatenate([points.members, points.non_members]))
        for axis in axes:
            axis.plot(fpr, tpr, label=name, linestyle="--" if name == "confidence" else "-")
    smallest = min(0.5 / len(points.non_members) for points in scores.values())
    for axis in axes:
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":", label="guessing")
        axis.set(xlabel="FPR", ylabel="TPR")
    axes[1].plot(np.geomspace(smallest, 1), np.geomspace(smallest, 1), color="grey", linewidth=0.8, linestyle=":")
    axes[1].set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1))
    axes[0].legend(loc="lower right")
    figure.suptitle(title)
    _save(figure, path)


def draw_phi(path: Path, title: str, released: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Histograms of phi of members and non-members, a panel for each name: logits [n, C] and [m, C] of the two sides."""
    values = {name: (phi(members), phi(non_members)) for name, (members, non_members) in released.items()}
    pooled = np.concatenate([side for pair in values.values() for side in pair])
    low, high = np.quantile(pooled, [0.002, 0.998])
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


def _save(figure: plt.Figure, path: Path) -> None:
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)
