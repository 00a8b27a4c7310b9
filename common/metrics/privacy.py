"""Every metric of an attack, in one place (paper Section IV-A "Evaluation metrics", Eq. 2).

Scores follow one convention: a higher score means "more likely a member", and a point is called a member when its score
is at least the threshold. Rates at a low error rate are counts that some threshold attains, never interpolated.
Intervals: common/metrics/intervals.py; ECE and NLL: common/metrics/calibration.py.
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
    """A rate at a bounded error rate, with the integers behind it: at 0.1% they are small and ask for an interval.

    TPR at an FPR: `hits` of `positives` members are found while `errors` of `negatives` non-members are accused.
    TNR at an FNR: `hits` of `positives` non-members are cleared while `errors` of `negatives` members are cleared too.
    The intervals are those of a threshold fixed beforehand; this one was chosen among the same points.
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
    allowed = allowed_errors(fpr, negatives, strict)
    best = int(np.searchsorted(errors, allowed, side="right")) - 1  # hits and errors grow together
    positives = int(hits[-1])
    return Rate(int(hits[best]) / positives, int(hits[best]), int(errors[best]), positives, negatives)


def tnr_at_fnr(member: ArrayLike, non_member: ArrayLike, fnr: float = 0.001, strict: bool = False) -> Rate:
    """Largest TNR over the thresholds that clear at most floor(fnr * n) of the n members (`tpr_at_fpr`, swapped).

    Scores, range, `strict` and errors as in `tpr_at_fpr`.
    """
    return tpr_at_fpr(-np.asarray(non_member), -np.asarray(member), fnr, strict)


def allowed_errors(rate: float, points: int, strict: bool = False) -> int:
    """The most errors among `points` that keep to an error rate: at most `rate`, or with `strict` below it."""
    limit = Fraction(rate).limit_denominator(10**9) * points  # exact: 0.29 * 100 is 28.999.. in floating point
    return ceil(limit) - 1 if strict else floor(limit)


def pool_warnings(members: int, non_members: int, fpr: float = 0.001, strict: bool = False) -> list[str]:
    """A sentence for each error rate that so few scored points cannot show: one at which they allow no error at all.

    `fpr` bounds both error rates, the FPR among the non-members and the FNR among the members.
    """
    return [
        f"{rate} at {100 * fpr:g}% {error}: {points:,} {side} are too few, one error exceeds it; "
        f"it is measured at 0 errors, where the {error} may be anything up to {100 * clopper_pearson(0, points)[1]:.2f}% (95%)."
        for rate, error, side, points in (("TPR", "FPR", "non-members", non_members), ("TNR", "FNR", "members", members))
        if allowed_errors(fpr, points, strict) == 0
    ]


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


def class_thresholds(
    member: ArrayLike, non_member: ArrayLike, member_labels: ArrayLike, non_member_labels: ArrayLike
) -> tuple[float, dict[int, float]]:
    """The best threshold of all points, and that of each class with points on both sides (Song & Mittal, Section 4.2).

    Scores and labels of members [n] and non-members [m]. Few points a class overfit: with no leakage and 10 + 10 points a
    class their own accuracy is .616, that of fresh points .500. Raises UserError for labels of another shape.
    """
    (members, of_members), (others, of_others) = _labelled(member, non_member, member_labels, non_member_labels)
    own = {
        int(label): best_threshold(members[of_members == label], others[of_others == label])[0]
        for label in np.intersect1d(of_members, of_others)
    }
    return best_threshold(members, others)[0], own


def class_accuracy(
    member: ArrayLike,
    non_member: ArrayLike,
    member_labels: ArrayLike,
    non_member_labels: ArrayLike,
    thresholds: tuple[float, dict[int, float]],
) -> float:
    """Attack accuracy (TPR + TNR) / 2, 0..1, at the `thresholds` of class_thresholds: the global one for a class without."""
    everywhere, own = thresholds
    found, accused = (
        (scores >= np.array([own.get(int(label), everywhere) for label in labels])).mean()
        for scores, labels in _labelled(member, non_member, member_labels, non_member_labels)
    )
    return float((found + 1 - accused) / 2)


def attack_report(
    scored: Pair[Any],
    known: Pair[Any],
    oracle: bool,
    fpr: float = 0.001,
    scored_labels: Pair[Any] | None = None,
    known_labels: Pair[Any] | None = None,
) -> dict[str, Any]:
    """All metrics of one attack as plain numbers, ready for JSON.

    `scored` are the scores of the points whose membership is guessed, members [n] and non-members [m]. `known` are those of the
    attacker's own points. With `oracle` (protocol released) the threshold is the best one of the scored points, and rates are
    strict. Without it the threshold is fitted on the known points. The true classes of both, `scored_labels` and
    `known_labels`, ask for a threshold per class, fitted on the same points.

    Keys: auc; auc_interval, 95%, [low, high]; accuracy, at `threshold`; accuracy_oracle, at the best threshold of the scored
    points; accuracy_per_class, with labels only; threshold (None = +inf: nobody is called a member); tpr_at_fpr and tnr_at_fnr,
    the fields of `Rate`, where `fpr` bounds both error rates. Raises UserError for empty or NaN scores.
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
    """Scores and labels of both sides, after checking that every score has a label."""
    labels = [np.asarray(side) for side in (member_labels, non_member_labels)]
    sides = list(zip(checked_scores(member, non_member), labels, strict=True))
    if any(scores.shape != side.shape for scores, side in sides):
        raise UserError(
            f"thresholds per class need a label for each score, not labels {labels[0].shape} and {labels[1].shape}."
        )
    return sides


def _operating_points(member: ArrayLike, non_member: ArrayLike) -> tuple[Floats, Ints, Ints]:
    """Thresholds from +inf down to the lowest score, with the numbers of members and non-members at or above each."""
    truth, scores = _pooled(member, non_member)
    # The default, drop_intermediate=True, removes collinear vertices, and with them thresholds that attain a rate.
    fpr, tpr, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    counts = [np.rint(rate * side.sum()).astype(np.int64) for rate, side in ((tpr, truth), (fpr, ~truth))]
    return thresholds, counts[0], counts[1]


def _pooled(member: ArrayLike, non_member: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Membership and scores of all points, after checking both sides."""
    sides = checked_scores(member, non_member)
    return np.repeat([True, False], [len(side) for side in sides]), np.concatenate(sides)
