"""RMIA, the robust membership inference attack (Zarifzadeh, Liu & Shokri, ICML 2024), as a function of arrays.

    r(x) = P(x | target) / P(x)         LR(x, z) = r(x) / r(z)         score(x) = share of z with LR(x, z) >= gamma

P(x | model) is the probability of the true class, a softmax at temperature 1. P(x) is its mean over shadow models. The points z
of the population are non-members of the target.

Probabilities are passed as phi = log(p / (1 - p)), which is precise even where p rounds to 1. Ratios are computed as
differences of logarithms, so that nothing is divided by a P(x) near 0. The arrays are those of `common.attacks.lira`.
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
    """RMIA scores float64 [n], 0..1 in steps of 1 / k, higher = more likely a member.

    `target_phi` [A, n], `shadow_phi` [M, A, n] and `keep` bool [M, n] are those of `lira`. `population_target_phi` [B, k] and
    `population_shadow_phi` [M, B, k] are the same for k population points z. A point x that is also in the population gains at
    most 1 / k from it. `population_keep` bool [M, k] is True where a model was trained on z; None = nowhere.

    online: if True, P(x) = (mean over the IN models of x + mean over its OUT models) / 2. If False (offline), P(x) =
    ((1 + a) P_out + 1 - a) / 2, where P_out is the mean over the OUT models of x and a is `offline_a`. The authors use a = .3
    for CIFAR-10 and .6 for CIFAR-100. P(z) is always computed by the offline formula.

    Of several views, the median of log r is used. For an odd number of views, this is the authors' majority vote of the views
    against each z.

    gamma: it changes ties, not the ranking, which is that of r(x). All points with r(x) >= gamma * max r(z) tie at the score 1.
    TPR at a low FPR therefore needs k well above 1 / FPR and a gamma above 1. The authors use 2 for images.

    Raises UserError as `lira` does, for a `gamma` that is not positive, and for an `offline_a` outside 0..1.
    """
    if not 0 < gamma < np.inf or not 0 <= offline_a <= 1:
        raise UserError(f"gamma must be positive and offline_a lie in 0..1, not {gamma} and {offline_a}.")
    target, shadow, masks = checked_shadows(target_phi, shadow_phi, keep, online)
    z_shadow = np.asarray(population_shadow_phi, np.float64)
    if z_shadow.ndim != 3 or len(z_shadow) != len(shadow):
        raise UserError(f"the population needs phi [M, B, k] of the same {len(shadow)} shadow models, not {z_shadow.shape}.")
    z_keep = np.zeros((len(shadow), z_shadow.shape[2]), dtype=bool) if population_keep is None else population_keep
    z_target, z_shadow, z_masks = checked_shadows(population_target_phi, z_shadow, z_keep, online=False)

    if online:
        log_p = np.logaddexp(*(_log_mean(shadow, mask) for mask in masks.values())) - np.log(2)
    else:
        log_p = _log_offline(shadow, masks["OUT"], offline_a)
    log_r = np.median(log_expit(target) - log_p, axis=0)
    log_r_z = np.median(log_expit(z_target) - _log_offline(z_shadow, z_masks["OUT"], offline_a), axis=0)
    return np.searchsorted(np.sort(log_r_z), log_r - np.log(gamma), side="right") / len(log_r_z)


def _log_mean(shadow: Floats, mask: Bools) -> Floats:
    """Log of the mean probability [A, n] over the models in `mask` (bool [M, n])."""
    log_p = np.where(mask[:, None], log_expit(shadow), -np.inf)
    return np.asarray(logsumexp(log_p, axis=0) - np.log(mask.sum(axis=0)))


def _log_offline(shadow: Floats, out_mask: Bools, a: float) -> Floats:
    """log P = log(((1 + a) P_out + 1 - a) / 2), [A, n]: the mean of P_out and of P_in, which is taken to be a P_out + 1 - a."""
    with np.errstate(divide="ignore"):  # of log 0, if a is 1
        return np.asarray(np.logaddexp(np.log((1 + a) / 2) + _log_mean(shadow, out_mask), np.log((1 - a) / 2)))
