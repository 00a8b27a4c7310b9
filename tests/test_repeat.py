"""Attackers who ask about an image many times, beside closed forms; and the command that measures them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call, refusal, tiny_run
from scipy.stats import binom, norm, poisson

import common.experiments.repeated_queries
from common.attacks.repeated_queries import (
    Answers,
    RepeatedAnswers,
    features,
    gap_attack,
    loss_attack,
    mean_loss_attack,
    nearby_images,
    regression_attack,
)
from common.commands import attack_diffence
from common.errors import UserError
from common.metrics.privacy import auc, best_threshold
from common.pair import Pair

IMAGES = 4000
SAMPLING = 4 * np.sqrt((2 * IMAGES + 1) / 12) / IMAGES  # of an AUC without leakage; others vary less


def answers(phi: np.ndarray) -> Answers:
    """Answers of two classes whose true label, 0, has the given phi [n, M]."""
    return Answers(np.stack([phi, np.zeros_like(phi)], axis=2), np.zeros(len(phi), np.int64), np.ones(phi.shape, np.int64))


def four(parts: Sequence[Answers]) -> RepeatedAnswers:
    """Answers about scored members and non-members, then about known ones."""
    return RepeatedAnswers(Pair(*parts[:2]), Pair(*parts[2:]))


def noisy(centres: list[float], between: float, within: float, m: int) -> RepeatedAnswers:
    """phi of an image ~ N(centre, between^2), of an answer about it N(that, within^2)."""
    random = np.random.default_rng(0)
    parts = [random.normal(c, between, (IMAGES, 1)) + random.normal(0, within, (IMAGES, m)) for c in centres * 2]
    return four([*map(answers, parts)])


def reach(scores: Any) -> float:
    return auc(*scores.scored)


# Oracles


@pytest.mark.parametrize(("within", "m"), [(2.0, 1), (2.0, 4), (2.0, 16), (0.5, 16)])
def test_averaging_has_the_auc_of_less_noise(within: float, m: int) -> None:
    """At phi near -30, log p = phi to 1e-8: means of Gaussians, with AUC Phi(d / sqrt(2 (tau^2 + s^2 / M)))."""
    asked = noisy([-30, -31], 1.0, within, m)
    assert reach(mean_loss_attack(asked)) == pytest.approx(norm.cdf(1 / np.sqrt(2 * (1 + within**2 / m))), abs=SAMPLING)
    assert reach(loss_attack(asked)) == pytest.approx(norm.cdf(1 / np.sqrt(2 * (1 + within**2))), abs=SAMPLING)
    assert reach(regression_attack(asked, None)) == pytest.approx(reach(mean_loss_attack(asked)), abs=0.005)


def test_the_gap_and_the_loss_attack_look_at_the_first_answer_alone() -> None:
    """Of two answers about three images: right then wrong, wrong then right, right twice."""
    asked = four([answers(np.array([[1.0, -1], [-1, 1], [2, 2]])) for _ in range(4)])
    assert gap_attack(asked).scored.members.tolist() == [1, 0, 1]
    np.testing.assert_allclose(loss_attack(asked).scored.members, -np.log1p(np.exp([-1.0, 1.0, -2.0])))


def test_an_answer_on_an_end_of_the_interval_lies_inside() -> None:
    """phi 1, 2, 3 and 4 of a right answer: three of four lie in [1, 3], both ends included."""
    found = features(answers(np.array([[1.0, 2, 3, 4]])), (1.0, 3.0))
    assert found[0, 1:].tolist() == pytest.approx([2.5, math.sqrt(1.25), 1, 0.75])


def test_the_same_answer_m_times_is_one_answer() -> None:
    single = noisy([3, 2], 1.0, 1.0, 1)

    def sixteen(side: Answers) -> Answers:
        return Answers(side.logits.repeat(16, axis=1), side.labels, side.drawn.repeat(16, axis=1))

    repeated = RepeatedAnswers(single.scored.map(sixteen), single.known.map(sixteen))
    one, mean = loss_attack(single), mean_loss_attack(repeated)
    for a, b in zip((*one.scored, *one.known), (*mean.scored, *mean.known), strict=True):
        np.testing.assert_array_equal(a, b)
    assert reach(regression_attack(repeated, (2.0, 3.0))) == reach(regression_attack(single, (2.0, 3.0)))


@pytest.mark.parametrize(("m", "known"), [(1, 0.65), (8, 0.92276)])
def test_who_knows_the_interval_counts_answers_in_it(m: int, known: float) -> None:
    """Only whether an answer lies inside differs (.9 and .6 of them): the count is sufficient, and has a known AUC.

    The label is wrong throughout, where log p = -phi of the released label, whose mean is the same on both sides.
    """
    random = np.random.default_rng(1)
    parts = []
    for chance in (0.9, 0.6, 0.9, 0.6):
        inside = random.random((IMAGES, m)) < chance
        outside = random.uniform(1, 2, (IMAGES, m)) * random.choice([-1, 1], (IMAGES, m))
        parts.append(answers(-20 + np.where(inside, random.uniform(-1, 1, (IMAGES, m)), outside)))
    asked, counts = four(parts), np.arange(m + 1)
    p, q = (binom.pmf(counts, m, chance) for chance in (0.9, 0.6))
    best = float(((counts[:, None] > counts) * np.outer(p, q)).sum() + (p * q).sum() / 2)
    found = regression_attack(asked, (19.0, 21.0))
    assert best == pytest.approx(known, abs=1e-5)
    assert reach(found) == pytest.approx(best, abs=0.01)
    assert reach(mean_loss_attack(asked)) == pytest.approx(0.5, abs=SAMPLING)
    assert reach(regression_attack(asked, (0.0, 1.0))) < best - 0.05  # the spread of phi alone tells less
    threshold, _ = best_threshold(*found.known)
    assert threshold == pytest.approx(0, abs=1.5)  # log-odds


@pytest.mark.parametrize("m", [1, 4])
def test_who_takes_the_time_counts_candidates(m: int) -> None:
    """Answers tell nothing, numbers of candidates (Poisson, means 3 and 4) do; without the clock nothing is found."""
    random, parts = np.random.default_rng(2), []
    for mean in (3.0, 4.0, 3.0, 4.0):
        said = answers(random.normal(0, 1, (IMAGES, m)))
        parts.append(Answers(said.logits, said.labels, random.poisson(mean, (IMAGES, m))))
    asked = four(parts)
    counts = np.arange(60 * m)
    p, q = (poisson.pmf(counts, m * mean) for mean in (3.0, 4.0))
    best = float(((counts[:, None] < counts) * np.outer(p, q)).sum() + (p * q).sum() / 2)  # of the sum, which is sufficient
    assert reach(regression_attack(asked, None, timed=True)) == pytest.approx(best, abs=SAMPLING)
    assert reach(regression_attack(asked, None)) == pytest.approx(0.5, abs=SAMPLING)
    assert reach(regression_attack(asked.first(), None, timed=True)) <= reach(regression_attack(asked, None, timed=True))


@pytest.mark.parametrize("interval", [None, (1.0, 3.0)])
def test_null(interval: tuple[float, float] | None) -> None:
    asked = noisy([2, 2], 1.0, 1.0, 8)
    for scores in (loss_attack(asked), mean_loss_attack(asked), regression_attack(asked, interval), gap_attack(asked)):
        assert reach(scores) == pytest.approx(0.5, abs=SAMPLING)


def test_shuffled_answers_say_nothing_of_membership() -> None:
    """Where the sides never overlap, the null still finds nothing, and keeps every image with its label, scored or known."""
    asked = noisy([30, -30], 1.0, 1.0, 4)
    null = asked.shuffled(0)
    assert reach(mean_loss_attack(asked)) == 1
    for scores in (mean_loss_attack(null), regression_attack(null, None), gap_attack(null)):
        assert reach(scores) == pytest.approx(0.5, abs=SAMPLING)
    for pairs in ((asked.scored, null.scored), (asked.known, null.known)):
        before, after = (np.concatenate([side.logits for side in pair]) for pair in pairs)
        np.testing.assert_array_equal(np.sort(before, axis=None), np.sort(after, axis=None))
        assert (before != after).any()
    assert (asked.shuffled(1).scored.members.logits != null.scored.members.logits).any()
    np.testing.assert_array_equal(asked.shuffled(0).scored.members.logits, null.scored.members.logits)


def test_shuffled_answers_keep_their_labels_and_numbers() -> None:
    def numbered(start: int) -> Answers:
        numbers = np.arange(start, start + 5)
        logits = np.stack([numbers, 0.0 * numbers], axis=1)[:, None].repeat(2, axis=1)
        return Answers(logits, numbers % 2, numbers[:, None] + np.arange(2))

    null = four([numbered(10 * part) for part in range(4)]).shuffled(0)
    for part in (*null.scored, *null.known):
        np.testing.assert_array_equal(part.labels, part.logits[:, 0, 0] % 2)
        np.testing.assert_array_equal(part.drawn, part.logits[:, :1, 0] + np.arange(2))


def test_features_by_hand() -> None:
    """Two answers, one right with phi 2 and one wrong, whose released label has phi 4; the interval ends at 2."""
    made = features(answers(np.array([[2.0, -4.0]])), (0.0, 2.0))
    log_p = -(np.log1p(np.exp(-2)) + np.log1p(np.exp(4))) / 2
    np.testing.assert_allclose(made, [[log_p, 3, 1, 0.5, 0.5]])
    np.testing.assert_allclose(features(answers(np.array([[2.0, -4.0]])), None), made[:, :4])
    said = answers(np.array([[2.0, -4.0]]))
    timed = features(Answers(said.logits, said.labels, np.array([[1, 4]])), None, timed=True)
    np.testing.assert_allclose(timed, [[*made[0, :4], 2.5]])


def test_nearby_images_are_one_grey_level_away() -> None:
    image = np.array([[0, 255, 7]] * 200, dtype=np.uint8)
    near = nearby_images(image, 5, seed=3)
    assert (near.shape, near.dtype) == ((5, 200, 3), np.uint8)
    assert set(near[..., 0].ravel()) == {0, 1}
    assert set(near[..., 1].ravel()) == {254, 255}
    assert set(near[..., 2].ravel()) == {6, 8}
    assert len(np.unique(near.reshape(5, -1), axis=0)) == 5
    assert 0.4 < (near[..., 2] == 8).mean() < 0.6
    np.testing.assert_array_equal(near, nearby_images(image, 5, seed=3))
    assert (near != nearby_images(image, 5, seed=4)).any()


@pytest.mark.parametrize(
    ("logits", "labels", "drawn", "sentence"),
    [
        (np.zeros((3, 2)), np.zeros(3, int), np.ones((3, 2)), r"logits \[n, M >= 1, C\]"),
        (np.zeros((3, 0, 2)), np.zeros(3, int), np.ones((3, 0)), r"not \(3, 0, 2\)"),
        (np.zeros((3, 2, 2)), np.zeros(2, int), np.ones((3, 2)), r" \(2,\) and"),
        (np.zeros((3, 2, 2)), np.zeros(3, int), np.ones(3), r"and \(3,\)"),
        (np.full((1, 2, 2), np.nan), np.zeros(1, int), np.ones((1, 2)), "NaN"),
        (np.zeros((1, 2, 2)), np.full(1, 2), np.ones((1, 2)), r"0\.\.1"),
    ],
)
def test_refuses_answers(logits: np.ndarray, labels: np.ndarray, drawn: np.ndarray, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Answers(logits, labels, drawn)


# The command


def test_the_command(copied_drawn: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed half-way it continues, and ends with the same row; with `stable` asking again gives nothing."""
    options = ("--profile", tiny, "--device", "cpu", "--defense", "undefended", "--m", 2, "--count", 10)
    run = tiny_run(copied_drawn, tiny)
    path = run.results_dir("clean") / "attack_diffence-undefended-m2-10images.json"
    assert call(attack_diffence, copied_drawn, *options).code == 0
    whole = json.loads(path.read_text())
    questions = run.outputs_dir / "undefended-questions"
    chunks = sorted(questions.rglob("*.npz"))
    assert len(chunks) == 2 * 2 * 4
    for chunk in chunks[5:]:
        chunk.unlink()
    chunks[4].write_bytes(chunks[4].read_bytes()[:200])  # torn
    asked: list[Any] = []
    ask = common.experiments.repeated_queries._query_chunk

    def counted(*given: Any) -> Any:
        asked.append(given)
        return ask(*given)

    monkeypatch.setattr(common.experiments.repeated_queries, "_query_chunk", counted)
    answer = call(attack_diffence, copied_drawn, *options)
    assert answer.code == 0, answer.err
    assert len(asked) == 12
    row = json.loads(path.read_text())
    for made in (row, whole):
        made.pop("time")
        for one in made["runs"]:
            assert min(one.pop("cpu_s_per_image").values()) > 0
    assert row == whole

    assert [(one["scenario"], one["stable"]) for one in row["runs"]] == [("1", False), ("1", True), ("3", False), ("3", True)]
    assert row["m"] == 2
    assert row["scored"] == row["known"] == {"members": 10, "non_members": 10}
    for one in row["runs"]:
        assert (one["interval"] is None) == (one["scenario"] == "3")
        learners = {"once, learned", "once, learned, timed", "same, learned", "near, learned", "same, learned, timed"}
        assert set(one["attacks"]) == {"once", "same, mean", "near, mean", *learners}
        single, mean = dict(one["attacks"]["once"]), dict(one["attacks"]["same, mean"])
        draws = single.pop("draws"), mean.pop("draws")
        assert 1 <= draws[0] <= 4 and draws[1] > 1.5 * draws[0]
        single.pop("threshold"), mean.pop("threshold")  # a mean of equal numbers, up to rounding
        assert (single == mean) == one["stable"]
    assert answer.out.count("| scenario 1, stable | ") == 8
    shown = " ".join(answer.out.split())
    assert f"| without | gap floor | {row['reference']['correctness']['auc']:.3f} | " in shown
    assert f"| {row['runs'][-1]['attacks']['near, learned']['null_auc']:.3f} | " in shown


def test_members_and_non_members_keep_their_sides(
    copied_drawn: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that is sure of members' labels and of no others': every attacker but the null finds all of them."""

    def planted(service: Any, examples: Any, side: str, places: range, m: int, progress: Any) -> dict[str, np.ndarray]:
        size, labels = len(places), examples.labels[places.start : places.stop].numpy()
        logits = np.random.default_rng(places.start).normal(0, 0.1, (2, size, m, 10)).astype(np.float32)
        logits[:, np.arange(size), :, labels] += 5.0 if side == "members" else -5.0
        return {"logits": logits, "drawn": np.ones((2, size, m), np.int64), "cpu": np.ones(2)}

    monkeypatch.setattr(common.experiments.repeated_queries, "_query_chunk", planted)
    options = ("--profile", tiny, "--device", "cpu", "--defense", "undefended", "--m", 3, "--count", 30, "--scenario", 1)
    assert call(attack_diffence, copied_drawn, *options).code == 0
    path = tiny_run(copied_drawn, tiny).results_dir("clean") / "attack_diffence-undefended-m3-30images.json"
    for one in json.loads(path.read_text())["runs"]:
        for name, attack in one["attacks"].items():
            assert attack["auc"] == 1, name
            assert 0.2 < attack["null_auc"] < 0.8, name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--m", "0"], "--m must be at least 1, not 0"),
        (["--count", "0"], "--count must be at least 1, not 0"),
        (["--scenario", "4"], "unknown scenario '4'"),
        (["--defense", "undefned"], "Did you mean 'undefended'?"),
    ],
)
def test_refuses_arguments(workspace: Path, call: Call, arguments: list[str], words: str) -> None:
    answer = call(attack_diffence, workspace / "synthetic", "--defense", "undefended", *arguments)
    assert words in refusal(answer)
