"""Known answers for every metric: hand-computed cases, closed forms and independent implementations."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from common.errors import UserError
from common.metrics import privacy as metrics
from common.metrics.intervals import delong_interval
from common.metrics.privacy import Floats, Rate
from common.pair import Pair


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tied_scores(seed: int) -> tuple[Floats, Floats]:
    """Small integer scores: many ties within and between the two sides."""
    return rng(seed).integers(2, 9, 37).astype(float), rng(seed + 100).integers(0, 7, 53).astype(float)


# phi


@pytest.mark.parametrize(("z", "expected"), [((60, 0, 0), 60 - math.log(2)), ((200, 0, 0), 200 - math.log(2))])
def test_phi_does_not_saturate(z: tuple[int, ...], expected: float) -> None:
    assert metrics.phi(z) == pytest.approx(expected, abs=1e-12)
    assert metrics.phi(z) == pytest.approx({60: 59.3069, 200: 199.307}[z[0]], abs=5e-4)


def test_phi_is_the_log_odds_of_the_probability() -> None:
    z = rng().normal(size=(50, 7))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    label = rng(1).integers(0, 7, 50)
    np.testing.assert_allclose(metrics.phi(z), np.log(p.max(1) / (1 - p.max(1))), rtol=1e-10)
    np.testing.assert_allclose(metrics.phi(z, label), np.log(p / (1 - p))[np.arange(50), label], rtol=1e-10)


def test_phi_ignores_a_constant_and_keeps_its_argument() -> None:
    z = rng().normal(size=(4, 5))
    before = z.copy()
    np.testing.assert_allclose(metrics.phi(z + 1000), metrics.phi(z), atol=1e-10)
    np.testing.assert_array_equal(z, before)


def test_phi_takes_any_leading_shape() -> None:
    z = rng().normal(size=(3, 4, 5)).astype(np.float32)
    label = rng(1).integers(0, 5, (3, 1))  # the same label for all 4 candidates of an image
    all_at_once = metrics.phi(z, label)
    assert all_at_once.shape == (3, 4)
    assert all_at_once.dtype == np.float64
    assert all_at_once[2, 1] == metrics.phi(z[2, 1], int(label[2, 0]))
    assert metrics.phi(z)[1, 3] == metrics.phi(z[1, 3])


@pytest.mark.parametrize(
    ("z", "label"),
    [
        ([1.0], None),
        ([[1.0, np.nan]], None),
        ([[1.0, -np.inf]], None),
        ([[1.0, 2.0]], [-1]),
        ([[1.0, 2.0]], [2]),
        ([[1.0, 2.0]], [0.0]),
        ([[1.0, 2.0]], [0, 1, 0]),
    ],
)
def test_phi_refuses(z: list, label: list | None) -> None:
    with pytest.raises(UserError):
        metrics.phi(z, label)


# AUC


def test_auc_is_mann_whitney() -> None:
    for members, others in (tied_scores(0), (rng().normal(1, 1, 301), rng(1).normal(size=200))):
        u = mannwhitneyu(members, others).statistic
        assert metrics.auc(members, others) == pytest.approx(u / (len(members) * len(others)), abs=1e-12)


def test_negated_scores_give_the_complement() -> None:
    members, others = tied_scores(3)
    assert metrics.auc(-members, -others) == pytest.approx(1 - metrics.auc(members, others), abs=1e-12)
    assert metrics.auc(members, others) > 0.6


def test_members_above_non_members_give_one() -> None:
    assert metrics.auc([2, 3], [0, 1]) == 1.0


# rates at a low error rate

EXAMPLE = ([5, 4, 3, 2], [4.5] + [0] * 999)


def test_one_false_positive_makes_the_headline() -> None:
    assert metrics.tpr_at_fpr(*EXAMPLE, strict=True) == Rate(0.25, 1, 0, 4, 1000)
    assert metrics.tpr_at_fpr(*EXAMPLE) == Rate(1.0, 4, 1, 4, 1000)


def test_ties_are_accused_together() -> None:
    assert metrics.tpr_at_fpr([1, 1, 1, 2], [1, 0], fpr=0.4) == Rate(0.25, 1, 0, 4, 2)
    assert metrics.tpr_at_fpr([1, 1], [1, 1], fpr=0.4) == Rate(0.0, 0, 0, 2, 2)


@pytest.mark.parametrize(("fpr", "m", "allowed"), [(0.001, 2000, 2), (0.29, 100, 29), (0.07, 100, 7), (0.001, 999, 0)])
def test_allowed_errors_survive_floating_point(fpr: float, m: int, allowed: int) -> None:
    """0.29 * 100 is 28.999.. and 0.07 * 100 is 7.000000000000001."""
    members, others = np.arange(m) + 0.5, np.arange(m)
    assert metrics.tpr_at_fpr(members, others, fpr).errors == allowed
    assert metrics.tpr_at_fpr(members, others, fpr, strict=True).errors == max(allowed - 1, 0)


@pytest.mark.parametrize("strict", [False, True])
def test_rate_is_the_best_of_all_thresholds(strict: bool) -> None:
    for seed in range(20):
        members, others = tied_scores(seed)
        for fpr in (0.02, 0.1, 0.25, 0.5):
            hits = 0
            for tau in [*np.unique(np.concatenate([members, others])), np.inf]:
                false_rate = (others >= tau).mean()
                if false_rate < fpr or (not strict and false_rate == fpr):
                    hits = max(hits, int((members >= tau).sum()))
            assert metrics.tpr_at_fpr(members, others, fpr, strict).hits == hits


def test_collinear_vertices_are_kept() -> None:
    """One member after each non-member: a straight ROC, of which scikit-learn's default keeps the end points only."""
    others = np.arange(10.0)
    assert metrics.tpr_at_fpr(others, others, fpr=0.3) == Rate(0.3, 3, 3, 10, 10)


def test_tnr_is_tpr_with_the_sides_swapped() -> None:
    assert metrics.tnr_at_fnr([9] * 999 + [1], [0, 2, 3, 4], strict=True) == Rate(0.25, 1, 0, 4, 1000)
    assert metrics.tnr_at_fnr([9] * 999 + [1], [0, 2, 3, 4]) == Rate(1.0, 4, 1, 4, 1000)
    assert metrics.tnr_at_fnr([2, 3], [0, 1]).rate == 1.0


def test_tpr_of_two_gaussians() -> None:
    """N(1,1) against N(0,1): TPR = 1 - Phi(Phi^-1(1 - f) - 1), .01830 at f = .001 and .2595 at f = .05."""
    members, others = rng().normal(1, 1, 400_000), rng(1).normal(size=400_000)
    assert metrics.tpr_at_fpr(members, others, 0.001).rate == pytest.approx(0.01830, abs=0.002)
    assert metrics.tpr_at_fpr(members, others, 0.05).rate == pytest.approx(0.2595, abs=0.004)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, math.nan])
def test_rates_refuse_a_bound_out_of_range(fpr: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        metrics.tpr_at_fpr([1], [0], fpr)


# thresholds


def test_best_threshold_by_hand() -> None:
    assert metrics.best_threshold([1, 2, 2, 4], [0, 1, 1, 2]) == (2.0, 0.75)
    assert metrics.best_threshold([1, 2, 3, 4], [0, 1, 1, 2]) == (3.0, 0.75)  # 2 is as good and accuses more
    assert metrics.best_threshold([3, 4], [0, 1]) == (3.0, 1.0)
    assert metrics.best_threshold([0, 1], [3, 4]) == (math.inf, 0.5)


def test_best_threshold_is_the_best_of_all() -> None:
    for seed in range(20):
        members, others = tied_scores(seed)
        threshold, accuracy = metrics.best_threshold(members, others)
        everywhere = [metrics.balanced_accuracy(members, others, tau) for tau in np.arange(-1, 11, 0.5)]
        assert accuracy == max(everywhere) == metrics.balanced_accuracy(members, others, threshold)


def test_balanced_accuracy_weighs_both_sides_alike() -> None:
    assert metrics.balanced_accuracy([1], [0] * 8 + [1, 1], 1) == pytest.approx((1 + 0.8) / 2)
    assert metrics.balanced_accuracy([1], [1], math.inf) == 0.5


def test_oracle_threshold_is_optimistic_by_one_point() -> None:
    """No leakage, 2000 + 2000 points: the best threshold of the scored points themselves averages .510, not .500."""
    draws = [metrics.best_threshold(rng(s).normal(size=2000), rng(s + 1000).normal(size=2000))[1] for s in range(200)]
    assert np.mean(draws) == pytest.approx(0.510, abs=0.001)


# the report


def test_report_fits_the_threshold_on_known_points() -> None:
    report = metrics.attack_report(Pair([3, 4, 5, 6], [0, 1, 2, 3]), Pair([5, 6], [0, 4]), oracle=False)
    assert report["threshold"] == 5.0
    assert report["accuracy"] == 0.75
    assert report["accuracy_oracle"] == 0.875
    assert report["auc"] == 15.5 / 16
    assert report["auc_interval"] == delong_interval([3, 4, 5, 6], [0, 1, 2, 3])
    assert "accuracy_per_class" not in report


def test_report_of_the_released_protocol() -> None:
    report = metrics.attack_report(Pair([3, 4, 5, 6], [0, 1, 2, 3]), Pair([5, 6], [0, 4]), oracle=True)
    assert report["threshold"] == 4.0
    assert report["accuracy"] == report["accuracy_oracle"] == 0.875


def test_report_rates_are_strict_with_an_oracle_only() -> None:
    assert metrics.attack_report(Pair(*EXAMPLE), Pair([1], [0]), oracle=True)["tpr_at_fpr"]["rate"] == 0.25
    clean = metrics.attack_report(Pair(*EXAMPLE), Pair([1], [0]), oracle=False)
    assert clean["tpr_at_fpr"] == asdict(Rate(1.0, 4, 1, 4, 1000))
    assert clean["tnr_at_fnr"] == asdict(Rate(0.999, 999, 0, 1000, 4))
    assert metrics.attack_report(Pair(*EXAMPLE), Pair([1], [0]), oracle=False, fpr=0.0005)["tpr_at_fpr"]["rate"] == 0.25


def test_report_bounds_both_error_rates_alike() -> None:
    """The example with its sides swapped and negated: what was said of TPR at an FPR holds of TNR at an FNR."""
    swapped = Pair([-score for score in EXAMPLE[1]], [-score for score in EXAMPLE[0]])
    for oracle, fpr, rate in ((True, 0.001, 0.25), (False, 0.001, 1.0), (False, 0.0005, 0.25)):
        report = metrics.attack_report(swapped, Pair([1], [0]), oracle=oracle, fpr=fpr)
        assert report["tnr_at_fnr"]["rate"] == rate


def test_errors_are_counted_up_to_the_bound_unless_told_otherwise() -> None:
    assert (metrics.allowed_errors(0.001, 2000), metrics.allowed_errors(0.001, 2000, strict=True)) == (2, 1)
    assert metrics.pool_warnings(1000, 1000) == []
    assert len(metrics.pool_warnings(1000, 1000, strict=True)) == 2


def test_report_is_json() -> None:
    report = metrics.attack_report(Pair(*EXAMPLE), Pair([0], [1]), oracle=False)  # known points that call for +inf
    assert report["threshold"] is None
    assert report["accuracy"] == 0.5
    assert json.loads(json.dumps(report, allow_nan=False)) == report


# refusals


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [np.inf], [[1.0, 2.0]], 1.0])
@pytest.mark.parametrize("metric", [metrics.auc, metrics.tpr_at_fpr, metrics.tnr_at_fnr, metrics.best_threshold])
def test_scores_are_checked_on_both_sides(metric, bad) -> None:  # type: ignore[no-untyped-def]
    for arguments in (([1.0], bad), (bad, [1.0])):
        with pytest.raises(UserError, match=r"members"):
            metric(*arguments)


def test_refusal_counts_the_bad_scores() -> None:
    with pytest.raises(UserError, match="2 of 3 scores of the non-members are NaN or infinite"):
        metrics.auc([1.0], [np.nan, 0.0, np.inf])
