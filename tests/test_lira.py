"""LiRA against closed forms, against the definition written as a loop, and against what its published code does wrong."""

from typing import Any

import numpy as np
import pytest
from conftest import halves
from scipy.stats import kendalltau, norm

from common.attacks.lira import Bools, lira
from common.errors import UserError
from common.metrics import privacy as metrics
from common.metrics.privacy import Floats

N = 100_000  # members, and as many non-members, of the closed forms
AUC_ONE_SD = 0.76025  # Phi(1 / sqrt 2): IN = N(1, 1), OUT = N(0, 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def half(models: int, points: int) -> Bools:
    """The first half of the models trained on every point."""
    return np.repeat(np.arange(models)[:, None] < models // 2, points, axis=1)


def exact_gaussians() -> tuple[Floats, Floats, Bools]:
    """Target phi N(1, 1) of N members, then N(0, 1) of N others; shadow phi of median and spread exactly those."""
    target = rng().normal(size=(1, 2 * N))
    target[:, :N] += 1
    shadow = np.broadcast_to(np.reshape([0.0, 2.0, -1.0, 1.0], (4, 1, 1)), (4, 1, 2 * N))
    return target, shadow, half(4, 2 * N)


def sampled(models: int = 12, views: int = 2, points: int = 60, seed: int = 0) -> tuple[Floats, Floats, Bools]:
    """Points of very different difficulty and spread, and of different numbers of IN and OUT models (2 at least)."""
    g = rng(seed)
    keep = g.random((models, points)) < 0.4
    keep[:4] = half(4, points)
    centre, spread = g.normal(0, 5, points), g.uniform(0.3, 3, points)
    shadow = centre + spread * (g.normal(size=(models, views, points)) + 2 * keep[:, None])
    return centre + spread * g.normal(size=(views, points)), shadow, keep


def by_definition(target: Floats, shadow: Floats, keep: Bools, score: str, variance: str) -> Floats:
    """Point by point and view by view, as the formulas read; the pooled spread as TensorFlow Privacy defines it."""
    views, points = target.shape

    def residuals(side: Bools) -> list[Floats]:
        return [v - np.median(v) for a in range(views) for i in range(points) for v in [shadow[side[:, i], a, i]]]

    sides = {"in": keep, "out": ~keep}
    pooled = {name: np.concatenate(residuals(side)).std() for name, side in sides.items()}
    freedom = {name: (side.sum() - points) / side.sum() for name, side in sides.items()}
    pooled["in"] *= np.sqrt(freedom["out"] / freedom["in"])
    scores = np.zeros(points)
    for i in range(points):
        for a in range(views):
            fit: dict[str, Any] = {}
            for name, side in (("in", keep), ("out", ~keep)):
                values = shadow[side[:, i], a, i]
                fit[name] = norm(np.median(values), values.std() if variance == "example" else pooled[name])
            phi = target[a, i]
            scores[i] += {
                "online": fit["in"].logpdf(phi) - fit["out"].logpdf(phi),
                "one-sided": norm.ppf(fit["out"].cdf(phi)),
                "reference": -fit["out"].logpdf(phi),
            }[score] / views
    return scores


# closed forms


@pytest.mark.parametrize("variance", ["example", "global"])
def test_unit_gaussians_give_the_analytic_ratio_auc_and_tpr(variance: Any) -> None:
    """log N(x; 1, 1) - log N(x; 0, 1) = x - 1/2. Bounds: 4 standard errors of an AUC and of a TPR at a sampled threshold."""
    target, shadow, keep = exact_gaussians()
    scores = lira(target, shadow, keep, online=True, variance=variance)
    np.testing.assert_allclose(scores, target[0] - 0.5, atol=1e-12)
    assert metrics.auc(scores[:N], scores[N:]) == pytest.approx(AUC_ONE_SD, abs=4 * np.sqrt(0.125 / N))
    f = 0.001
    tpr, slope = norm.sf(norm.isf(f) - 1), np.exp(norm.isf(f) - 0.5)
    assert tpr == pytest.approx(0.01830, abs=5e-6)
    bound = 4 * np.sqrt(tpr / N + slope**2 * f / N)
    assert metrics.tpr_at_fpr(scores[:N], scores[N:], f).rate == pytest.approx(tpr, abs=bound)
    assert bound < tpr / 2


@pytest.mark.parametrize(("tail", "expected"), [("one-sided", 0.76025), ("reference", 0.63546)])
def test_the_offline_tails(tail: Any, expected: float) -> None:
    """One-sided: q = Phi(1/sqrt 2). Two-sided, the chance that |IN| > |OUT|: q^2 + (1 - q)^2."""
    scores = lira(*exact_gaussians(), online=False, tail=tail)
    assert metrics.auc(scores[:N], scores[N:]) == pytest.approx(expected, abs=4 * np.sqrt(0.125 / N))


def test_sampled_shadow_models_come_close_to_the_analytic_auc() -> None:
    """128 models whose Gaussians must be estimated, and points of different difficulty, on which a global attack fails."""
    models, points = 128, 8_000
    keep, g = halves(models, points, 3), rng(1)
    member, centre = g.random(points) < 0.5, g.normal(0, 5, points)
    shadow = (centre + keep + g.normal(size=(models, points)))[:, None]
    target = (centre + member + g.normal(size=points))[None]
    for variance in ("example", "global"):
        scores = lira(target, shadow, keep, online=True, variance=variance)
        assert metrics.auc(scores[member], scores[~member]) == pytest.approx(AUC_ONE_SD, abs=0.02)
    assert metrics.auc(target[0][member], target[0][~member]) < 0.6


@pytest.mark.parametrize("variance", ["example", "global"])
def test_equal_gaussians_say_nothing(variance: Any) -> None:
    one_side = rng().normal(size=(5, 2, 30))
    scores = lira(
        rng(1).normal(size=(2, 30)), np.concatenate([one_side, one_side]), half(10, 30), online=True, variance=variance
    )
    np.testing.assert_array_equal(scores, 0)


@pytest.mark.parametrize("variance", ["example", "global"])
@pytest.mark.parametrize("score", ["online", "one-sided", "reference"])
def test_it_is_the_definition(score: str, variance: Any) -> None:
    arrays = sampled()
    tail: Any = "one-sided" if score == "online" else score
    scores = lira(*arrays, online=score == "online", variance=variance, tail=tail)
    np.testing.assert_allclose(scores, by_definition(*arrays, score, variance), rtol=1e-9, atol=1e-9)


# choices that change the headline


def few_in_models(share: float) -> tuple[Floats, Floats, Bools, Bools]:
    """Target phi N(2, 1) of members and N(0, 1) of others, relative to the point; so are those of 16 shadow models.

    Each is trained on a `share` of 8,000 points, and on one point more where it had no IN model. With membership, bool [n].
    """
    g = rng(2)
    keep = g.random((16, 8_000)) < share
    keep[0, ~keep.any(axis=0)] = True
    member, centre = g.random(8_000) < 0.5, g.normal(0, 5, 8_000)
    shadow = (centre + 2 * keep + g.normal(size=keep.shape))[:, None]
    return (centre + 2 * member + g.normal(size=8_000))[None], shadow, keep, member


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_few_in_models_do_not_shrink_their_spread(share: float) -> None:
    """As good as with the true spread, 1. With residuals of single models, and divided by the count, .77 for .88 at 3%."""
    target, shadow, keep, member = few_in_models(share)
    scores = lira(target, shadow, keep, online=True, variance="global")
    inside, outside = (np.nanmedian(np.where(side, shadow[:, 0], np.nan), axis=0) for side in (keep, ~keep))
    with_truth = norm.logpdf(target[0], inside, 1) - norm.logpdf(target[0], outside, 1)
    assert metrics.auc(scores[member], scores[~member]) == pytest.approx(
        metrics.auc(with_truth[member], with_truth[~member]), abs=0.01
    )


def divided_by_counts(target: Floats, shadow: Floats, keep: Bools) -> Floats:
    """Online LiRA with both pooled spreads divided by the number of models, which degrees of freedom do not enter."""
    values = [np.where(side[:, None], shadow, np.nan) for side in (keep, ~keep)]
    centres = [np.nanmedian(side, axis=0) for side in values]
    inside, outside = (norm(c, np.nanstd(side - c)) for side, c in zip(values, centres, strict=True))
    return np.asarray((inside.logpdf(target) - outside.logpdf(target)).mean(axis=0))


def test_degrees_of_freedom_change_no_score_of_the_balanced_design() -> None:
    """To the last bit with as many IN as OUT models; with 7 or 8 IN of 15, not even the order of one in a hundred pairs."""
    g, member = rng(5), np.arange(400) < 200
    shadow, target = g.normal(size=(16, 1, 400)), g.normal(size=(1, 400)) + member
    keep = halves(16, 400, 0)
    shadow += keep[:, None]
    scores = lira(target, shadow, keep, online=True, variance="global")
    np.testing.assert_array_equal(scores, divided_by_counts(target, shadow, keep))
    scores = lira(target, shadow[:15], keep[:15], online=True, variance="global")
    tau = kendalltau(scores, divided_by_counts(target, shadow[:15], keep[:15])).statistic
    assert tau > 0.98


def test_the_global_spread_leaves_out_the_differences_between_points() -> None:
    """The published code takes np.std of all raw IN phi, here about 50, for IN and for OUT; it is 2 and 1."""
    centre = np.array([-100.0, 0.0, 20.0])
    shadow = centre + np.reshape([1.0, 5.0, -1.0, 1.0], (4, 1, 1))
    target = centre[None] + [[3.0, 0.0, 1.5]]
    scores = lira(target, shadow, half(4, 3), online=True, variance="global")
    expected = norm.logpdf([3.0, 0.0, 1.5], 3, 2) - norm.logpdf([3.0, 0.0, 1.5], 0, 1)
    np.testing.assert_allclose(scores, expected, atol=1e-12)


def test_centres_are_medians() -> None:
    """One shadow model that failed moves the mean by 200 and the median by nothing."""
    shadow = np.reshape([0.0, 0.0, 0.0, 0.0, 1000.0], (5, 1, 1))
    assert lira([[0.0]], shadow, np.zeros((5, 1), bool), online=False) == 0


@pytest.mark.parametrize(("models", "variance"), [(126, "global"), (128, "example")])
def test_auto_trusts_a_points_own_spread_from_64_models_a_side(models: int, variance: Any) -> None:
    keep, g = halves(models, 8, 0), rng()
    target, shadow = g.normal(size=(1, 8)), g.normal(size=(models, 1, 8)) * g.uniform(1, 9, 8)
    for online in (True, False):
        fitted = {v: lira(target, shadow, keep, online=online, variance=v) for v in ("example", "global", "auto")}
        np.testing.assert_array_equal(fitted["auto"], fitted[variance])
        assert (fitted["example"] != fitted["global"]).all()


@pytest.mark.parametrize("online", [True, False])
def test_auto_asks_for_64_models_of_every_point(online: bool) -> None:
    """One point with 2 models of a side and 128 of the other is enough for the pooled spread of all."""
    keep, g = halves(130, 8, 0), rng()
    keep[:, 3] = np.arange(130) >= 2
    target, shadow = g.normal(size=(1, 8)), g.normal(size=(130, 1, 8)) * g.uniform(1, 9, 8)
    fitted = {v: lira(target, shadow, keep, online=online, variance=v) for v in ("auto", "global")}
    np.testing.assert_array_equal(fitted["auto"], fitted["global"])


def test_the_one_sided_score_ranks_where_the_probability_is_one() -> None:
    shadow = np.reshape([-1.0, 1.0], (2, 1, 1)) + np.zeros(4)
    scores = lira([[-50.0, 9.0, 50.0, 60.0]], shadow, np.zeros((2, 4), bool), online=False)
    assert (np.diff(scores) > 0).all()
    assert norm.cdf(50) == norm.cdf(60) == 1


def test_float32_phi_are_computed_in_float64() -> None:
    target, shadow, keep = sampled()
    narrow = target.astype("f"), shadow.astype("f")
    wide = narrow[0].astype(float), narrow[1].astype(float)
    for online in (True, False):
        scores = lira(*narrow, keep, online=online)
        assert scores.dtype == np.float64
        np.testing.assert_array_equal(scores, lira(*wide, keep, online=online))


@pytest.mark.parametrize("variance", ["example", "global"])
def test_shadow_models_that_agree_to_the_last_bit_give_large_finite_scores(variance: Any) -> None:
    """The spread is then 1e-30: a target above its OUT models is 1e30 deviations above, one below as many below."""
    scores = lira([[1.0, -1.0]], np.zeros((2, 1, 2)), np.zeros((2, 2), bool), online=False, variance=variance)
    assert scores == pytest.approx([1e30, -1e30])


def test_the_score_of_views_is_the_mean_of_their_scores() -> None:
    target, shadow, keep = sampled(views=2)
    single = [lira(target[[a]], shadow[:, [a]], keep, online=True, variance="example") for a in (0, 1)]
    np.testing.assert_allclose(lira(target, shadow, keep, online=True, variance="example"), np.mean(single, axis=0))


def test_a_constant_on_all_logits_and_a_scale_of_phi_change_nothing() -> None:
    g = rng(4)
    logits, labels, keep = g.normal(size=(9, 1, 40, 5)) * 4, g.integers(0, 5, 40), halves(8, 40, 0)
    phi, moved = metrics.phi(logits, labels), metrics.phi(logits + g.normal(size=(9, 1, 40, 1)) * 50, labels)
    before = lira(phi[0], phi[1:], keep, online=True, variance="example")
    np.testing.assert_allclose(lira(moved[0], moved[1:], keep, online=True, variance="example"), before, rtol=1e-8)
    scaled = 3 * phi + np.arange(40)
    np.testing.assert_allclose(lira(scaled[0], scaled[1:], keep, online=True, variance="example"), before, rtol=1e-8)


# refusals

T, S, K = sampled(models=6, views=2, points=5)
NAN = np.where(np.arange(5) == 3, np.nan, 0.0)


@pytest.mark.parametrize(
    ("target", "shadow", "keep", "options", "message"),
    [
        (T[0], S, K, {}, "are expected"),
        (T, S[:, 0], K, {}, "are expected"),
        (T[:, :0], S[:, :, :0], K[:, :0], {}, "are expected"),
        (T, S[:, :, :4], K, {}, "do not fit"),
        (T, S, K.T, {}, "do not fit"),
        (T, S, K.astype(int), {}, "bool"),
        (T + NAN, S, K, {}, "2 of 10 phi of the target"),
        (T, S + np.inf, K, {}, "60 of 60 phi of the shadow models"),
        (T, S, np.ones_like(K), {}, "5 of 5 points have no OUT model"),
        (T, S, K & (np.arange(5) > 0), {}, "1 of 5 points have no IN model.*offline"),
        (T[:, :1], S[:2, :, :1], half(2, 1), {}, "use 4 or more models"),
        (T, S[:2], half(2, 5), {}, "use 4 or more models"),
        (T[:, :1], S[:3, :, :1], half(3, 1), {"variance": "example"}, "use 'global'"),
        (T, S, K, {"variance": "globl"}, "Did you mean 'global'"),
        (T, S, K, {"tail": "two-sided"}, "Did you mean 'one-sided'"),
    ],
)
def test_bad_input_is_refused(target: Floats, shadow: Floats, keep: Bools, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lira(target, shadow, keep, online=True, **options)


def test_offline_needs_no_in_models() -> None:
    assert np.isfinite(lira(T, S, np.zeros_like(K), online=False)).all()
