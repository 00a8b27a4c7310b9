"""The intervals of scenario 1: divergence beside attack AUC, draws until a hit, and the command that writes the row."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Call, refusal, tiny_run

from common.commands import intervals
from common.config import Diffence, Fallback
from common.data.partition import Pools
from common.diffence.select import fit_selector
from common.experiments.collect import LabelledLogits
from common.experiments.intervals import compare_intervals, draws_until_inside
from common.pair import Pair

POOLS = Pools(fit=range(2), known=range(2), scored=range(2, 5))


def logits_of(phi: Sequence[Sequence[float]]) -> LabelledLogits:
    """Two classes, of which the first is predicted: a candidate with the given phi [n, N]; it loses the label below 0."""
    values = np.array(phi)
    candidates = np.stack([values, np.zeros_like(values)], axis=-1)
    original = np.stack([np.full(len(values), 5.0), np.zeros(len(values))], axis=-1)
    return LabelledLogits(original, candidates, np.zeros(len(values), dtype=np.int64))


def test_draws_are_counted_until_the_first_candidate_inside() -> None:
    """The middle half of the defender's 1, 2, .., 9 is [3, 7]. Of six scored images one hits at first, two at the second."""
    fit: list[list[float]] = [[1, 2, 3], [4, 5, 6]]
    members = logits_of([*fit, [5.0, 9, 9], [9, 5, 9], [9, 9, 9]])
    others = logits_of([[7.0, 8, 9], [-1, -1, -1], [9.0, 9, 5], [9, 3, 9], [-5, 2, 9]])
    draws = draws_until_inside(Pair(members, others), POOLS, 0.5)
    assert draws["interval"] == [3, 7]
    assert draws["cdf"] == pytest.approx([1 / 6, 3 / 6, 4 / 6])
    assert draws["later_hits"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("fallback", ["original", "reorder"])
def test_the_interval_of_the_least_divergence_is_the_one_that_scenario_1_takes(fallback: Fallback) -> None:
    rng = np.random.default_rng(0)
    sides = Pair(*(logits_of(rng.normal(mean, 2, (60, 8)).clip(0.1).tolist()) for mean in (8, 5)))
    pools = Pools(fit=range(30), known=range(30), scored=range(30, 60))
    points = compare_intervals(sides, pools, Diffence(grid=6, js_bins=10, fallback=fallback))
    assert len(points) == 21
    best = min(points, key=lambda point: point["js"])
    selector = fit_selector("1", sides.map(lambda side: side.take(pools.fit)), 6, 10, fallback)
    assert (best["low"], best["high"]) == (selector.low, selector.high)
    assert all(0.5 <= point["best_auc"] <= 1 and 0.5 <= point["best_accuracy"] <= 1 for point in points)
    assert len({point["best_auc"] for point in points}) > 5  # they differ in what they leave to an attacker


def test_the_command(copied_drawn: Path, tiny: Path, call: Call) -> None:
    options = ("--profile", tiny, "--device", "cpu")
    answer = call(intervals, copied_drawn, "--defense", "undefended", *options)
    assert answer.code == 0, answer.err
    path = tiny_run(copied_drawn, tiny).results_dir("clean") / "intervals-undefended-n4-t100.json"
    row = json.loads(path.read_text())
    assert (row["kind"], row["n"], row["t"], len(row["intervals"])) == ("intervals", 4, 100, 210)
    assert -1 <= row["rank_correlation"]["js_and_auc"] <= 1
    assert [len(draws["cdf"]) for draws in row["draws"]] == [4] * 5
    assert f"over 210 intervals: {row['rank_correlation']['js_and_auc']:.2f}" in answer.out
    assert "Did you mean 'undefended'" in refusal(call(intervals, copied_drawn, "--defense", "undefendd", *options))
    alone = call(intervals, copied_drawn, "--defense", "undefended", *options, "--set", "diffence.grid=1")
    assert alone.code == 0 and "over 1 intervals: undefined" in alone.out, alone.err
