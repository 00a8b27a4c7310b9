"""Every metric of the project, in one place (paper Section IV-A "Evaluation metrics", Eq. 2 and Eq. 6).

Scores follow one convention: a higher score means "more likely a member", and a point is called a member when its score
is at least the threshold. Rates at a low error rate are counts that some threshold attains, never interpolated.
"""

from dataclasses import asdict, dataclass
from fractions import Fraction
from math import ceil, floor, isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score, roc_curve

from common.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rate:
    """A rate at a bounded error rate, with the integers behind it: at 0.1% they are small and ask for an interval.

    TPR at an FPR: `hits` of `positives` members are found while `errors` of `negatives` non-members are accused.
    TNR at an FNR: `hits` of `positives` non-members are cleared while `errors` of `negatives` members are cleared too.
    """

    rate: float  # hits / positives, 0..1
    hits: int
    errors: int
    positives: int
    negatives: int


def phi(logits: ArrayLike, label: ArrayLike | None = None) -> Floats:
    """The confidence p of a label on the scale log(p / (1 - p)) (paper Eq. 2), computed without rounding p to 1.

    `logits` [.., C] of any leading shape; `label` broadcasts to that shape, None = the predicted class (argmax).
    Returns float64 [..], unbounded. Raises UserError for fewer than two classes, NaN or infinite logits, or bad labels.
    """
    z = np.array(logits, dtype=np.float64)
    if z.ndim == 0 or z.shape[-1] < 2:
        raise UserError(f"logits need a last axis of at least 2 classes, not the shape {z.shape}.")
    if not np.isfinite(z).all():
        raise UserError("logits hold NaN or infinite values: check the model that made them.")
    chosen = z.argmax(-1) if label is None else np.asarray(label)
    try:
        index = np.broadcast_to(chosen, z.shape[:-1])[..., None]
    except ValueError:
        raise UserError(f"labels of shape {chosen.shape} do not fit logits of shape {z.shape}.") from None
    if index.dtype.kind not in "iu" or (index < 0).any() or (index >= z.shape[-1]).any():
        raise UserError(f"labels must be integers in 0..{z.shape[-1] - 1}, the classes of the logits.")
    own = np.take_along_axis(z, index, -1)[..., 0]
    np.put_along_axis(z, index, -np.inf, -1)  # leaves the others: z_y - logsumexp(others) = log p - log(1 - p)
    return np.asarray(own - logsumexp(z, axis=-1))


def auc(member: ArrayLike, non_member: ArrayLike) -> float:
    """Attack AUC, 0..1: the chance that a member [n] scores above a non-member [m], ties counted half."""
    truth, scores = _pooled(member, non_member)
    return float(roc_auc_score(truth, scores))


def tpr_at_fpr(member: ArrayLike, non_member: ArrayLike, fpr: float = 0.001, strict: bool = False) -> Rate:
    """Largest TPR over the thresholds that accuse at most floor(fpr * m) of the m non-members (paper Section IV-A).

    `member` [n] and `non_member` [m] scores, `fpr` in (0, 1). `strict` takes the released convention, FPR < fpr.
    Raises UserError for an fpr out of range and for empty, NaN or infinite scores.
    """
    if not 0 < fpr < 1:
        raise UserError(f"fpr must lie between 0 and 1, both excluded, not {fpr}.")
    _, hits, errors = _operating_points(member, non_member)
    negatives = int(errors[-1])
    limit = Fraction(fpr).limit_denominator(10**9) * negatives  # exact: 0.29 * 100 is 28.999.. in floating point
    allowed = ceil(limit) - 1 if strict else floor(limit)
    best = int(np.searchsorted(errors, allowed, side="right")) - 1  # hits and errors grow together
    positives = int(hits[-1])
    return Rate(int(hits[best]) / positives, int(hits[best]), int(errors[best]), positives, negatives)


def tnr_at_fnr(member: ArrayLike, non_member: ArrayLike, fnr: float = 0.001, strict: bool = False) -> Rate:
    """Largest TNR over the thresholds that clear at most floor(fnr * n) of the n members (`tpr_at_fpr`, swapped).

    Scores, range, `strict` and errors as in `tpr_at_fpr`.
    """
    return tpr_at_fpr(-np.asarray(non_member), -np.asarray(member), fnr, strict)


def balanced_accuracy(member: ArrayLike, non_member: ArrayLike, threshold: float) -> float:
    """Attack accuracy (TPR + TNR) / 2, 0..1, when a score of at least `threshold` is called a member."""
    truth, scores = _pooled(member, non_member)
    called = scores >= threshold
    return float((called[truth].mean() + (~called[~truth]).mean()) / 2)


def best_threshold(member: ArrayLike, non_member: ArrayLike) -> tuple[float, float]:
    """The threshold of the largest balanced accuracy and that accuracy (at least 0.5).

    Candidates are the observed scores and +inf ("nobody is a member"); of equally good ones the highest is taken, which
    accuses the fewest. On the scored points themselves this is an oracle: with no leakage at all it averages 0.510 at
    2000 + 2000 points.
    """
    thresholds, hits, errors = _operating_points(member, non_member)
    advantage = hits * errors[-1] - errors * hits[-1]  # (TPR - FPR) * n * m, in integers: ties are exact
    threshold = float(thresholds[advantage.argmax()])
    return threshold, balanced_accuracy(member, non_member, threshold)


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error, 0..1 (paper Eq. 6), over equal bins (a, b] of the largest probability.

    `probabilities` [n, C] rows that sum to 1, `labels` [n]. Raises UserError for other shapes, for rows that are no
    distribution (logits, say) and for bins < 1.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or p.size == 0:
        raise UserError(f"ece needs probabilities [n, C] and labels [n] with n >= 1, not {p.shape} and {y.shape}.")
    if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-3)):
        raise UserError("ece needs rows of probabilities that sum to 1: apply softmax to logits first.")
    if bins < 1:
        raise UserError(f"bins must be at least 1, not {bins}.")
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    which = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gaps = np.bincount(which, weights=correct - confidence)  # |B_m| * (acc(B_m) - conf(B_m))
    return float(np.abs(gaps).sum() / len(y))


def attack_report(
    member: ArrayLike,
    non_member: ArrayLike,
    known_member: ArrayLike,
    known_non_member: ArrayLike,
    oracle: bool,
    fpr: float = 0.001,
) -> dict[str, Any]:
    """All metrics of one attack as plain numbers ready for JSON.

    `member` [n] and `non_member` [m] are the scored points, `known_*` the attacker's own. With `oracle` (the released
    protocol) the threshold is the best one of the scored points and rates are strict; without, `known_*` fit it.
    Keys: auc, accuracy (at `threshold`), accuracy_oracle, threshold (None = +inf, nobody is a member), tpr_at_fpr and
    tnr_at_fnr (the fields of `Rate`; `fpr` bounds both error rates). Raises UserError for empty or NaN scores.
    """
    scored = (member, non_member)
    threshold, _ = best_threshold(*scored) if oracle else best_threshold(known_member, known_non_member)
    return {
        "auc": auc(*scored),
        "accuracy": balanced_accuracy(*scored, threshold),
        "accuracy_oracle": best_threshold(*scored)[1],
        "threshold": threshold if isfinite(threshold) else None,
        "tpr_at_fpr": asdict(tpr_at_fpr(*scored, fpr, strict=oracle)),
        "tnr_at_fnr": asdict(tnr_at_fnr(*scored, fpr, strict=oracle)),
    }


def _operating_points(member: ArrayLike, non_member: ArrayLike) -> tuple[Floats, Ints, Ints]:
    """Thresholds from +inf down to the lowest score, with the numbers of members and non-members at or above each."""
    truth, scores = _pooled(member, non_member)
    # The default, drop_intermediate=True, removes collinear vertices, and with them thresholds that attain a rate.
    fpr, tpr, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    counts = [np.rint(rate * side.sum()).astype(np.int64) for rate, side in ((tpr, truth), (fpr, ~truth))]
    return thresholds, counts[0], counts[1]


def _pooled(member: ArrayLike, non_member: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Membership and scores of all points, after checking both sides."""
    sides = {"members": np.asarray(member, np.float64), "non-members": np.asarray(non_member, np.float64)}
    for name, scores in sides.items():
        if scores.ndim != 1 or scores.size == 0:
            raise UserError(f"the scores of the {name} must be a non-empty vector, not of shape {scores.shape}.")
        bad = int((~np.isfinite(scores)).sum())
        if bad:
            raise UserError(f"{bad} of {scores.size} scores of the {name} are NaN or infinite: check the attack.")
    truth = np.repeat([True, False], [scores.size for scores in sides.values()])
    return truth, np.concatenate(list(sides.values()))
