"""RMIA against numbers worked out by hand and against all n x k likelihood ratios, one by one, in plain probabilities."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from common.attacks.lira import Bools
from common.attacks.rmia import rmia
from common.errors import UserError
from common.metrics import privacy as metrics
from common.metrics.privacy import Floats

Arrays = tuple[Floats, Floats, Bools, Floats, Floats]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sampled(models: int = 7, views: int = 1, points: int = 80, population: int = 50, seed: int = 0) -> Arrays:
    """Points with different numbers of IN and OUT models, 1 at least, half of them members of the target."""
    g = rng(seed)
    keep = g.random((models, points)) < 0.6
    keep[:2] = [[True], [False]]
    centre, z_centre = g.normal(1, 2, points), g.normal(1, 2, population)
    target = centre + g.normal(size=(views, points)) + 3 * (np.arange(points) < points // 2)
    shadow = centre + g.normal(size=(models, views, points)) + 3 * keep[:, None]
    return target, shadow, keep, z_centre + g.normal(size=(1, population)), z_centre + g.normal(size=(models, 1, population))


def single(p: list[float], p_shadow: list[float]) -> tuple[Floats, Floats]:
    """phi [1, n] of the target and [1, 1, n] of one shadow model, from their probabilities."""
    return logit([p]), logit([[p_shadow]])


def brute_force(arrays: Arrays, online: bool, gamma: float, a: float, z_keep: Bools | None = None) -> Floats:
    """Every pair (x, z), each mean over the models that qualify, a strict majority of an odd number of views."""
    target, shadow, keep, z_target, z_shadow = (arrays[2] if x is arrays[2] else expit(x) for x in arrays)
    scores = []
    for i in range(target.shape[1]):
        votes = np.zeros(z_target.shape[1])
        for view in range(len(target)):
            out = shadow[~keep[:, i], view, i].mean()
            p = (shadow[keep[:, i], view, i].mean() + out) / 2 if online else ((1 + a) * out + 1 - a) / 2
            for j in range(len(votes)):
                z_out = slice(None) if z_keep is None else ~z_keep[:, j]
                p_z = ((1 + a) * z_shadow[z_out, 0, j].mean() + 1 - a) / 2
                votes[j] += (target[view, i] / p) / (z_target[0, j] / p_z) >= gamma
        scores.append((votes > len(target) / 2).mean())
    return np.array(scores)


# by hand


def test_three_points_against_three_z() -> None:
    """r(x) = 1.8, 1, .2 and r(z) = 1, .8, 1.2; LR = gamma counts, so that a gamma just above 1 takes one z from the middle."""
    x, z = single([0.9, 0.5, 0.1], [0.5] * 3), single([0.5, 0.4, 0.6], [0.5] * 3)
    never = np.zeros((1, 3), dtype=bool)
    for gamma, expected in ((1.0, [1, 2 / 3, 0]), (1 + 1e-9, [1, 1 / 3, 0]), (2.0, [1 / 3, 0, 0])):
        np.testing.assert_array_equal(rmia(*x, never, *z, online=False, gamma=gamma, offline_a=1.0), expected)


@pytest.mark.parametrize(("a", "score"), [(1.0, 1), (0.4, 1), (0.3, 0), (0.0, 0)])
def test_a_interpolates_between_p_out_and_half_of_one_plus_p_out(a: float, score: float) -> None:
    """r(x) = .6 / P with P_out = .5: 1.2 at a = 1, .923 at .4, .889 at .3 and .8 at 0, against r(z) = .9 / 1 throughout."""
    z = np.array([[logit(0.9)]]), np.array([[[50.0]]])
    scores = rmia(*single([0.6], [0.5]), np.array([[False]]), *z, online=False, gamma=1.0, offline_a=a)
    np.testing.assert_array_equal(scores, [score])


def test_online_takes_in_and_out_models_with_equal_weight() -> None:
    """P(x) = (.9 + (.1 + .2 + .3) / 3) / 2 = .55, not the mean .375 of the four: r = 1 exactly at p = .55."""
    shadow = logit(np.reshape([0.9, 0.1, 0.2, 0.3], (4, 1, 1))) + np.zeros(2)
    keep = np.repeat([[True], [False], [False], [False]], 2, axis=1)
    z = logit([[0.5]]), np.zeros((4, 1, 1))
    scores = rmia(logit([[0.5501, 0.5499]]), shadow, keep, *z, online=True, gamma=1.0, offline_a=1.0)
    np.testing.assert_array_equal(scores, [1, 0])


# against brute force


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize(("gamma", "a"), [(2.0, 0.3), (1.0, 0.0), (1.3, 1.0)])
def test_sorting_gives_what_all_pairs_give(online: bool, gamma: float, a: float) -> None:
    arrays = sampled()
    scores = rmia(*arrays, online=online, gamma=gamma, offline_a=a)
    np.testing.assert_array_equal(scores, brute_force(arrays, online, gamma, a))
    assert len(np.unique(scores)) > 10


@pytest.mark.parametrize("online", [True, False])
def test_views_vote(online: bool) -> None:
    arrays = sampled(views=3)
    scores = rmia(*arrays, online=online)
    np.testing.assert_array_equal(scores, brute_force(arrays, online, 2.0, 0.3))
    assert (scores != rmia(arrays[0][:1], arrays[1][:, :1], *arrays[2:], online=online)).any()


def test_the_median_view_counts() -> None:
    """r of x is .2, 1.2 and 1.4: the median exceeds r(z) = 1, the mean .93 does not. r of z likewise, from the other side."""
    never, even = np.zeros((1, 1), dtype=bool), np.zeros((1, 1, 1))
    views = logit([[0.1], [0.6], [0.7]]), np.zeros((1, 3, 1))
    single_view = logit([[0.5]]), even
    assert rmia(*views, never, *single_view, online=False, gamma=1.0, offline_a=1.0) == 1
    assert rmia(*single_view, never, *views, online=False, gamma=1.0, offline_a=1.0) == 0


@pytest.mark.parametrize("online", [True, False])
def test_models_that_trained_on_z_are_left_out(online: bool) -> None:
    arrays, z_keep = sampled(), rng(9).random((7, 50)) < 0.5
    z_keep[0] = False
    scores = rmia(*arrays, online=online, population_keep=z_keep)
    np.testing.assert_array_equal(scores, brute_force(arrays, online, 2.0, 0.3, z_keep))
    assert (scores != rmia(*arrays, online=online)).any()


# properties


def test_members_score_higher() -> None:
    arrays = sampled(points=2000, population=1000)
    for online in (True, False):
        scores = rmia(*arrays, online=online)
        assert metrics.auc(scores[:1000], scores[1000:]) > 0.7


@pytest.mark.parametrize("online", [True, False])
def test_a_constant_factor_on_every_probability_cancels(online: bool) -> None:
    target, shadow, keep, z_target, z_shadow = sampled()
    scaled = [logit(0.37 * expit(x)) for x in (target, shadow, z_target, z_shadow)]
    scores = rmia(scaled[0], scaled[1], keep, scaled[2], scaled[3], online=online, offline_a=1.0)
    np.testing.assert_array_equal(scores, rmia(target, shadow, keep, z_target, z_shadow, online=online, offline_a=1.0))


def test_it_grows_with_the_targets_probability() -> None:
    _, shadow, _, z_target, z_shadow = sampled()
    same = np.repeat(shadow[:, :, :1], 41, axis=2)
    target = np.linspace(-8, 8, 41)[None]
    scores = rmia(target, same, np.zeros((len(shadow), 41), bool), z_target, z_shadow, online=False, gamma=1.0)
    assert (np.diff(scores) >= 0).all()
    assert scores[0] < 0.1 < 0.7 < scores[-1]


def test_a_target_that_is_its_own_reference_gives_half() -> None:
    g, never = rng(1), np.zeros((1, 300), dtype=bool)
    x, z = g.normal(size=(1, 300)), g.normal(size=(1, 90))
    scores = rmia(x, x[None], never, z, z[None], online=False, offline_a=1.0)
    assert metrics.auc(scores[:150], scores[150:]) == 0.5


def test_without_membership_scores_are_uniform() -> None:
    """x, z and the models exchangeable, gamma 1: the score is the rank of r(x) among the r(z); bounds of 4 standard errors."""
    n, k, g = 4000, 4000, rng(2)
    phi = g.normal(0, 2, n + k) + g.normal(size=(5, n + k))
    x, z = phi[:, None, :n], phi[:, None, n:]
    scores = rmia(x[0], x[1:], np.zeros((4, n), bool), z[0], z[1:], online=False, gamma=1.0)
    assert abs(metrics.auc(scores[: n // 2], scores[n // 2 :]) - 0.5) < 4 / np.sqrt(3 * n)
    deciles = np.arange(0.1, 1, 0.1)
    assert abs(np.quantile(scores, deciles) - deciles).max() < 4 * np.sqrt(0.25 / n + 0.25 / k)


def test_probabilities_that_round_to_0_or_1_give_numbers() -> None:
    """P_out = exp(-800) is 0 in float64: a division by it would be inf / inf."""
    target, shadow = np.array([[900.0, -900.0, -700.0]]), np.full((2, 1, 3), -800.0)
    z = np.array([[-800.0, 30.0]]), np.array([[[-800.0, 30.0]]] * 2)
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        scores = rmia(target, shadow, np.zeros((2, 3), bool), *z, online=False, offline_a=1.0)
    np.testing.assert_array_equal(scores, [1, 0, 1])


# refusals

T, S, K, ZT, ZS = sampled(models=6, points=5, population=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0.0}, "gamma must be positive"),
        ({"gamma": np.nan}, "gamma must be positive"),
        ({"offline_a": 1.1}, "offline_a lie in 0..1"),
        ({"offline_a": np.nan}, "offline_a lie in 0..1"),
        ({"target_phi": T[0]}, "are expected"),
        ({"target_phi": T * np.nan}, "5 of 5 phi of the target"),
        ({"keep": K[:, :4]}, "do not fit"),
        ({"keep": np.ones_like(K)}, "5 of 5 points have no OUT model"),
        ({"keep": np.zeros_like(K)}, "5 of 5 points have no IN model"),
        ({"population_shadow_phi": ZS[:5]}, "the same 6 shadow models"),
        ({"population_shadow_phi": ZS[:, 0]}, "the same 6 shadow models"),
        ({"population_target_phi": ZT[:, :3]}, "do not fit"),
        ({"population_target_phi": ZT + np.inf}, "NaN or infinite"),
        ({"population_keep": np.ones((6, 4), bool)}, "4 of 4 points have no OUT model"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    names = ("target_phi", "shadow_phi", "keep", "population_target_phi", "population_shadow_phi")
    arguments = dict(zip(names, (T, S, K, ZT, ZS), strict=True)) | changes
    with pytest.raises(UserError, match=message):
        rmia(**arguments, online=True)
