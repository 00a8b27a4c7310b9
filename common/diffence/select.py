"""Sample selection and prediction aggregation (paper Section III-B2 and III-B3), on logits.

A candidate qualifies if it keeps the label of the original image and, in scenarios 1 and 2, if its phi (Eq. 2, from float64
logits) lies in the defender's interval. The first candidate that qualifies is released. Candidates are exchangeable, so it has
the same distribution as a randomly picked one. Where no candidate qualifies, the nearest to the interval that keeps the label
is released. Where none keeps the label, the original prediction is released. So labels, and with them accuracy, do not change.

The original prediction is what an attacker looks for. It is released for images that the classifier knows by heart only, such
as a member with a wrong label. With the fallback `reorder`, the confidences of a candidate are released there instead, in the
order of the original ones. The label and the ranks of all classes are those of the original prediction, and its confidences
are not. It cannot hide the label itself.

Scenario `average` selects nothing: it releases the average over all candidates, and labels may change.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from common.config import SCENARIOS, Fallback
from common.errors import UserError, check_name
from common.metrics.privacy import phi
from common.pair import Pair

ORIGINAL = -1  # the choice where no candidate keeps the label


@dataclass(frozen=True)
class Selector:
    """A scenario and, for scenarios 1 and 2, its interval [low, high] of phi.

    fallback: what is released where no candidate keeps the label. `original` is the original prediction (the paper's).
    `reorder` is the candidate whose phi of its own label is nearest to the interval, with its logits in the order of the
    original ones.

    Raises UserError for an unknown scenario or fallback.
    """

    scenario: str
    low: float = -np.inf
    high: float = np.inf
    fallback: Fallback = "original"

    def __post_init__(self) -> None:
        check_name("scenario", self.scenario, SCENARIOS)
        check_name("fallback", self.fallback, get_args(Fallback))

    def outside(self, candidates: np.ndarray) -> np.ndarray:
        """The distance of phi of the predicted class to the interval: logits [.., C] -> float64 [..], 0 inside."""
        if np.isinf(self.low) and np.isinf(self.high):  # no phi is needed, which would take as long as a layer of a network
            return np.zeros(candidates.shape[:-1])
        value = phi(candidates)
        return np.maximum(np.maximum(self.low - value, value - self.high), 0)

    def distance(self, candidates: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """How far a candidate is from qualifying: logits [.., C] and the original labels [..] -> float64 [..].

        It is the distance of phi to the interval, 0 where the candidate qualifies and inf where it does not keep the label.
        """
        return np.where(candidates.argmax(-1) == labels, self.outside(candidates), np.inf)

    def choose(self, candidates: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The number of the released candidate: logits [n, N, C] and original labels [n] -> int64 [n].

        It is ORIGINAL where no candidate keeps the label. Of equally near candidates it is the first.
        """
        distance = self.distance(candidates, labels[:, None])
        return np.where(np.isinf(distance.min(1)), ORIGINAL, distance.argmin(1))

    def draws(self, candidates: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """How many candidates are drawn until one qualifies, one at a time: logits [n, N, C] and labels [n] -> int64 [n].

        It is N, the number of candidates, where none qualifies.
        """
        if self.scenario == "average":
            return np.full(len(candidates), candidates.shape[1])
        qualifies = self.distance(candidates, labels[:, None]) == 0
        return np.where(qualifies.any(1), qualifies.argmax(1) + 1, candidates.shape[1])

    def release(self, candidates: np.ndarray, original: np.ndarray) -> np.ndarray:
        """The released logits [n, C], from those of the candidates [n, N, C] and of the original images [n, C]."""
        if self.scenario == "average":
            return average(candidates)
        choice = self.choose(candidates, original.argmax(-1))
        released = np.take_along_axis(candidates, np.maximum(choice, 0)[:, None, None], axis=1)[:, 0]
        unmatched = np.flatnonzero(choice == ORIGINAL)
        released[unmatched] = original[unmatched]
        if self.fallback == "reorder":
            nearest = self.outside(candidates[unmatched]).argmin(1)
            released[unmatched] = reorder(candidates[unmatched, nearest], original[unmatched])
        return released


def reorder(logits: np.ndarray, original: np.ndarray) -> np.ndarray:
    """The values of each row of logits [n, C], in the order of the same row of `original` [n, C].

    For example, (0.3, 0.1, 4) in the order of (2, 5, 1) is (0.3, 4, 0.1). The argmax of the result is that of `original`, if
    the largest value of `logits` is unique.
    """
    ranks = np.argsort(np.argsort(-original, axis=1, kind="stable"), axis=1)  # 0 is the argmax, the first of equal values
    return np.take_along_axis(-np.sort(-logits, axis=1), ranks, axis=1)


def average(candidates: np.ndarray) -> np.ndarray:
    """The logarithm of the mean softmax over N candidates (paper Section III-B3): [n, N, C] -> float64 [n, C].

    Labels may change.
    """
    logits = candidates.astype(np.float64)
    log_softmax = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return np.logaddexp.reduce(log_softmax, axis=1) - np.log(candidates.shape[1])


@dataclass(frozen=True)
class CandidateLogits:
    """A classifier's logits on n images [n, C] and on their candidates [n, N, C]."""

    original: np.ndarray
    candidates: np.ndarray

    def at(self, index: np.ndarray) -> "CandidateLogits":
        """The logits of the images at `index` and of their candidates."""
        return CandidateLogits(self.original[index], self.candidates[index])

    @property
    def keeps_label(self) -> np.ndarray:
        """Which candidates keep the label of their original, bool [n, N]."""
        return self.candidates.argmax(-1) == self.original.argmax(-1)[:, None]


def fit_selector(
    scenario: str, fit: Pair[CandidateLogits], grid: int = 20, js_bins: int = 100, fallback: Fallback = "original"
) -> Selector:
    """The selector of a scenario (paper Section III-B2), fitted on the defender's members and non-members.

    Scenario 1 compares all intervals between two of the `interval_ends`. It takes the interval for which the released phi of
    members and of non-members have the least Jensen-Shannon divergence, estimated from histograms with `js_bins` bins.
    Scenario 2 takes [min, mean] of the members' phi and ignores the non-members. Scenario 3 and averaging need no interval and
    no membership. Raises UserError where no candidate of a side in use keeps its label.
    """
    if scenario not in ("1", "2"):
        return Selector(scenario, fallback=fallback)
    if scenario == "2":
        members = label_keeping_phi(fit.members, "members")
        return Selector(scenario, float(members.min()), float(members.mean()), fallback)
    ends = interval_ends(fit, grid)
    best = int(np.argmin(interval_divergences(fit, ends, js_bins, fallback)))
    first, last = np.triu_indices(grid + 1, k=1)
    return Selector(scenario, float(ends[first[best]]), float(ends[last[best]]), fallback)


def interval_ends(fit: Pair[CandidateLogits], grid: int) -> np.ndarray:
    """The ends of the intervals that scenario 1 compares, ascending: float64 [grid + 1].

    They are evenly spaced in [min phi of members, max phi of non-members], over candidates that keep their label (paper
    Section III-B2). Where all members are above all non-members, that range is empty, and the ends cover the gap between them.
    """
    members = label_keeping_phi(fit.members, "members")
    non_members = label_keeping_phi(fit.non_members, "non-members")
    low, high = sorted((float(members.min()), float(non_members.max())))
    return np.linspace(low, high, grid + 1)


def label_keeping_phi(side: CandidateLogits, name: str) -> np.ndarray:
    """phi of all candidates that keep their label, float64 [any]. Raises UserError where there is none."""
    values = phi(side.candidates)[side.keeps_label]
    if not values.size:
        raise UserError(
            f"no reconstruction of the defender's {name} keeps its label: lower diffence.t or train the DDPM longer."
        )
    return values


def interval_divergences(
    fit: Pair[CandidateLogits], ends: np.ndarray, bins: int, fallback: Fallback = "original"
) -> np.ndarray:
    """Jensen-Shannon divergence between the released phi of members and of non-members, for each interval: float64 [I], nats.

    The intervals lie between any two of the `ends`, in the order of np.triu_indices(len(ends), k=1).
    """
    released = fit.map(lambda side: released_phi(side, ends, fallback))
    low, high = min(values.min() for values in released), max(values.max() for values in released)
    counts = [_histograms(values, low, high, bins) for values in released]
    p, q = (count / count.sum(1, keepdims=True) for count in counts)
    middle = (p + q) / 2
    return (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2


def released_phi(side: CandidateLogits, ends: np.ndarray, fallback: Fallback = "original") -> np.ndarray:
    """phi that `Selector.release` would release for each of n inputs under each interval between two ends: float64 [I, n].

    Trying each interval on its own would go through all candidates I times. Instead, the K ends cut the line into 2K + 1 cells:
    cell 2k + 1 is end k itself, and cell 2k is the gap below it. The interval from end a to end b is cells 2a + 1 to 2b + 1.

    Example: the ends are 0, 1, 2, and the candidates of an input have phi 1.5, 0.4 and 3.0. These lie in cell 4 (between 1 and
    2), cell 2 (between 0 and 1) and cell 6 (above 2). The first candidate of cell 4 is number 0, of cell 2 number 1 and of cell
    6 number 2. The other cells are empty, which counts as number N = 3. The interval [0, 1] is cells 1 to 3. The smallest
    number there is 1, so 0.4 is released. The interval [0, 2] is cells 1 to 5. The smallest number there is 0, so 1.5 is
    released. Where all cells of an interval are empty, the nearest candidate is released: the largest phi below a or the
    smallest above b.
    """
    usable = side.keeps_label
    if fallback == "reorder":  # where no candidate keeps the label, each of them lends its confidences
        usable = usable | ~usable.any(1, keepdims=True)
    value = np.where(usable, phi(side.candidates), np.nan)
    inputs, n = value.shape
    # NaN, a candidate that does not keep the label, sorts above all ends, into the last cell, which is in no interval.
    cell = np.searchsorted(ends, value, side="left") + np.searchsorted(ends, value, side="right")
    first = np.full((inputs, 2 * len(ends) + 1), n)
    for number in reversed(range(n)):
        first[np.arange(inputs), cell[:, number]] = number
    largest_below = np.stack([np.where(value < end, value, -np.inf).max(1) for end in ends], axis=1)
    smallest_above = np.stack([np.where(value > end, value, np.inf).min(1) for end in ends], axis=1)
    released = []
    for a in range(len(ends) - 1):
        # All intervals [a, b] with b > a at once: the running minimum over cells 2a + 1, 2a + 2, ... ends at cell 2b + 1.
        inside = np.minimum.accumulate(first[:, 2 * a + 1 :], axis=1)[:, 2::2]
        below, above = largest_below[:, [a]], smallest_above[:, a + 1 :]
        nearest = np.where(ends[a] - below <= above - ends[a + 1 :], below, above)
        nearest = np.where(np.isinf(nearest), phi(side.original)[:, None], nearest)  # no candidate keeps the label
        inside_phi = np.take_along_axis(value, np.minimum(inside, n - 1), axis=1)
        released.append(np.where(inside < n, inside_phi, nearest).T)
    return np.concatenate(released)


def _histograms(values: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """Counts [I, bins] of each row of values [I, n] in equal bins of [low, high]."""
    index = np.clip(((values - low) / max(high - low, 1e-12) * bins).astype(np.int64), 0, bins - 1)
    offsets = np.arange(len(values))[:, None] * bins
    return np.bincount((offsets + index).ravel(), minlength=len(values) * bins).reshape(len(values), bins).astype(float)


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of each row of p from q, in nats, with 0 log 0 = 0. q is positive wherever p is."""
    return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / np.where(p > 0, q, 1)), 0), axis=1)
