"""The uncertainty of a metric: 95% confidence intervals of AUC and of rates, mean and standard deviation over seeds.

An interval covers the sampling of the scored points only. The metric of another model, trained from another seed, may lie
outside it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm, rankdata, t

from common.errors import UserError

Floats = NDArray[np.float64]
LEVEL = 0.95


def delong_interval(member: ArrayLike, non_member: ArrayLike, level: float = LEVEL) -> list[float]:
    """The confidence interval [low, high] of an AUC, in 0..1, by DeLong, DeLong and Clarke-Pearson (1988).

    `member` [n] and `non_member` [m] scores, confidence `level` in 0..1. The placement value of a member is the share of the
    non-members that score below it, that of a non-member the share of the members that score above it; ties count half. The
    variance of the AUC is the sum, over both sides, of the sample variance of the placement values divided by their number. The
    values are computed from ranks in O((n + m) log(n + m)) (Sun and Xu, 2014).

    Special cases:
    - If a side has a single point, its variance is unknown. The interval is [0, 1].
    - If the scores separate the sides perfectly, the variance is 0. The interval is the exact one (Clopper-Pearson) of
      min(n, m) disjoint pairs of a member and a non-member that are all in order. Just below perfect separation, DeLong's
      interval is too narrow for few points.
    - Constant scores have the AUC 0.5 on any points. The interval is [0.5, 0.5].

    Raises UserError for empty, NaN or infinite scores.
    """
    members, non_members = checked_scores(member, non_member)
    n, m = len(members), len(non_members)
    if min(n, m) < 2:
        return [0.0, 1.0]
    ranks = rankdata(np.concatenate([members, non_members]))
    member_placements = (ranks[:n] - rankdata(members)) / m
    non_member_placements = 1 - (ranks[n:] - rankdata(non_members)) / n
    auc, tail = float(member_placements.mean()), (1 - level) / 2
    if auc in (0, 1):
        bound = tail ** (1 / min(n, m))
        return [bound, 1.0] if auc else [0.0, 1 - bound]
    half_width = norm.isf(tail) * np.sqrt(member_placements.var(ddof=1) / n + non_member_placements.var(ddof=1) / m)
    return [float(np.clip(auc + offset, 0, 1)) for offset in (-half_width, half_width)]


def clopper_pearson(hits: int, trials: int) -> list[float]:
    """The exact 95% confidence interval [low, high] of a probability, from `hits` in `trials` independent draws.

    The bounds are quantiles of Beta distributions. 0 hits give [0, 1 - .025^(1/trials)]. Raises UserError unless
    0 <= hits <= trials and trials >= 1.
    """
    if not (0 <= hits <= trials and trials >= 1):
        raise UserError(f"a rate needs 0 <= hits <= trials and at least 1 trial, not {hits} of {trials}.")
    tail = (1 - LEVEL) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return [low, high]


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1 in the denominator) of a metric over several seeds.

    Raises UserError for fewer than two values.
    """
    if len(values) < 2:
        raise UserError(f"a standard deviation over seeds needs at least 2 of them, not {len(values)}.")
    return float(np.mean(values)), float(np.std(values, ddof=1))


def mean_interval(values: Sequence[float]) -> list[float]:
    """The 95% confidence interval [low, high] of the mean of a metric over several seeds, by Student's t.

    Raises UserError for fewer than two values.
    """
    mean, deviation = mean_and_sd(values)
    half_width = t.isf((1 - LEVEL) / 2, len(values) - 1) * deviation / len(values) ** 0.5
    return [float(mean - half_width), float(mean + half_width)]


def checked_scores(member: ArrayLike, non_member: ArrayLike) -> tuple[Floats, Floats]:
    """The scores of both sides as float64 vectors.

    Raises UserError, which names the side, for scores that are not a vector, empty, NaN or infinite.
    """
    sides = {"members": np.asarray(member, np.float64), "non-members": np.asarray(non_member, np.float64)}
    for name, scores in sides.items():
        if scores.ndim != 1 or scores.size == 0:
            raise UserError(f"the scores of the {name} must be a non-empty vector, not of shape {scores.shape}.")
        bad = int((~np.isfinite(scores)).sum())
        if bad:
            raise UserError(f"{bad} of {scores.size} scores of the {name} are NaN or infinite: check the attack.")
    return sides["members"], sides["non-members"]
