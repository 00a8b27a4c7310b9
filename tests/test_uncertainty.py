"""Intervals against brute force, exact values and coverage; warnings of small pools; means over seeds."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from common.attacks import Scores
from common.audit import audit
from common.audit.page import summary
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


def counts_of(scores: Scores, fpr: float) -> dict[str, int]:
    """The members above the (e + 1)-th highest non-member, of which fpr allows e errors. There are no ties here."""
    members, non_members = scores.scored
    threshold = np.sort(non_members)[::-1][int(fpr * len(non_members))]
    hits, errors = (int((side > threshold).sum()) for side in scores.scored)
    return {"hits": hits, "positives": len(members), "errors": errors, "negatives": len(non_members)}


def verdict_of(scores: dict[str, Scores], fpr: float) -> tuple[dict, str]:
    """The row of an audit of these scores, and its sentences as one text. Accuracies, which play no part, are made up."""
    row = audit.measure(scores, scores, fpr)
    for attack in row["attacks"].values():
        found = attack["tpr_at_fpr"]
        found |= {"rate": found["hits"] / found["positives"], "interval": [0, 1]}
    sides = {"members": 0, "non_members": 0}
    return row, " ".join(summary({**row, "fpr": fpr, "accuracy": sides, "scored": sides}))


@pytest.fixture
def plain_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of AUC and TPR alone, counted here, so that hundreds of audits take a moment. The null attacks have no say."""
    monkeypatch.setattr(
        audit,
        "report_of",
        lambda scores, _, options: {
            "auc": np.greater.outer(*scores.scored).mean(),
            "tpr_at_fpr": counts_of(scores, options.fpr),
        },
    )
    monkeypatch.setattr(audit, "auc", lambda *_: 0.5)


@pytest.mark.usefixtures("plain_reports")
@pytest.mark.parametrize("fpr", [0.1, 0.001])
def test_the_verdict_allows_for_the_choice_of_the_best(fpr: float) -> None:
    """Of audits of nothing at most about 5% may say "leak", though each reports the best of nine attacks; .05 + 2 sd here.

    40 non-members allow 4 errors, or none. The intervals of one attack alone, and of a threshold fixed in advance, err more.
    """
    rng = np.random.default_rng(0)
    leaks = alone = fixed_in_advance = 0
    for _ in range(300):
        shared = rng.normal(size=(4, 40))
        scores = {str(i): four(shared + rng.normal(size=(4, 40))) for i in range(8)} | {"correctness": four(shared)}
        row, verdict = verdict_of(scores, fpr)
        leaks += "no leakage" not in verdict
        alone += delong_interval(*scores[row["best"]].scored)[0] > 0.5
        fixed_in_advance += clopper_pearson(row["attacks"][row["best_at_fpr"]]["tpr_at_fpr"]["hits"], 40)[0] > fpr
    assert leaks <= 300 * 0.05 + 2 * math.sqrt(300 * 0.05 * 0.95) < min(alone, fixed_in_advance)


@pytest.mark.usefixtures("plain_reports")
def test_a_few_memorised_members_are_a_leak_that_the_auc_does_not_see() -> None:
    """3% of 1,000 members far above everything. The AUC rises by .015; its interval spans .07."""
    rng = np.random.default_rng(1)
    points = rng.normal(size=(4, 1000))
    memorised = points.copy()
    memorised[0, :30] += 8
    scores = {"correctness": four(points), "loss": four(memorised)}
    row, verdict = verdict_of(scores, 0.001)
    assert row["best_interval"][0] <= 0.5
    assert "no leakage" not in verdict
    found = row["attacks"]["loss"]["tpr_at_fpr"]
    assert (row["best_at_fpr"], 25 <= found["hits"] <= 40) == ("loss", True)
    assert f"the attack loss finds {found['hits']} of 1,000 members" in verdict and "more than chance gives (p = " in verdict


@pytest.mark.parametrize(("members", "non_members", "errors"), [(3, 4, 0), (4, 3, 1), (2, 5, 3), (5, 2, 1)])
def test_chance_of_hits_counts_all_rankings(members: int, non_members: int, errors: int) -> None:
    """Every set of ranks that the members may have; a guess makes them equally likely."""
    found = []
    for ranks in itertools.combinations(range(members + non_members), members):
        others = sorted(set(range(members + non_members)) - set(ranks))
        found.append(sum(rank < others[errors] for rank in ranks))
    for hits in range(members + 1):
        share = np.mean(np.array(found) >= hits)
        assert audit.chance_of_hits(hits, members, non_members, errors) == pytest.approx(share, abs=1e-12)


def test_chance_of_hits_without_errors_is_the_closed_form() -> None:
    """C(n + m - k, m) / C(n + m, m): the first k points of n + m are all members."""
    expected = math.comb(90 - 7, 50) / math.comb(90, 50)
    assert audit.chance_of_hits(7, 40, 50, 0) == pytest.approx(expected)


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
