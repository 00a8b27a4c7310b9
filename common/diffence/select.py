"""Sample selection and prediction aggregation (paper Section III-B2 and III-B3), on logits.

phi is Eq. 2, from float64 logits. A candidate qualifies if it keeps the label of the original and, in scenarios 1 and 2,
its phi lies in the defender's interval. Candidates are exchangeable draws, so the first that qualifies has the law of a
random one. Where none lies in the interval the nearest that keeps the label is released, and where none keeps the label
the original prediction is: accuracy never changes.
"""

from dataclasses import dataclass

import numpy as np

from common.config import SCENARIOS
from common.errors import UserError, check_name
from common.metrics.privacy import phi
from common.pair import Pair

ORIGINAL = -1  # the choice of an input none of whose candidates keeps the label


@dataclass(frozen=True)
class Selector:
    """A scenario and, for scenarios 1 and 2, its interval of phi."""

    scenario: str
    low: float = -np.inf
    high: float = np.inf

    def __post_init__(self) -> None:
        check_name("scenario", self.scenario, SCENARIOS)

    def rank(self, candidates: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Distance of phi to the interval for candidates [..., C] with labels [...] to keep; inf where the label is lost."""
        logit = phi(candidates)
        distance = np.maximum(np.maximum(self.low - logit, logit - self.high), 0)
        return np.where(candidates.argmax(-1) == labels, distance, np.inf)

    def choose(self, candidates: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The released candidate of each input, int64 [n]: logits [n, N, C] and labels [n] in, ORIGINAL where none keeps it."""
        return _first_nearest(self.rank(candidates, labels[:, None]))

    def draws(self, candidates: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """How many candidates each input needs when they are drawn one by one until one qualifies: int64 [n], 1..N."""
        if self.scenario == "average":
            return np.full(len(candidates), candidates.shape[1])
        qualifies = self.rank(candidates, labels[:, None]) == 0
        return np.where(qualifies.any(1), qualifies.argmax(1) + 1, candidates.shape[1])

    def release(self, candidates: np.ndarray, original: np.ndarray) -> np.ndarray:
        """Released logits [n, C] from those of the candidates [n, N, C] and of the original images [n, C]."""
        if self.scenario == "average":
            return average(candidates)
        chosen = self.choose(candidates, original.argmax(-1))
        picked = np.take_along_axis(candidates, np.maximum(chosen, 0)[:, None, None], axis=1)[:, 0]
        return np.where(chosen[:, None] == ORIGINAL, original, picked)


def average(candidates: np.ndarray) -> np.ndarray:
    """Logarithm of the mean softmax over N (paper Section III-B3): [n, N, C] -> [n, C]. Labels may change."""
    wide = candidates.astype(np.float64)
    logs = wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)
    return np.logaddexp.reduce(logs, axis=1) - np.log(candidates.shape[1])


@dataclass(frozen=True)
class CandidateLogits:
    """What a classifier answers about n images: logits of the images [n, C] and of their candidates [n, N, C]."""

    original: np.ndarray
    candidates: np.ndarray

    @property
    def keeps_label(self) -> np.ndarray:
        """Which candidates keep the label of their original, bool [n, N]."""
        return self.candidates.argmax(-1) == self.original.argmax(-1)[:, None]


def fit_selector(scenario: str, fit: Pair[CandidateLogits], grid: int = 20, js_bins: int = 100) -> Selector:
    """The selector of a scenario (paper Section III-B2), fitted on the defender's members and non-members.

    Scenario 1 compares all intervals between grid + 1 points of [min phi of members, max phi of non-members] and takes the one
    under which the released phi of members and non-members have the least Jensen-Shannon divergence, estimated from
    histograms of `js_bins` bins. Scenario 2 takes [min, mean] of the members' phi and does not look at the non-members.
    Scenario 3 and averaging need no interval and use nobody's membership.
    """
    if scenario not in ("1", "2"):
        return Selector(scenario)
    of_members = phi(fit.members.candidates)[fit.members.keeps_label]
    if not of_members.size:
        raise UserError(
            "no reconstruction of the defender's members keeps its label: lower diffence.t or train the DDPM longer."
        )
    if scenario == "2":
        return Selector(scenario, float(of_members.min()), float(of_members.mean()))
    of_non_members = phi(fit.non_members.candidates)[fit.non_members.keeps_label]
    if not of_non_members.size:
        raise UserError("no reconstruction of the defender's non-members keeps its label: lower diffence.t or train longer.")
    # Where the two do not overlap, the paper's range is empty and the search covers the gap between them.
    low, high = sorted((float(of_members.min()), float(of_non_members.max())))
    ends = np.linspace(low, high, grid + 1)
    best = int(np.argmin(interval_divergences(fit, ends, js_bins)))
    first, last = np.triu_indices(grid + 1, k=1)
    return Selector(scenario, float(ends[first[best]]), float(ends[last[best]]))


def interval_divergences(fit: Pair[CandidateLogits], ends: np.ndarray, bins: int) -> np.ndarray:
    """Jensen-Shannon divergence (nats) between the two sides' released phi, for each interval between two of the `ends`.

    Intervals are in the order of np.triu_indices(len(ends), k=1): float64 [I].
    """
    released = fit.map(lambda side: released_phi(side, ends))
    low, high = min(values.min() for values in released), max(values.max() for values in released)
    counts = [_histograms(values, low, high, bins) for values in released]
    p, q = (count / count.sum(1, keepdims=True) for count in counts)
    middle = (p + q) / 2
    return (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2


def released_phi(side: CandidateLogits, ends: np.ndarray) -> np.ndarray:
    """phi that `Selector.choose` would release for each of n inputs under each of I intervals: float64 [I, n].

    Trying each interval on its own would rank all candidates I times. Instead, the K ends cut the line into 2K + 1 cells: cell
    2k + 1 is end k itself, and cell 2k is the gap below it. An interval from end a to end b is the run of cells 2a + 1 to
    2b + 1.

    Example: ends 0, 1, 2 and an input with candidates at phi 1.5, 0.4 and 3.0. Their cells are 4 (between 1 and 2), 2 (between
    0 and 1) and 6 (above 2). So the first candidate of cell 4 is number 0, of cell 2 number 1, of cell 6 number 2, and the
    other cells have none, which counts as number N = 3. The interval [0, 1] is cells 1 to 3. The smallest number there is 1, so
    0.4 is released. The interval [0, 2] is cells 1 to 5. The smallest number there is 0, so 1.5 is released. Where a run has
    no candidate, the nearest one outside is the largest below a or the smallest above b.
    """
    logit = np.where(side.keeps_label, phi(side.candidates), np.nan)
    inputs, n = logit.shape
    # NaN, a candidate that loses the label, sorts above all ends, into the last cell, which no interval contains.
    cell = np.searchsorted(ends, logit, side="left") + np.searchsorted(ends, logit, side="right")
    first = np.full((inputs, 2 * len(ends) + 1), n)
    for j in reversed(range(n)):
        first[np.arange(inputs), cell[:, j]] = j
    below = np.stack([np.where(logit < end, logit, -np.inf).max(1) for end in ends], axis=1)
    above = np.stack([np.where(logit > end, logit, np.inf).min(1) for end in ends], axis=1)
    released = []
    for a in range(len(ends) - 1):
        # Of every interval [a, b] with b > a at once: the running minimum over cells 2a + 1, 2a + 2, ... ends at cell 2b + 1.
        inside = np.minimum.accumulate(first[:, 2 * a + 1 :], axis=1)[:, 2::2]
        under, over = below[:, [a]], above[:, a + 1 :]
        outside = np.where(ends[a] - under <= over - ends[a + 1 :], under, over)
        outside = np.where(np.isinf(outside), phi(side.original)[:, None], outside)  # no candidate keeps the label
        chosen = np.take_along_axis(logit, np.minimum(inside, n - 1), axis=1)
        released.append(np.where(inside < n, chosen, outside).T)
    return np.concatenate(released)


def _first_nearest(distance: np.ndarray) -> np.ndarray:
    """Position of the first smallest distance along the last axis; ORIGINAL where all are infinite."""
    chosen = distance.argmin(-1)
    return np.where(np.isinf(distance.min(-1)), ORIGINAL, chosen)


def _histograms(values: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """Counts [I, bins] of each row of values [I, n] in equal bins of [low, high]."""
    place = np.clip(((values - low) / max(high - low, 1e-12) * bins).astype(np.int64), 0, bins - 1)
    rows = np.arange(len(values))[:, None] * bins
    return np.bincount((rows + place).ravel(), minlength=len(values) * bins).reshape(len(values), bins).astype(float)


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of rows, 0 log 0 = 0; q > 0 wherever p is."""
    return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / np.where(p > 0, q, 1)), 0), axis=1)
