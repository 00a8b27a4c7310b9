"""LiRA, the likelihood ratio attack (Carlini et al., S&P 2022; paper Section IV-A), as functions of arrays.

There are n points, A >= 1 views (augmented queries) of each point, and M shadow models. The target must not be one of them.

target_phi: float64 [A, n], phi of the true label (`common.metrics.privacy.phi`) under the target.
shadow_phi: float64 [M, A, n], the same under every shadow model.
keep: bool [M, n], True where the model was trained on the point. Such a model is an IN model of the point, any other model an
OUT model. The name is that of the published code.
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

ENOUGH_FOR_EXAMPLE = 64  # IN and OUT models of a point that estimate its own spread better than the pooled one
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
    """LiRA scores float64 [n], higher = more likely a member. The arrays are described at the top of this module.

    For each view of each point, one Gaussian is fitted to phi of the IN models and one to phi of the OUT models. The centre is
    the median. The spread is the standard deviation, divided by the count. The score of a point is the mean over its views.

    online: if True, the score is the log density under IN minus the log density under OUT, in nats, and `tail` has no effect.
    If False (offline), only OUT models are used.

    tail: the offline score. "one-sided" (the paper's) ranks points by P(Z <= phi) for Z ~ OUT. It returns the normal quantile
    of this probability, (phi - centre) / sd, because the probability itself rounds to 1 beyond 8 sd. "reference" (the published
    code's) is minus the log density under OUT, which is large for an unusually low phi too.

    variance: "example" estimates a spread for each view of each point. "global" estimates one spread of IN and one of OUT over
    all points with two models or more, after subtracting the centre of each point. (The published code pools phi without
    centring, and uses the spread of IN for OUT as well.) Deviations from the centre of few models are too small. So where
    points have fewer IN than OUT models, the spread of IN is enlarged by the degrees of freedom. "auto" is "example" if every
    point has at least 64 models of each kind used, else "global".

    Raises UserError for other shapes or names, for NaN or infinite phi, and for points that lack IN or OUT models: each kind
    used needs one model of every point, "example" two, and "global" two of some point.
    """
    check_name("variance", variance, get_args(Variance))
    check_name("tail", tail, get_args(Tail))
    target, shadow, masks = checked_shadows(target_phi, shadow_phi, keep, online)
    fewest = min(int(mask.sum(axis=0).min()) for mask in masks.values())
    if variance == "auto":
        variance = "example" if fewest >= ENOUGH_FOR_EXAMPLE else "global"
    if variance == "example" and fewest < 2:
        raise UserError("variance 'example' needs 2 IN and 2 OUT models (offline: 2 OUT) for every point: use 'global'.")
    gaussians = {kind: _gaussian(shadow, mask, variance) for kind, mask in masks.items()}
    if online:
        centre, sd = gaussians["IN"]
        if variance == "global":
            sd = sd * np.sqrt(_freedom(masks["OUT"]) / _freedom(masks["IN"]))
        ratio = norm.logpdf(target, centre, sd) - norm.logpdf(target, *gaussians["OUT"])
        return np.asarray(ratio.mean(axis=0))
    if tail == "reference":
        return np.asarray(-norm.logpdf(target, *gaussians["OUT"]).mean(axis=0))
    centre, sd = gaussians["OUT"]
    return np.asarray(((target - centre) / sd).mean(axis=0))


def checked_shadows(
    target_phi: ArrayLike, shadow_phi: ArrayLike, keep: ArrayLike, online: bool
) -> tuple[Floats, Floats, dict[str, Bools]]:
    """Check the arrays of an attack with shadow models, which are described at the top of this module.

    Returns target phi [A, n] and shadow phi [M, A, n] in float64, and a mask bool [M, n] of the models of each point for each
    kind used: "OUT" and, if `online`, "IN". Raises UserError for other shapes, for a `keep` that is not bool, for NaN or
    infinite phi, and for points without any model of a kind used.
    """
    target, shadow, in_mask = np.asarray(target_phi, np.float64), np.asarray(shadow_phi, np.float64), np.asarray(keep)
    shapes = f"{target.shape}, {shadow.shape} and {in_mask.shape}"
    if target.ndim != 2 or target.size == 0 or shadow.ndim != 3 or len(shadow) == 0:
        raise UserError(f"target phi [A, n], shadow phi [M, A, n] and keep [M, n] are expected, not {shapes}.")
    if shadow.shape[1:] != target.shape or in_mask.shape != (len(shadow), target.shape[1]):
        raise UserError(f"target phi [A, n], shadow phi [M, A, n] and keep [M, n] do not fit together: they are {shapes}.")
    if in_mask.dtype != np.bool_:
        raise UserError(f"keep must be an array of bool (True = the model trained on the point), not of {in_mask.dtype}.")
    for name, values in {"target": target, "shadow models": shadow}.items():
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise UserError(f"{bad} of {values.size} phi of the {name} are NaN or infinite: check the outputs.")
    masks = {"OUT": ~in_mask, "IN": in_mask} if online else {"OUT": ~in_mask}
    for kind, mask in masks.items():
        without = int((~mask.any(axis=0)).sum())
        if without:
            remedy = "train more shadow models" + (", or attack offline" if kind == "IN" else "")
            raise UserError(f"{without} of {target.shape[1]} points have no {kind} model: {remedy}.")
    return target, shadow, masks


def _gaussian(shadow: Floats, mask: Bools, variance: str) -> tuple[Floats, Floats]:
    """Centre [A, n] and standard deviation ([A, n], or a scalar if `variance` is "global") of phi over the models in `mask`."""
    values = np.where(mask[:, None], shadow, np.nan)
    centre = np.nanmedian(values, axis=0)
    if variance == "example":
        return centre, np.nanstd(values, axis=0) + SMALLEST_SD
    if mask.sum(axis=0).max() < 2:
        raise UserError("a spread needs two IN and two OUT models (offline: two OUT) of some point: use 4 or more models.")
    several = mask.sum(axis=0) > 1  # a single model lies at the centre and says nothing about the spread
    return centre, np.asarray(np.nanstd(np.where(several, values - centre, np.nan))) + SMALLEST_SD


def _freedom(mask: Bools) -> float:
    """The degrees of freedom of the pooled spread for each model in it, 1/2..1: k models of a point have k - 1 around a centre.

    Multiplying both spreads of online LiRA by one factor keeps the order of its scores, because their log ratio is the same for
    all points. Only the quotient of IN and OUT matters. It is 1 where each point is in the training set of half of the models.
    """
    models = mask.sum(axis=0)
    several = models[models > 1]
    return float((several - 1).sum() / several.sum())
