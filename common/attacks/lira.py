"""LiRA, the likelihood ratio attack (Carlini et al., S&P 2022; paper Section IV-A), as functions of arrays.

M shadow models, n points, A >= 1 views (augmented queries) of each point. `target_phi` float64 [A, n] and `shadow_phi`
float64 [M, A, n] hold phi of the true label (`common.metrics.privacy.phi`) under the target and under every shadow model.
`keep` bool [M, n] says which shadow model trained on which point. The target is never among its own shadow models.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from common.errors import UserError, check_name
from common.metrics.privacy import Floats

Bools = NDArray[np.bool_]
Variance = Literal["example", "global", "auto"]
Tail = Literal["one-sided", "reference"]

ENOUGH_FOR_EXAMPLE = 64  # IN and OUT models of a point from which its own spread is a better estimate than the pooled one
SMALLEST_SD = 1e-30  # added to every standard deviation, as in the published code


def lira(
    target_phi: ArrayLike,
    shadow_phi: ArrayLike,
    keep: ArrayLike,
    *,
    online: bool,
    variance: Variance = "auto",
    tail: Tail = "one-sided",
) -> Floats:
    """Scores float64 [n], higher = more likely a member; arrays as in the module's docstring.

    A Gaussian is fitted to each view of each point: centre = median, spread = standard deviation (divided by the count).
    online: log density under the IN models minus that under the OUT models, in nats. offline, OUT models only:
    "one-sided" (the paper's) ranks as P(Z <= phi), Z ~ OUT; its normal quantile (phi - centre) / sd is returned, since
    the probability itself rounds to 1 beyond 8 sd; "reference" (the published code's) is minus the log density under OUT,
    which also accuses points of an unusually low phi. Online, `tail` has no effect. Scores of views are averaged.

    `variance`: "example" has a spread for each view of each point and needs two models there; "global" has one for IN and
    one for OUT, over all points after centring each (the published code pools raw phi and takes IN's for OUT); "auto" is
    "example" where every point has at least 64 models on each side used, else "global".
    Raises UserError for other shapes or names, NaN or infinite phi, and points without the models they need.
    """
    check_name("variance", variance, get_args(Variance))
    check_name("tail", tail, get_args(Tail))
    target, shadow, sides = checked_shadows(target_phi, shadow_phi, keep, online)
    fewest = min(int(side.sum(axis=0).min()) for side in sides.values())
    if variance == "auto":
        variance = "example" if fewest >= ENOUGH_FOR_EXAMPLE else "global"
    if variance == "example" and fewest < 2:
        raise UserError("variance 'example' needs 2 IN and 2 OUT models (offline: 2 OUT) for every point: use 'global'.")
    gaussians = {name: _gaussian(shadow, side, variance) for name, side in sides.items()}
    if online:
        ratio = norm.logpdf(target, *gaussians["IN"]) - norm.logpdf(target, *gaussians["OUT"])
        return np.asarray(ratio.mean(axis=0))
    if tail == "reference":
        return np.asarray(-norm.logpdf(target, *gaussians["OUT"]).mean(axis=0))
    centre, sd = gaussians["OUT"]
    return np.asarray(((target - centre) / sd).mean(axis=0))


def checked_shadows(
    target_phi: ArrayLike, shadow_phi: ArrayLike, keep: ArrayLike, online: bool
) -> tuple[Floats, Floats, dict[str, Bools]]:
    """Target [A, n] and shadow phi [M, A, n] in float64, and bool [M, n] of each side used: OUT and, online, IN.

    Raises UserError for other shapes, a `keep` that is not bool, NaN or infinite phi, and points that no model of a side has.
    """
    target, shadow, kept = np.asarray(target_phi, np.float64), np.asarray(shadow_phi, np.float64), np.asarray(keep)
    shapes = f"{target.shape}, {shadow.shape} and {kept.shape}"
    if target.ndim != 2 or target.size == 0 or shadow.ndim != 3 or len(shadow) == 0:
        raise UserError(f"target phi [A, n], shadow phi [M, A, n] and keep [M, n] are expected, not {shapes}.")
    if shadow.shape[1:] != target.shape or kept.shape != (len(shadow), target.shape[1]):
        raise UserError(f"target phi [A, n], shadow phi [M, A, n] and keep [M, n] do not fit together: they are {shapes}.")
    if kept.dtype != np.bool_:
        raise UserError(f"keep must be an array of bool (True = the model trained on the point), not of {kept.dtype}.")
    for name, values in {"target": target, "shadow models": shadow}.items():
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise UserError(f"{bad} of {values.size} phi of the {name} are NaN or infinite: check the outputs.")
    sides = {"OUT": ~kept, "IN": kept} if online else {"OUT": ~kept}
    for name, side in sides.items():
        without = int((~side.any(axis=0)).sum())
        if without:
            remedy = "train more shadow models" + (", or attack offline" if name == "IN" else "")
            raise UserError(f"{without} of {target.shape[1]} points have no {name} model: {remedy}.")
    return target, shadow, sides


def _gaussian(shadow: Floats, side: Bools, variance: str) -> tuple[Floats, Floats]:
    """Centre [A, n] and standard deviation, [A, n] or one for all, of phi over the models of `side`."""
    values = np.where(side[:, None], shadow, np.nan)
    centre = np.nanmedian(values, axis=0)
    if variance == "example":
        return centre, np.nanstd(values, axis=0) + SMALLEST_SD
    if side.sum(axis=0).max() < 2:
        raise UserError("a spread needs two IN and two OUT models (offline: two OUT) of some point: use 4 or more models.")
    return centre, np.nanstd(values - centre) + SMALLEST_SD
