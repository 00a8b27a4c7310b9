"""What confidences are worth to a user: reliability, ECE and NLL (paper Section IV-B2, Eq. 6 and Figure 6)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from common.errors import UserError
from common.metrics.privacy import Floats, Ints, phi


@dataclass(frozen=True, eq=False)
class Bins:
    """Predictions binned by their confidence, for Eq. 6 and reliability diagrams: each array [bins], NaN where empty."""

    counts: Ints  # predictions in the bin
    confidence: Floats  # their mean largest probability, 0..1
    accuracy: Floats  # the share of them that is right, 0..1


def calibration_bins(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> Bins:
    """Predictions in equal bins (a, b] of the largest probability (paper Eq. 6 and Figure 6).

    `probabilities` [n, C] rows that sum to 1, `labels` [n]. Raises UserError for other shapes, for rows that are no
    distribution (logits, say) and for bins < 1.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or p.size == 0:
        raise UserError(f"calibration needs probabilities [n, C] and labels [n] with n >= 1, not {p.shape} and {y.shape}.")
    if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-3)):
        raise UserError("calibration needs rows of probabilities that sum to 1: apply softmax to logits first.")
    if bins < 1:
        raise UserError(f"bins must be at least 1, not {bins}.")
    confidence = p.max(axis=1)
    which = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    counts, confidences, rights = (
        np.bincount(which, weights=weights, minlength=bins) for weights in (None, confidence, p.argmax(axis=1) == y)
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin
        return Bins(counts, confidences / counts, rights / counts)


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error, 0..1 (paper Eq. 6): |accuracy - confidence| of the bins, weighted by their counts.

    Arguments and errors as in `calibration_bins`.
    """
    binned = calibration_bins(probabilities, labels, bins)
    return float(np.nansum(binned.counts * np.abs(binned.accuracy - binned.confidence)) / binned.counts.sum())


def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the true labels, in nats, >= 0: `logits` [n, C], `labels` [n].

    As log(1 + exp(-phi)) in float64, finite however sure and wrong a prediction is. Raises UserError as `phi` does.
    """
    return float(np.logaddexp(0, -phi(logits, labels)).mean())
