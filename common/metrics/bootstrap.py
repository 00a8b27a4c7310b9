"""Intervals for decisions that hang together: many models decide on the same points, so the points are resampled."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.metrics.intervals import LEVEL, Floats
from common.metrics.privacy import Ints, allowed_errors, auc, tpr_at_fpr

RESAMPLES = 1_000


def decisions_report(scores: Floats, in_mask: NDArray[np.bool_], fprs: tuple[float, ...], seed: int) -> dict[str, Any]:
    """AUC, and TPR with 95% intervals, of M * K decisions on K points by M models.

    `scores` float64 [M, K], higher = more likely a member. `in_mask` bool [M, K]: which point is a member of which model.
    An interval is that of the bootstrap over points: the K points are drawn with replacement 1,000 times, each with all its M
    decisions. Decisions on one point depend on each other, so an interval from M * K independent decisions would be too narrow.

    Keys of the result: auc, and `tpr_at`, which has for each FPR, by its value as text, a dict with the keys rate, hits,
    positives, errors, negatives and interval. Raises UserError as `auc` and `tpr_at_fpr` do.
    """
    members, non_members = scores[in_mask], scores[~in_mask]
    rates = {str(fpr): tpr_at_fpr(members, non_members, fpr) for fpr in fprs}
    intervals = bootstrap_tpr(scores, in_mask, fprs, seed)
    return {
        "auc": auc(members, non_members),
        "tpr_at": {
            name: {
                "rate": rate.rate,
                "hits": rate.hits,
                "positives": rate.positives,
                "errors": rate.errors,
                "negatives": rate.negatives,
                "interval": interval,
            }
            for (name, rate), interval in zip(rates.items(), intervals, strict=True)
        },
    }


def bootstrap_tpr(scores: Floats, in_mask: NDArray[np.bool_], fprs: tuple[float, ...], seed: int) -> list[list[float]]:
    """The 95% bootstrap interval [low, high] of TPR at each of `fprs`; see `decisions_report` for the arguments."""
    generator = np.random.default_rng(seed)
    points = scores.shape[1]
    order = np.argsort(-scores.ravel(), kind="stable")
    column, member = order % points, in_mask.ravel()[order]
    last_of_tie = np.append(np.diff(scores.ravel()[order]) != 0, True)
    rates = []
    for _ in range(RESAMPLES):
        weight = np.bincount(generator.integers(0, points, points), minlength=points)[column]
        rates.append([_weighted_tpr(weight, member, last_of_tie, fpr) for fpr in fprs])
    tail = 100 * (1 - LEVEL) / 2
    return np.percentile(rates, [tail, 100 - tail], axis=0).T.tolist()


def _weighted_tpr(weight: Ints, member: NDArray[np.bool_], last_of_tie: NDArray[np.bool_], fpr: float) -> float:
    """TPR at an FPR of at most `fpr`, of decisions in descending order of their scores, each counted `weight` times.

    A threshold lies below the last decision of a tie. A resample without members has the TPR 0.
    """
    hits, errors = np.cumsum(weight * member)[last_of_tie], np.cumsum(weight * ~member)[last_of_tie]
    allowed = np.searchsorted(errors, allowed_errors(fpr, int(errors[-1])), side="right") - 1
    return float(hits[allowed] / hits[-1]) if allowed >= 0 and hits[-1] else 0.0
