"""The metrics of an attack (paper Section IV-A "Evaluation metrics", Eq. 2).

A higher score means "more likely a member". A point is predicted to be a member if its score is at least the threshold. Rates
at a low error rate are counts that some threshold attains. They are not interpolated. Intervals are in
common/metrics/intervals.py, ECE and NLL in common/metrics/calibration.py.
"""

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from math import ceil, floor, isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score, roc_curve

from common.errors import UserError
from common.metrics.intervals import Floats, checked_scores, clopper_pearson, delong_interval
from common.pair import Pair

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rate:
    """A rate at a bounded error rate, with its counts and intervals. At an error rate of 0.1% the counts are small.

    TPR at an FPR: `hits` of `positives` members and `errors` of `negatives` non-members are predicted to be members.
    TNR at an FNR: `hits` of `positives` non-members and `errors` of `negatives` members are predicted to be non-members.
    The intervals are those of a threshold that is fixed in advance, although this threshold was selected on the same points.
    """

    rate: float  # hits / positives, 0..1
    hits: int
    errors: int
    positives: int
    negatives: int
    interval: list[float] = field(init=False)  # of the rate: 95% Clopper-Pearson, [low, high]
    error_interval: list[float] = field(init=False)  # of errors / negatives, likewise

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", clopper_pearson(self.hits, self.positives))
        object.__setattr__(self, "error_interval", clopper_pearson(self.errors, self.negatives))


def phi(logits: ArrayLike, label: ArrayLike | None = None) -> Floats:
    """The logit-scaled confidence log(p / (1 - p)) in a label (paper Eq. 2), computed without rounding p to 1.

    `logits` [.., C] of any leading shape. `label` broadcasts to that shape; None = the predicted class (argmax). Returns
    float64 [..], unbounded. Raises UserError for fewer than two classes, for NaN or infinite logits, and for labels that are
    not integers in 0..C-1 or do not fit.
    """
    z = np.array(logits, dtype=np.float64)
    if z.ndim == 0 or z.shape[-1] < 2:
        raise UserError(f"logits need a last axis of at least 2 classes, not the shape {z.shape}.")
    if not np.isfinite(z).all():
        raise UserError("logits hold NaN or infinite values: check the model that made them.")
    y = z.argmax(-1) if label is None else np.asarray(label)
    try:
        index = np.broadcast_to(y, z.shape[:-1])[..., None]
    except ValueError:
        raise UserError(f"labels of shape {y.shape} do not fit logits of shape {z.shape}.") from None
    if index.dtype.kind not in "iu" or (index < 0).any() or (index >= z.shape[-1]).any():
        raise UserError(f"labels must be integers in 0..{z.shape[-1] - 1}, the classes of the logits.")
    z_y = np.take_along_axis(z, index, -1)[..., 0]
    np.put_along_axis(z, index, -np.inf, -1)  # only the other classes remain: z_y - logsumexp(others) = log p - log(1 - p)
    return np.asarray(z_y - logsumexp(z, axis=-1))


def auc(member: ArrayLike, non_member: ArrayLike) -> float:
    """Attack AUC, 0..1: the probability that a member [n] scores above a non-member [m]. Ties count half."""
    truth, scores = _pooled(member, non_member)
    return float(roc_auc_score(truth, scores))


def tpr_at_fpr(member: ArrayLike, non_member: ArrayLike, fpr: float = 0.001, strict: bool = False) -> Rate:
    """The largest TPR over all thresholds with an FPR of at most `fpr` (paper Section IV-A).

    At such a threshold, at most floor(fpr * m) of the m non-members are predicted to be members. `member` [n] and `non_member`
    [m] are scores, `fpr` is in (0, 1). With `strict` the FPR is below `fpr`, as in the released code. Raises UserError for an
    `fpr` out of range and for empty, NaN or infinite scores.
    """
    if not 0 < fpr < 1:
        raise UserError(f"fpr must lie between 0 and 1, both excluded, not {fpr}.")
    _, hits, errors = _operating_points(member, non_member)
    negatives = int(errors[-1])
    allowed = allowed_errors(fpr, negatives, strict)
    best = int(np.searchsorted(errors, allowed, side="right")) - 1  # hits and errors grow together
    positives = int(hits[-1])
    return Rate(int(hits[best]) / positives, int(hits[best]), int(errors[best]), positives, negatives)


def tnr_at_fnr(member: ArrayLike, non_member: ArrayLike, fnr: float = 0.001, strict: bool = False) -> Rate:
    """The largest TNR over all thresholds with an FNR of at most `fnr`.

    At such a threshold, at most floor(fnr * n) of the n members are predicted to be non-members. It is `tpr_at_fpr` with the
    sides swapped and the scores negated. Arguments and exceptions are the same.
    """
    return tpr_at_fpr(-np.asarray(non_member), -np.asarray(member), fnr, strict)


def allowed_errors(rate: float, points: int, strict: bool = False) -> int:
    """The largest number of errors among `points` with an error rate of at most `rate`, or with `strict` below `rate`."""
    limit = Fraction(rate).limit_denominator(10**9) * points  # exact: 0.29 * 100 is 28.999.. in floating point
    return ceil(limit) - 1 if strict else floor(limit)


def pool_warnings(members: int, non_members: int, fpr: float = 0.001, strict: bool = False) -> list[str]:
    """A warning for each error rate that a single error exceeds, because there are too few scored points.

    `fpr` bounds both error rates, the FPR among the non-members and the FNR among the members.
    """
    return [
        f"{rate} at {100 * fpr:g}% {error}: {points:,} {side} are too few, one error exceeds it; "
        f"it is measured at 0 errors, where the {error} may be anything up to {100 * clopper_pearson(0, points)[1]:.2f}% (95%)."
        for rate, error, side, points in (("TPR", "FPR", "non-members", non_members), ("TNR", "FNR", "members", members))
        if allowed_errors(fpr, points, strict) == 0
    ]


def balanced_accuracy(member: ArrayLike, non_member: ArrayLike, threshold: float) -> float:
    """Attack accuracy (TPR + TNR) / 2, 0..1, if points with a score of at least `threshold` are predicted to be members."""
    truth, scores = _pooled(member, non_member)
    predicted = scores >= threshold
    return float((predicted[truth].mean() + (~predicted[~truth]).mean()) / 2)


def best_threshold(member: ArrayLike, non_member: ArrayLike) -> tuple[float, float]:
    """The threshold with the largest balanced accuracy, and that accuracy (at least 0.5).

    Candidates are the observed scores and +inf (no point is predicted to be a member). Of equally good thresholds, the highest
    is returned. On the scored points themselves, this threshold is an oracle: without any leakage its accuracy is 0.510 on
    average at 2000 + 2000 points.
    """
    thresholds, hits, errors = _operating_points(member, non_member)
    advantage = hits * errors[-1] - errors * hits[-1]  # (TPR - FPR) * n * m, in integers: ties are exact
    threshold = float(thresholds[advantage.argmax()])
    return threshold, balanced_accuracy(member, non_member, threshold)


def class_thresholds(
    member: ArrayLike, non_member: ArrayLike, member_labels: ArrayLike, non_member_labels: ArrayLike
) -> tuple[float, dict[int, float]]:
    """The best threshold of all points, and that of each class with points on both sides (Song & Mittal, Section 4.2).

    Scores and labels of members [n] and non-members [m]. Thresholds overfit if a class has few points: without leakage and with
    10 + 10 points in each class, the accuracy is .616 on these points and .500 on new ones. Raises UserError for labels of
    another shape.
    """
    (members, member_classes), (non_members, non_member_classes) = _labelled(
        member, non_member, member_labels, non_member_labels
    )
    by_class = {
        int(label): best_threshold(members[member_classes == label], non_members[non_member_classes == label])[0]
        for label in np.intersect1d(member_classes, non_member_classes)
    }
    return best_threshold(members, non_members)[0], by_class


def class_accuracy(
    member: ArrayLike,
    non_member: ArrayLike,
    member_labels: ArrayLike,
    non_member_labels: ArrayLike,
    thresholds: tuple[float, dict[int, float]],
) -> float:
    """Attack accuracy (TPR + TNR) / 2, 0..1, with one threshold for each class.

    `thresholds` are those of `class_thresholds`. Classes without a threshold of their own get that of all points.
    """
    overall, by_class = thresholds
    tpr, fpr = (
        (scores >= np.array([by_class.get(int(label), overall) for label in labels])).mean()
        for scores, labels in _labelled(member, non_member, member_labels, non_member_labels)
    )
    return float((tpr + 1 - fpr) / 2)


def attack_report(
    scored: Pair[Any],
    known: Pair[Any],
    oracle: bool,
    fpr: float = 0.001,
    scored_labels: Pair[Any] | None = None,
    known_labels: Pair[Any] | None = None,
) -> dict[str, Any]:
    """All metrics of one attack as plain numbers, ready for JSON.

    `scored` are the scores of the points whose membership is inferred, members [n] and non-members [m]. `known` are those of
    the attacker's own points. With `oracle` (protocol released), the threshold is fitted on the scored points and rates are
    strict. Otherwise it is fitted on the known points. With the true classes of both, `scored_labels` and `known_labels`, a
    threshold per class is fitted on the same points. Raises UserError for empty, NaN or infinite scores.

    Keys of the result:
    - auc, and auc_interval: the 95% interval [low, high]
    - accuracy: at `threshold`
    - accuracy_oracle: at the best threshold of the scored points
    - accuracy_per_class: with labels only
    - threshold: None = +inf, no point is predicted to be a member
    - tpr_at_fpr and tnr_at_fnr: the fields of `Rate`. `fpr` bounds both error rates
    """
    fitted_on = scored if oracle else known
    threshold, _ = best_threshold(*fitted_on)
    report = {
        "auc": auc(*scored),
        "auc_interval": delong_interval(*scored),
        "accuracy": balanced_accuracy(scored.members, scored.non_members, threshold),
        "accuracy_oracle": best_threshold(*scored)[1],
        "threshold": threshold if isfinite(threshold) else None,
        "tpr_at_fpr": asdict(tpr_at_fpr(scored.members, scored.non_members, fpr, strict=oracle)),
        "tnr_at_fnr": asdict(tnr_at_fnr(scored.members, scored.non_members, fpr, strict=oracle)),
    }
    if scored_labels is not None and known_labels is not None:
        fitted_labels = scored_labels if oracle else known_labels
        thresholds = class_thresholds(
            fitted_on.members, fitted_on.non_members, fitted_labels.members, fitted_labels.non_members
        )
        report["accuracy_per_class"] = class_accuracy(
            scored.members, scored.non_members, scored_labels.members, scored_labels.non_members, thresholds
        )
    return report


def _labelled(
    member: ArrayLike, non_member: ArrayLike, member_labels: ArrayLike, non_member_labels: ArrayLike
) -> list[tuple[Floats, Ints]]:
    """Scores and labels of members and of non-members. Raises UserError unless every score has a label."""
    labels = [np.asarray(side) for side in (member_labels, non_member_labels)]
    sides = list(zip(checked_scores(member, non_member), labels, strict=True))
    if any(scores.shape != side.shape for scores, side in sides):
        raise UserError(
            f"thresholds per class need a label for each score, not labels {labels[0].shape} and {labels[1].shape}."
        )
    return sides


def _operating_points(member: ArrayLike, non_member: ArrayLike) -> tuple[Floats, Ints, Ints]:
    """Thresholds from +inf down to the lowest score, and the numbers of members and of non-members at or above each of them."""
    truth, scores = _pooled(member, non_member)
    # By default, roc_curve drops collinear vertices, and with them thresholds that attain a rate.
    fpr, tpr, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    counts = [np.rint(rate * side.sum()).astype(np.int64) for rate, side in ((tpr, truth), (fpr, ~truth))]
    return thresholds, counts[0], counts[1]


def _pooled(member: ArrayLike, non_member: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Membership (True for members) and scores of all points, members first. Raises UserError as `checked_scores` does."""
    sides = checked_scores(member, non_member)
    return np.repeat([True, False], [len(side) for side in sides]), np.concatenate(sides)
