"""Intervals against brute force, exact values and coverage; warnings of small pools; means over seeds."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from common.attacks import Scores
from common.audit import audit
from common.errors import UserError
from common.metrics import privacy as metrics
from common.metrics.intervals import clopper_pearson, delong_interval, mean_and_sd, mean_interval
from common.pair import Pair


def gaussians(n: int, m: int, gap: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(gap, 1, n), rng.normal(0, 1, m)


# AUC


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_delong_is_the_brute_force_over_placement_values(digits: int) -> None:
    """Every pair compared, ties counted half; with 0 digits most scores tie."""
    for seed in range(10):
        members, others = (side.round(digits) for side in gaussians(23, 31, 0.7, seed))
        wins = (members[:, None] > others) + 0.5 * (members[:, None] == others)
        of_members, of_others = wins.mean(axis=1), wins.mean(axis=0)
        variance = of_members.var(ddof=1) / 23 + of_others.var(ddof=1) / 31
        expected = [wins.mean() + sign * 1.959963984540054 * math.sqrt(variance) for sign in (-1, 1)]
        assert delong_interval(members, others) == pytest.approx(np.clip(expected, 0, 1), abs=1e-12)


def test_delong_by_hand() -> None:
    """Members 1, 3 and non-members 0, 2: placement values 1/2, 1 and 1, 1/2; AUC 3/4; variance 1/16 + 1/16."""
    low, high = delong_interval([1, 3], [0, 2])
    assert low == pytest.approx(0.75 - 1.959964 * math.sqrt(1 / 8), abs=1e-6)
    assert high == 1.0  # clipped
    assert delong_interval([0, 2], [1, 3]) == [0.0, pytest.approx(1 - low)]


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_delong_covers_the_true_auc_as_often_as_it_says(gap: float) -> None:
    """N(gap, 1) against N(0, 1): AUC Phi(gap / sqrt 2), .5 and .76025."""
    truth = 0.5 * (1 + math.erf(gap / 2))
    inside = 0
    for seed in range(400):
        low, high = delong_interval(*gaussians(150, 250, gap, seed))
        inside += low <= truth <= high
    assert inside / 400 == pytest.approx(0.95, abs=0.03)


def test_delong_centres_on_the_auc_and_narrows() -> None:
    widths = []
    for n in (500, 2000):
        members, others = gaussians(n, n, 0.5, seed=1)
        low, high = delong_interval(members, others)
        assert (low + high) / 2 == pytest.approx(metrics.auc(members, others), abs=1e-12)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.05)


def test_delong_where_nothing_varies() -> None:
    """Perfect separation is as sure as that many disjoint pairs; of constant scores all is known, of one point nothing."""
    assert delong_interval([2, 3, 4], [0, 1]) == clopper_pearson(2, 2) == [pytest.approx(math.sqrt(0.025)), 1]
    assert delong_interval([0, 1], [2, 3, 4]) == pytest.approx(clopper_pearson(0, 2))
    assert delong_interval([0, 0, 0], [0, 0]) == [0.5, 0.5]
    assert delong_interval([1], [0, 2, 3]) == [0.0, 1.0]


def test_a_higher_level_is_a_wider_interval() -> None:
    """Of a normal law: half-widths in the ratio of its quantiles."""
    members, others = gaussians(400, 300, 0.5, seed=2)
    low, high = delong_interval(members, others)
    wide_low, wide_high = delong_interval(members, others, 0.995)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(norm.isf(0.0025) / norm.isf(0.025), rel=1e-9)
    assert delong_interval([2, 3], [0, 1], 0.995)[0] == pytest.approx(math.sqrt(0.0025))


def four(points: np.ndarray) -> Scores:
    """Scored members and non-members, then known ones: [4, n]."""
    return Scores(Pair(*points[:2]), Pair(*points[2:]))


def test_the_verdict_allows_for_the_choice_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of audits of nothing at most about 5% may say "leak", though each reports the best of nine attacks; .05 + 2 sd here."""
    monkeypatch.setattr(audit, "report_of", lambda scores, *_: {"auc": np.greater.outer(*scores.scored).mean()})  # no ties here
    monkeypatch.setattr(audit, "auc", lambda *_: 0.5)  # of the null attacks, of which the verdict knows nothing
    rng = np.random.default_rng(0)
    leaks = alone = 0
    for _ in range(300):
        shared = rng.normal(size=(4, 40))
        scores = {str(i): four(shared + rng.normal(size=(4, 40))) for i in range(8)} | {"correctness": four(shared)}
        row = audit.measure(scores, scores, 0.1)
        best = scores[row["best"]]
        leaks += row["best_interval"][0] > 0.5
        alone += delong_interval(*best.scored)[0] > 0.5
    assert leaks <= 300 * 0.05 + 2 * math.sqrt(300 * 0.05 * 0.95) < alone


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [[1.0, 2.0]]])
def test_delong_refuses_bad_scores(bad: list) -> None:
    with pytest.raises(UserError, match="members"):
        delong_interval(bad, [0.0, 1.0])
    with pytest.raises(UserError, match="non-members"):
        delong_interval([0.0, 1.0], bad)


# rates


def test_clopper_pearson_of_two_in_two_thousand() -> None:
    low, high = clopper_pearson(2, 2000)
    assert (round(100 * low, 3), round(100 * high, 2)) == (0.012, 0.36)


def test_clopper_pearson_at_the_ends() -> None:
    assert clopper_pearson(0, 1000) == [0.0, pytest.approx(1 - 0.025 ** (1 / 1000))]
    assert clopper_pearson(1000, 1000) == [pytest.approx(0.025 ** (1 / 1000)), 1.0]


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (1, 7), (3, 1000), (499, 500), (250, 500)])
def test_clopper_pearson_is_scipys_and_inverts_the_tails(k: int, n: int) -> None:
    low, high = clopper_pearson(k, n)
    theirs = binomtest(k, n).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    if k > 0:
        assert binom.sf(k - 1, n, low) == pytest.approx(0.025)
    if k < n:
        assert binom.cdf(k, n, high) == pytest.approx(0.025)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_clopper_pearson_refuses(k: int, n: int) -> None:
    with pytest.raises(UserError, match="hits"):
        clopper_pearson(k, n)


def test_a_rate_carries_the_intervals_of_hits_and_of_errors() -> None:
    rate = metrics.tpr_at_fpr(np.arange(2000) + 1.5, np.arange(2000), fpr=0.001)
    assert (rate.hits, rate.errors) == (4, 2)  # 2000.5, 1999.5, 1998.5 and 1997.5 against 1998 and 1999
    assert rate.interval == clopper_pearson(4, 2000)
    assert rate.error_interval == clopper_pearson(2, 2000)


# pools too small


@pytest.mark.parametrize(
    ("members", "non_members", "strict", "warned"),
    [
        (1000, 1000, False, ""),
        (999, 1000, False, "T"),
        (1000, 999, False, "F"),
        (500, 500, False, "FT"),
        (1000, 1001, True, "T"),
    ],
)
def test_a_pool_that_allows_no_error_is_warned_of(members: int, non_members: int, strict: bool, warned: str) -> None:
    sentences = metrics.pool_warnings(members, non_members, 0.001, strict)
    assert len(sentences) == len(warned)
    for sentence, kind in zip(sentences, warned, strict=True):
        points, side = (f"{non_members:,}", "non-members") if kind == "F" else (f"{members:,}", "members")
        assert f"at 0.1% {'FPR' if kind == 'F' else 'FNR'}: {points} {side} are too few" in sentence


def test_the_warning_says_what_no_error_means() -> None:
    """0 of n: the 95% interval ends at 1 - .025^(1/n), 0.74% of 500 and 3.62% of 100."""
    assert "0.74%" in metrics.pool_warnings(5000, 500)[0]
    assert "3.62%" in metrics.pool_warnings(5000, 100)[0]


# seeds


def test_mean_and_sample_deviation() -> None:
    assert mean_and_sd([0.7, 0.8]) == (pytest.approx(0.75), pytest.approx(0.1 / math.sqrt(2)))
    assert mean_and_sd([2, 4, 4, 4, 5, 5, 7, 9]) == (5.0, pytest.approx(math.sqrt(32 / 7)))
    with pytest.raises(UserError, match="at least 2"):
        mean_and_sd([0.7])


def test_the_interval_of_a_mean() -> None:
    """Student's quantile at 97.5% is 4.302653 with 2 degrees of freedom; the deviation of 1, 2, 3 is 1."""
    half_width = 4.302653 / math.sqrt(3)
    assert mean_interval([1, 2, 3]) == pytest.approx([2 - half_width, 2 + half_width])
