"""Selection: what qualifies and what is released, each scenario's interval, the fast grid search against a plain one."""

import time

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from common.config import Fallback
from common.diffence.select import (
    ORIGINAL,
    SCENARIOS,
    CandidateLogits,
    Selector,
    average,
    fit_selector,
    interval_divergences,
    reorder,
)
from common.errors import UserError
from common.metrics.privacy import auc, phi
from common.pair import Pair

CLASSES = 4


def logits(values: np.ndarray | list | float, label: int = 0) -> np.ndarray:
    """Logits [.., C] that predict `label` with the given phi (> 0)."""
    made = np.zeros((*np.shape(values), CLASSES))
    made[..., label] = np.asarray(values) + np.log(CLASSES - 1)
    return made


def points(seed: int, inputs: int, n: int, level: float, lost: float = 0.3) -> CandidateLogits:
    """Random candidates around a level of an input's own, a share of which loses the label; original phi = level + 4."""
    rng = np.random.default_rng(seed)
    values = np.exp(0.3 * rng.normal(size=(inputs, n)) + np.log(level) + 0.3 * rng.normal(size=(inputs, 1)))
    candidates = logits(values)
    candidates[rng.random((inputs, n)) < lost] = logits(3.0, label=1)
    candidates[:2] = logits(3.0, label=1)  # two inputs always fall back
    return CandidateLogits(logits(level + 4 + rng.normal(size=inputs)), candidates)


GARBAGE = CandidateLogits(np.full((2, CLASSES), np.nan), np.full((2, 3, CLASSES), np.nan))


# What is chosen


def test_the_first_inside_is_chosen() -> None:
    values = [[5, 3, 2, 1.2], [1.2, 2, 3, 5], [9, 9, 9, 2]]
    assert Selector("1", 1.9, 3.1).choose(logits(values), np.zeros(3, int)).tolist() == [1, 1, 3]
    assert Selector("2", 1.9, 3.1).choose(logits(values), np.zeros(3, int)).tolist() == [1, 1, 3]
    assert Selector("3").choose(logits(values), np.zeros(3, int)).tolist() == [0, 0, 0]


def test_the_interval_is_closed() -> None:
    candidates = logits([[5.0, 3.0, 2.0]])
    low, high = phi(candidates)[0, [2, 1]].tolist()
    assert Selector("1", low, low).choose(candidates, np.zeros(1, int)) == 2
    assert Selector("1", high, high).choose(candidates, np.zeros(1, int)) == 1


def test_the_nearest_is_chosen_where_none_is_inside() -> None:
    values = [[9, 1, 5.5, 6], [9, 1.5, 8, 1], [7, 6, 5.8, 6]]
    assert Selector("1", 2, 5).choose(logits(values), np.zeros(3, int)).tolist() == [2, 1, 2]


def test_only_label_keeping_candidates_are_chosen() -> None:
    candidates = np.stack([logits([3.0, 9, 8]), logits([3.0, 9, 3]), logits([3.0, 3, 3])])
    candidates[:, 0] = candidates[2, 1:] = logits(3.0, label=2)
    for scenario in ("1", "2"):
        assert Selector(scenario, 2, 4).choose(candidates, np.zeros(3, int)).tolist() == [2, 2, ORIGINAL]
    assert Selector("3").choose(candidates, np.zeros(3, int)).tolist() == [1, 1, ORIGINAL]
    assert Selector("3").choose(candidates, np.array([2, 2, 2])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("selector", [Selector("1", 0.5, 1.0), Selector("2", 0.2, 0.4), Selector("3")])
def test_release_keeps_every_label_and_every_number(selector: Selector) -> None:
    rng = np.random.default_rng(0)
    candidates, original = rng.normal(size=(400, 5, CLASSES)).astype("f"), rng.normal(size=(400, CLASSES)).astype("f")
    released = selector.release(candidates, original)
    assert (released.argmax(1) == original.argmax(1)).all()
    chosen = selector.choose(candidates, original.argmax(1))
    assert 0 < (chosen == ORIGINAL).sum() < 200
    for i, j in enumerate(chosen):
        np.testing.assert_array_equal(released[i], original[i] if j == ORIGINAL else candidates[i, j])


def test_draws_count_to_the_first_that_qualifies() -> None:
    candidates = logits([[3.0, 9, 9], [9, 9, 3], [9, 9, 8], [9, 3, 3]])
    candidates[3, 1] = logits(3.0, label=1)
    labels = np.zeros(4, int)
    assert Selector("1", 2, 4).draws(candidates, labels).tolist() == [1, 3, 3, 3]
    assert Selector("3").draws(candidates[:, 1:], labels).tolist() == [1, 1, 1, 2]
    assert Selector("average").draws(candidates, labels).tolist() == [3, 3, 3, 3]


def test_average_is_the_mean_softmax_and_may_change_the_label() -> None:
    candidates = 30 * np.random.default_rng(0).normal(size=(50, 6, CLASSES)).astype("f")
    original = candidates[:, 0]
    released = Selector("average").release(candidates, original)
    np.testing.assert_allclose(np.exp(released), softmax(candidates.astype(float), axis=-1).mean(1), rtol=1e-9, atol=1e-30)
    np.testing.assert_array_equal(released, average(candidates))
    assert (released.argmax(1) != original.argmax(1)).any()


# Scenarios 2, 3 and average


def test_scenario_2_is_min_and_mean_of_members_alone() -> None:
    members = points(0, 30, 5, 2.0)
    kept = [phi(members.candidates[i, j]) for i in range(30) for j in range(5) if members.candidates[i, j].argmax() == 0]
    assert 50 < len(kept) < 120
    selector = fit_selector("2", Pair(members, GARBAGE))
    assert (selector.scenario, selector.low) == ("2", min(kept))
    assert selector.high == pytest.approx(np.mean(kept), abs=1e-12)


@pytest.mark.parametrize("scenario", ["3", "average"])
def test_no_membership_is_used_without_an_interval(scenario: str) -> None:
    assert fit_selector(scenario, Pair(GARBAGE, GARBAGE)) == Selector(scenario, -np.inf, np.inf)
    assert fit_selector(scenario, Pair(points(0, 20, 4, 2), points(1, 20, 4, 5))) == Selector(scenario)


# The fallback


def test_reorder_has_the_ranks_of_the_original_and_the_values_of_the_candidate() -> None:
    assert reorder(np.array([[0.3, 0.1, 4.0]]), np.array([[2.0, 5.0, 1.0]])).tolist() == [[0.3, 4.0, 0.1]]
    rng = np.random.default_rng(0)
    values, original = rng.normal(size=(50, 7)), rng.normal(size=(50, 7))
    result = reorder(values, original)
    np.testing.assert_array_equal(np.sort(result), np.sort(values))
    np.testing.assert_array_equal(result.argsort(1), original.argsort(1))
    tied = reorder(np.array([[1.0, 2.0, 3.0]]), np.array([[4.0, 7.0, 7.0]]))
    assert tied.argmax() == np.array([4.0, 7.0, 7.0]).argmax()  # of equal original logits the first is the label


@pytest.mark.parametrize("scenario", ["1", "2", "3"])
def test_the_fallback_changes_only_what_has_no_match_and_no_label(scenario: str) -> None:
    side = points(0, 50, 5, 3.0)
    paper, other = (Selector(scenario, 2.0, 2.5, fallback) for fallback in ("original", "reorder"))
    labels = side.original.argmax(1)
    released, reordered = (each.release(side.candidates, side.original) for each in (paper, other))
    unmatched = paper.choose(side.candidates, labels) == ORIGINAL
    assert 0 < unmatched.sum() < 50
    np.testing.assert_array_equal(released[~unmatched], reordered[~unmatched])
    np.testing.assert_array_equal(released[unmatched], side.original[unmatched])
    assert (reordered.argmax(1) == labels).all()
    assert (reordered[unmatched] != side.original[unmatched]).any(1).all()
    nearest = other.outside(side.candidates[unmatched]).argmin(1)
    lent = side.candidates[unmatched, nearest]
    np.testing.assert_array_equal(np.sort(reordered[unmatched]), np.sort(lent))


# Scenario 1


def plain_search(
    members: CandidateLogits, others: CandidateLogits, ends: np.ndarray, bins: int, fallback: Fallback = "original"
) -> tuple[list, np.ndarray]:
    """Every interval through Selector.release, histograms by numpy, Jensen-Shannon by scipy."""
    pairs = [(a, b) for i, a in enumerate(ends) for b in ends[i + 1 :]]
    selectors = [Selector("1", a, b, fallback) for a, b in pairs]
    released = [[phi(each.release(side.candidates, side.original)) for side in (members, others)] for each in selectors]
    span = (min(min(p.min(), q.min()) for p, q in released), max(max(p.max(), q.max()) for p, q in released))
    return pairs, np.array([jensenshannon(*(np.histogram(v, bins, span)[0] for v in both)) ** 2 for both in released])


@pytest.mark.parametrize("fallback", ["original", "reorder"])
@pytest.mark.parametrize(
    ("seed", "levels", "grid", "bins"),
    [(0, (4, 3), 20, 100), (1, (4, 3), 20, 30), (2, (3, 3), 20, 100), (3, (2, 6), 20, 30), (4, (5, 2), 7, 10)],
)
def test_the_search_is_that_over_all_intervals(
    seed: int, levels: tuple[float, float], grid: int, bins: int, fallback: Fallback
) -> None:
    members, others = points(seed, 80, 6, levels[0]), points(seed + 100, 60, 6, levels[1])
    low, high = phi(members.candidates)[members.keeps_label].min(), phi(others.candidates)[others.keeps_label].max()
    assert low < high
    ends = np.linspace(low, high, grid + 1)
    pairs, expected = plain_search(members, others, ends, bins, fallback)
    assert len(pairs) == grid * (grid + 1) // 2
    divergences = interval_divergences(Pair(members, others), ends, bins, fallback)
    np.testing.assert_allclose(divergences, expected, rtol=0, atol=1e-9)
    assert np.ptp(expected) > 0.02
    selector = fit_selector("1", Pair(members, others), grid, bins, fallback)
    assert (selector.low, selector.high, selector.fallback) == (*pairs[int(expected.argmin())], fallback)


def test_candidates_on_the_ends_of_intervals_are_inside_both() -> None:
    """phi in powers of two, ends that hit them: every interval is closed, as it is when a prediction is released."""
    rng = np.random.default_rng(0)
    members, others = (
        CandidateLogits(candidates=logits(2.0 ** rng.integers(0, 6, (60, 3))), original=logits(rng.integers(40, 60, 60)))
        for _ in range(2)
    )
    ends = np.unique(phi(members.candidates))[[1, 3, 4]]
    expected = plain_search(members, others, ends, 40)[1]
    np.testing.assert_allclose(interval_divergences(Pair(members, others), ends, 40), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("bins", "divergence"), [(1, 0.0), (2, np.log(2)), (4, np.log(2))])
def test_the_divergence_of_two_sides_that_lie_apart(bins: int, divergence: float) -> None:
    """All members at phi .2 and all others at .6: no bin has both, the highest value being in the last; one bin has all."""
    fit = Pair(*(CandidateLogits(logits(np.full(5, value)), logits(np.full((5, 2), value))) for value in (0.2, 0.6)))
    np.testing.assert_allclose(interval_divergences(fit, np.array([0.0, 1.0]), bins), [divergence], atol=1e-12)


def test_the_divergence_is_taken_over_the_whole_range_of_phi_however_narrow() -> None:
    """phi .1 and .2 against .2 and .3, in three bins of a range of .2: half of the mass is shared, JS = log(2) / 2."""
    fit = Pair(*(CandidateLogits(logits([9.0, 9.0]), logits([[low], [high]])) for low, high in ((0.1, 0.2), (0.2, 0.3))))
    np.testing.assert_allclose(interval_divergences(fit, np.array([0.0, 1.0]), 3), [np.log(2) / 2])


def test_members_above_all_non_members() -> None:
    members, others = points(0, 40, 5, 40.0), points(1, 40, 5, 2.0)
    low, high = phi(others.candidates)[others.keeps_label].max(), phi(members.candidates)[members.keeps_label].min()
    assert low < high
    selector = fit_selector("1", Pair(members, others))
    assert low <= selector.low < selector.high <= high
    pairs, expected = plain_search(members, others, np.linspace(low, high, 21), 100)
    assert (selector.low, selector.high) == pairs[int(expected.argmin())]


def test_one_and_the_same_phi_everywhere() -> None:
    same = CandidateLogits(logits(np.full(4, 5.0)), logits(np.full((4, 3), 2.0)))
    selector = fit_selector("1", Pair(same, same))
    assert selector.choose(same.candidates, np.zeros(4, int)).tolist() == [0, 0, 0, 0]


def test_the_search_takes_milliseconds() -> None:
    members, others = points(0, 1000, 30, 3.0), points(1, 1000, 30, 3.0)
    started = time.process_time()
    fit_selector("1", Pair(members, others))
    assert time.process_time() - started < 0.5


def test_scenario_1_hides_planted_membership_on_fresh_points() -> None:
    members, others = points(0, 1000, 20, 3.0), points(1, 1000, 20, 2.0)
    fresh = points(2, 1000, 20, 3.0), points(3, 1000, 20, 2.0)
    leaks = {}
    for scenario in ("1", "3"):
        selector = fit_selector(scenario, Pair(members, others))
        leaks[scenario] = abs(auc(*(phi(selector.release(side.candidates, side.original)) for side in fresh)) - 0.5)
    leaks["none"] = abs(auc(*(phi(side.original) for side in fresh)) - 0.5)
    assert leaks["1"] < leaks["3"] - 0.1
    assert leaks["1"] < leaks["none"] - 0.15


# Refusals


def test_refuses_sides_without_any_label_keeping_candidate() -> None:
    good, lost = points(0, 10, 3, 2.0), CandidateLogits(logits(np.ones(10)), logits(np.ones((10, 3)), label=1))
    for scenario, members, others, who in (
        ("1", lost, good, "members"),
        ("1", good, lost, "non-members"),
        ("2", lost, good, ""),
    ):
        with pytest.raises(UserError, match=f"no reconstruction of the defender's {who}.*diffence.t"):
            fit_selector(scenario, Pair(members, others))


def test_refuses_an_unknown_scenario() -> None:
    for name in ("4", "averge", ""):
        with pytest.raises(UserError, match="unknown scenario"):
            Selector(name)
    assert [Selector(name).scenario for name in SCENARIOS] == ["1", "2", "3", "average"]
