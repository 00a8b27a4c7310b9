"""RMIA, the robust membership inference attack (Zarifzadeh, Liu & Shokri, ICML 2024), as a function of arrays.

    r(x) = P(x | target) / P(x)         LR(x, z) = r(x) / r(z)         score(x) = share of z with LR(x, z) >= gamma

P(x | model) is the probability of the true class, a softmax at temperature 1, and enters as phi = log(p / (1 - p)): a p
that rounds to 1 loses nothing, and everything is computed in logarithms, so that no P(x) near 0 is divided by. Arrays
and their names are those of `common.attacks.lira`; a population point z is a non-member of the target.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_expit, logsumexp

from common.attacks.lira import Bools, checked_shadows
from common.errors import UserError
from common.metrics.privacy import Floats


def rmia(
    target_phi: ArrayLike,
    shadow_phi: ArrayLike,
    keep: ArrayLike,
    population_target_phi: ArrayLike,
    population_shadow_phi: ArrayLike,
    *,
    online: bool,
    gamma: float = 2.0,
    offline_a: float = 0.3,
    population_keep: ArrayLike | None = None,
) -> Floats:
    """Scores float64 [n], 0..1 in steps of 1/k, higher = more likely a member.

    `target_phi` [A, n], `shadow_phi` [M, A, n] and `keep` bool [M, n] as in `lira`; `population_target_phi` [B, k] and
    `population_shadow_phi` [M, B, k] are the same of k population points z; a point that is its own z gains
    at most 1 / k from it.
    online: P(x) = (mean over x's IN models + mean over its OUT models) / 2. offline: P(x) = ((1 + a) P_out + 1 - a) / 2
    with P_out the mean over its OUT models and a = `offline_a`; the authors take .3 for CIFAR-10 and .6 for CIFAR-100. In
    both modes P(z) is the offline formula; z is OUT for all models but those that `population_keep` bool [M, k] names.
    Of several views the median log r counts: for an odd number that is the authors' majority vote of the views against
    each z. `gamma` moves the ties, not the ranking, which is that of r(x): points tie at 1 from gamma times the largest r(z)
    on. TPR at a low FPR therefore asks for k well above 1 / FPR and a gamma above 1 (2 is the authors' for images).
    Raises UserError as `lira` does, for a `gamma` not positive and for an `offline_a` outside 0..1.
    """
    if not 0 < gamma < np.inf or not 0 <= offline_a <= 1:
        raise UserError(f"gamma must be positive and offline_a lie in 0..1, not {gamma} and {offline_a}.")
    target, shadow, sides = checked_shadows(target_phi, shadow_phi, keep, online)
    z_shadow = np.asarray(population_shadow_phi, np.float64)
    if z_shadow.ndim != 3 or len(z_shadow) != len(shadow):
        raise UserError(f"the population needs phi [M, B, k] of the same {len(shadow)} shadow models, not {z_shadow.shape}.")
    z_keep = np.zeros((len(shadow), z_shadow.shape[2]), dtype=bool) if population_keep is None else population_keep
    z_target, z_shadow, z_sides = checked_shadows(population_target_phi, z_shadow, z_keep, online=False)

    if online:
        log_p = np.logaddexp(*(_log_mean(shadow, side) for side in sides.values())) - np.log(2)
    else:
        log_p = _log_offline(shadow, sides["OUT"], offline_a)
    log_r = np.median(log_expit(target) - log_p, axis=0)
    log_r_z = np.median(log_expit(z_target) - _log_offline(z_shadow, z_sides["OUT"], offline_a), axis=0)
    return np.searchsorted(np.sort(log_r_z), log_r - np.log(gamma), side="right") / len(log_r_z)


def _log_mean(shadow: Floats, side: Bools) -> Floats:
    """Log of the mean probability over the models of `side` (bool [M, n]) and over no others: [A, n]."""
    log_p = np.where(side[:, None], log_expit(shadow), -np.inf)
    return np.asarray(logsumexp(log_p, axis=0) - np.log(side.sum(axis=0)))


def _log_offline(shadow: Floats, out: Bools, a: float) -> Floats:
    """log P = log(((1 + a) P_out + 1 - a) / 2), [A, n], from P_in being about a P_out + 1 - a."""
    with np.errstate(divide="ignore"):  # a = 1 leaves P_out alone: log 0
        return np.asarray(np.logaddexp(np.log((1 + a) / 2) + _log_mean(shadow, out), np.log((1 - a) / 2)))
