"""LiRA and RMIA worked out by hand: from planted phi of four shadow models, and from outputs of few points."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import defense_run, random_split
from scipy.special import logit

from common.attacks.contract import Scores, shuffled_scores
from common.attacks.shadow import SHADOW_ATTACKS, ShadowOutputs, possible_attacks, shadow_attacks
from common.config import Attack, Data
from common.data.partition import Examples, Split, evaluation_pools
from common.defenses import DEFENSES
from common.experiments import shadow_scores
from common.experiments.shadow_models import train_shadow
from common.metrics.privacy import Floats
from common.pair import Pair
from common.run import Run


def test_the_null_keeps_scores_and_forgets_membership() -> None:
    scores = Scores(Pair(np.arange(100.0), np.arange(100.0) - 200), Pair(np.arange(50.0), np.arange(50.0) - 100))
    null = shuffled_scores(scores, 0)
    for before, after in ((scores.scored, null.scored), (scores.known, null.known)):
        assert sorted(np.concatenate([*after])) == sorted(np.concatenate([*before]))
        assert list(after.map(len)) == list(before.map(len))
    assert 30 < (null.scored.members < 0).sum() < 70
    np.testing.assert_array_equal(shuffled_scores(scores, 0).scored.members, null.scored.members)
    assert not np.array_equal(shuffled_scores(scores, 1).scored.members, null.scored.members)


def names(examples: Examples) -> list[bytes]:
    """Every image by its pixels."""
    return [image.numpy().tobytes() for image in examples.images]


MIRRORED_SHIFT = 1  # of the target's phi where the mirrored image is asked about


@pytest.fixture
def mirror() -> bool:
    """Whether the attacker also asks about the mirrored images."""
    return False


@pytest.fixture
def planted_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: bool) -> tuple[dict[str, Scores], Scores]:
    """Scores of every attack, and the target's phi of the same points, with four shadow models whose phi are planted.

    phi of a shadow model is 2 where it was trained on the image, else 0, plus 1 for the models 0 and 1 and minus 1 for 2 and
    3. Of both pairs one model was trained on an image and one was not: IN phi are 3 and 1, OUT phi 1 and -1.
    """
    data = Data(members=24, reference=0, non_members=30, fit=6, known=8, scored=10)
    run, split, pools = defense_run(tmp_path, "undefended", data, {}), random_split(data), evaluation_pools(data, "clean")
    run = replace(run, config=replace(run.config, attack=Attack(shadows=4, rmia_gamma=1.0, mirror=mirror)))
    trained: list[list[bytes]] = []

    def record(shadow: Run, own: Split) -> torch.nn.Module:
        trained.append(names(own.members))
        return torch.nn.Identity()

    monkeypatch.setitem(DEFENSES, "undefended", replace(DEFENSES["undefended"], train=record))
    for index in range(4):
        train_shadow(run, split, "undefended", index)
    targets = np.random.default_rng(0).normal(size=2 * 18)

    def planted(run: Run, *arguments: Any) -> Floats:
        if run.shadow is None:
            return targets[None] + MIRRORED_SHIFT * arguments[3]
        model, asked = run.shadow[0], torch.from_numpy(arguments[2].index)
        images = names(split.members.take(asked)) + names(split.non_members.take(asked))
        return np.array([[2.0 * (image in trained[model]) + (1 if model < 2 else -1) for image in images]])

    monkeypatch.setattr(shadow_scores, "model_phi", planted)
    (found,) = shadow_scores.shadow_scores(run, "undefended", "clean", split, pools, [None])
    known, scored = slice(8), slice(8, 18)  # of the 18 points of a side that are asked about
    sides = Pair(targets[:18], targets[18:])
    return found, Scores(sides.map(lambda side: side[scored]), sides.map(lambda side: side[known]))


@pytest.mark.parametrize("mirror", [False, True])
def test_lira_takes_every_image_for_in_where_the_model_was_trained_on_it(
    planted_scores: tuple[dict, Scores], mirror: bool
) -> None:
    """log N(x; 2, 1) - log N(x; 0, 1) = 2x - 2, for members and non-members alike, scored and known.

    The mirrored image's is 2 (x + 1) - 2; the mean of both views 2x - 1.
    """
    scores, target = planted_scores[0]["lira-online"], planted_scores[1]
    centre = 1 if mirror else 2
    for found, phi_of_target in ((scores.scored, target.scored), (scores.known, target.known)):
        for side, points in zip(found, phi_of_target, strict=True):
            np.testing.assert_allclose(side, 2 * points - centre)


def test_every_attack_with_shadow_models_says_the_labels_of_its_scores(planted_scores: tuple[dict, Scores]) -> None:
    """Known are 8 points from position 6 on, scored the 10 that follow, on both sides."""
    split = random_split(Data(members=24, reference=0, non_members=30, fit=6, known=8, scored=10))
    members, others = split.members.labels.numpy(), split.non_members.labels.numpy()
    for scores in planted_scores[0].values():
        assert scores.scored_labels is not None and scores.known_labels is not None
        expected = members[14:24], others[14:24], members[6:14], others[6:14]
        for labels, own in zip((*scores.scored_labels, *scores.known_labels), expected, strict=True):
            np.testing.assert_array_equal(labels, own)


def test_rmia_compares_with_the_known_non_members(planted_scores: tuple[dict, Scores]) -> None:
    """P_out is 1/2 everywhere: at gamma 1 a score is the share of known non-members of which the target is less sure."""
    scores, target = planted_scores[0]["rmia-offline"], planted_scores[1]
    for found, points in zip(scores.scored, target.scored, strict=True):
        np.testing.assert_array_equal(found, (points[:, None] > target.known.non_members).mean(axis=1))
    assert len(np.unique([*scores.scored])) > 3


@pytest.mark.parametrize(
    ("keep", "names"),
    [
        ([[0, 0]], ["rmia-offline"]),
        ([[0, 0], [0, 0]], ["lira-offline", "rmia-offline"]),
        ([[0, 1], [1, 0]], ["rmia-online", "rmia-offline"]),
        ([[1, 1], [1, 1], [0, 0]], ["rmia-online", "rmia-offline"]),  # one OUT model of each point: no spread
        ([[0, 1], [0, 1], [1, 0]], list(SHADOW_ATTACKS)),
        ([[0, 1], [0, 0], [0, 0]], ["lira-offline", "rmia-offline"]),  # no IN model of the first point
    ],
)
def test_an_attack_is_possible_where_every_point_has_the_models_that_it_needs(keep: list, names: list[str]) -> None:
    assert possible_attacks(np.array(keep, dtype=bool)) == names


def outputs_of(target: list[float], shadow: list[list[float]], keep: list[list[bool]]) -> ShadowOutputs:
    """One view of n points from probabilities of the true class; the last point is RMIA's population."""
    last = np.array([len(target) - 1])
    return ShadowOutputs(logit([target]), logit(shadow)[:, None], np.array(keep), np.zeros(len(target), np.int64), last)


def score_of_the_first(name: str, outputs: ShadowOutputs, options: Attack) -> float:
    first, others = np.array([0]), np.arange(1, len(outputs.labels))
    return float(shadow_attacks(outputs, Pair(first, others), Pair(first, others), options)[name].scored.members[0])


def test_models_that_trained_on_a_population_point_are_no_out_models_of_it() -> None:
    """r(x) = .4 / .5 lies below r(z) = .5 / .5; with the model that trained on z, r(z) would be .5 / .7."""
    outputs = outputs_of([0.4, 0.5], [[0.5, 0.9], [0.5, 0.5]], [[False, True], [False, False]])
    assert score_of_the_first("rmia-offline", outputs, Attack(rmia_gamma=1.0, rmia_a=1.0)) == 0


@pytest.mark.parametrize(("a", "score"), [(0.4, 1), (0.3, 0)])
def test_rmia_is_given_its_a(a: float, score: float) -> None:
    """r(x) = .6 / ((1 + a) / 4 + (1 - a) / 2) is .923 at a = .4 and .889 at .3; r(z) is .9."""
    outputs = outputs_of([0.6, 0.9], [[0.5, 1 - 1e-15]], [[False, False]])
    assert score_of_the_first("rmia-offline", outputs, Attack(rmia_gamma=1.0, rmia_a=a)) == score


@pytest.mark.parametrize(("gamma", "score"), [(1.1, 1), (1.3, 0)])
def test_rmia_is_given_its_gamma(gamma: float, score: float) -> None:
    """r(x) / r(z) = (.6 / .5) / (.5 / .5) = 1.2."""
    outputs = outputs_of([0.6, 0.5], [[0.5, 0.5]], [[False, False]])
    assert score_of_the_first("rmia-offline", outputs, Attack(rmia_gamma=gamma, rmia_a=1.0)) == score


@pytest.mark.parametrize(("tail", "score"), [("one-sided", -3), ("reference", 4.5 + np.log(2 * np.pi) / 2)])
def test_lira_is_given_its_tail(tail: Any, score: float) -> None:
    """OUT = N(0, 1) and the target's phi is -3: three deviations below, and an unusual value."""
    ones = np.array([-1.0, 1.0])[:, None, None] + np.zeros(2)
    outputs = ShadowOutputs(np.array([[-3.0, 0.0]]), ones, np.zeros((2, 2), bool), np.zeros(2, np.int64), np.array([1]))
    assert score_of_the_first("lira-offline", outputs, Attack(lira_tail=tail)) == pytest.approx(score)


@pytest.mark.parametrize(("variance", "score"), [("example", 1.0), ("global", 1 / np.sqrt(5))])
def test_lira_is_given_its_variance(variance: Any, score: float) -> None:
    """OUT spreads of two points are 1 and 3, of all residuals sqrt(5); the target's phi is 1."""
    spread = np.array([-1.0, 1.0])[:, None, None] * [1.0, 3.0]
    outputs = ShadowOutputs(np.array([[1.0, 0.0]]), spread, np.zeros((2, 2), bool), np.zeros(2, np.int64), np.array([1]))
    assert score_of_the_first("lira-offline", outputs, Attack(lira_variance=variance)) == pytest.approx(score)
