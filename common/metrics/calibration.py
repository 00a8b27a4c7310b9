"""The calibration of confidences: reliability diagrams, ECE and NLL (paper Section IV-B2, Eq. 6 and Figure 6)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from common.errors import UserError
from common.metrics.privacy import Floats, Ints, phi


@dataclass(frozen=True, eq=False)
class Bins:
    """Predictions grouped by confidence, for Eq. 6 and for reliability diagrams: arrays [bins], NaN in empty bins."""

    counts: Ints  # predictions in the bin (0 in empty bins)
    confidence: Floats  # mean of their largest probabilities, 0..1
    accuracy: Floats  # share of them that is correct, 0..1


def calibration_bins(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> Bins:
    """Group predictions by their largest probability into bins (a, b] of equal width (paper Eq. 6 and Figure 6).

    `probabilities` [n, C] with rows that sum to 1, `labels` [n]. Raises UserError for other shapes, for rows that are no
    distribution (for example logits), and for bins < 1.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or p.size == 0:
        raise UserError(f"calibration needs probabilities [n, C] and labels [n] with n >= 1, not {p.shape} and {y.shape}.")
    if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-3)):
        raise UserError("calibration needs rows of probabilities that sum to 1: apply softmax to logits first.")
    if bins < 1:
        raise UserError(f"bins must be at least 1, not {bins}.")
    confidence = p.max(axis=1)
    bin_index = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    counts, confidence_sums, correct = (
        np.bincount(bin_index, weights=weights, minlength=bins) for weights in (None, confidence, p.argmax(axis=1) == y)
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        return Bins(counts, confidence_sums / counts, correct / counts)


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error, 0..1 (paper Eq. 6): the mean |accuracy - confidence| of the bins, weighted by their counts.

    Arguments and errors as in `calibration_bins`.
    """
    binned = calibration_bins(probabilities, labels, bins)
    return float(np.nansum(binned.counts * np.abs(binned.accuracy - binned.confidence)) / binned.counts.sum())


def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the true labels, in nats, >= 0. `logits` [n, C], `labels` [n].

    It is computed as log(1 + exp(-phi)) in float64 and is finite for every prediction. Raises UserError as `phi` does.
    """
    return float(np.logaddexp(0, -phi(logits, labels)).mean())
