"""How far to trust a measured number: 95% intervals of AUC and of rates, mean and standard deviation over seeds.

An interval covers the draw of the scored points alone: another model, trained from another seed, may lie outside it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm, rankdata

from common.errors import UserError

Floats = NDArray[np.float64]
LEVEL = 0.95


def delong_interval(member: ArrayLike, non_member: ArrayLike, level: float = LEVEL) -> list[float]:
    """The interval [low, high] of an AUC at a confidence `level` after DeLong, DeLong and Clarke-Pearson (1988), in 0..1.

    `member` [n] and `non_member` [m] scores. A point's placement value is the share of the other side that it ranks
    above, ties counted half; the variance of the AUC is the sum over both sides of the values' sample variance divided by
    their number. Ranks give all values in O((n + m) log(n + m)) (Sun and Xu, 2014). Where one side has a single point
    nothing is known of its variance: [0, 1]. Perfect separation has the variance 0, yet is no certainty: it gives the exact
    interval of min(n, m) disjoint pairs of a member and a non-member, all in order (Clopper-Pearson); just below it, on few
    points, DeLong's is too sure. Constant scores give [0.5, 0.5], their AUC on any points. Raises UserError for empty, NaN or
    infinite scores.
    """
    members, others = checked_scores(member, non_member)
    n, m = len(members), len(others)
    if min(n, m) < 2:
        return [0.0, 1.0]
    ranks = rankdata(np.concatenate([members, others]))
    of_members = (ranks[:n] - rankdata(members)) / m
    of_others = 1 - (ranks[n:] - rankdata(others)) / n
    auc, tail = float(of_members.mean()), (1 - level) / 2
    if auc in (0, 1):
        bound = tail ** (1 / min(n, m))
        return [bound, 1.0] if auc else [0.0, 1 - bound]
    half = norm.isf(tail) * np.sqrt(of_members.var(ddof=1) / n + of_others.var(ddof=1) / m)
    return [float(np.clip(auc + side, 0, 1)) for side in (-half, half)]


def clopper_pearson(hits: int, trials: int) -> list[float]:
    """The exact 95% interval [low, high] of a probability of which `hits` of `trials` independent draws came true.

    From the Beta quantiles; 0 hits give [0, 1 - .025^(1/trials)]. Raises UserError unless 0 <= hits <= trials >= 1.
    """
    if not (0 <= hits <= trials and trials >= 1):
        raise UserError(f"a rate needs 0 <= hits <= trials and at least 1 trial, not {hits} of {trials}.")
    tail = (1 - LEVEL) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return [low, high]


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1 in the denominator) of one number measured from several seeds.

    Raises UserError for fewer than two values.
    """
    if len(values) < 2:
        raise UserError(f"a standard deviation over seeds needs at least 2 of them, not {len(values)}.")
    return float(np.mean(values)), float(np.std(values, ddof=1))


def checked_scores(member: ArrayLike, non_member: ArrayLike) -> tuple[Floats, Floats]:
    """Both sides' scores as float64 vectors; UserError names the side that is empty, NaN, infinite or no vector."""
    sides = {"members": np.asarray(member, np.float64), "non-members": np.asarray(non_member, np.float64)}
    for name, scores in sides.items():
        if scores.ndim != 1 or scores.size == 0:
            raise UserError(f"the scores of the {name} must be a non-empty vector, not of shape {scores.shape}.")
        bad = int((~np.isfinite(scores)).sum())
        if bad:
            raise UserError(f"{bad} of {scores.size} scores of the {name} are NaN or infinite: check the attack.")
    return sides["members"], sides["non-members"]
