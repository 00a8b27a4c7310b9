"""The attacks that threshold one number of a prediction, against closed forms and the released code's mistakes."""

import math

import numpy as np
import pytest
import torch

from common.attacks import METRIC_ATTACKS, Outputs
from common.metrics import privacy as metrics
from common.metrics.privacy import Floats


def of_probabilities(p: list[float] | Floats, label: int) -> Outputs:
    return Outputs(np.log(np.asarray(p, dtype=float))[None], np.array([label]))


def score(name: str, outputs: Outputs) -> float:
    return float(METRIC_ATTACKS[name](outputs)[0])


@pytest.mark.parametrize(("classes", "expected"), [(10, 2.16715), (100, 4.56907)])
def test_m_entropy_of_the_uniform_prediction(classes: int, expected: float) -> None:
    c = classes
    formula = (1 - 1 / c) * (math.log(c) + math.log(c / (c - 1)))
    assert formula == pytest.approx(expected, abs=5e-6)
    assert -score("m-entropy", of_probabilities([1 / c] * c, 0)) == pytest.approx(formula, abs=1e-12)


@pytest.mark.parametrize(("label", "expected"), [(0, 0.214005), (1, 1.685562)])
def test_m_entropy_of_two_classes(label: int, expected: float) -> None:
    p_label = (0.7, 0.3)[label]
    m = -score("m-entropy", of_probabilities([0.7, 0.3], label))
    assert m == pytest.approx(expected, abs=5e-7)
    assert m == pytest.approx(-2 * (1 - p_label) * math.log(p_label), abs=1e-12)


def test_m_entropy_of_certainty() -> None:
    certain = np.array([[500.0, 0, 0], [500.0, 0, 0]])
    right, wrong = METRIC_ATTACKS["m-entropy"](Outputs(certain, np.array([0, 1])))
    assert right == pytest.approx(0, abs=1e-12)
    assert -wrong == pytest.approx(2 * 30 * math.log(10), abs=1e-10)
    assert -wrong == pytest.approx(138.1551, abs=5e-5)


def test_m_entropy_is_the_formula_of_song_and_mittal() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (200, 6)), rng.integers(0, 6, 200)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = []
    for row, y in zip(p, labels, strict=True):
        others = sum(-q * math.log(1 - q) for k, q in enumerate(row) if k != y)
        expected.append(-(1 - row[y]) * math.log(row[y]) + others)
    np.testing.assert_allclose(-METRIC_ATTACKS["m-entropy"](Outputs(logits, labels)), expected, rtol=1e-9)


def test_m_entropy_falls_with_the_true_probability_and_rises_with_the_others() -> None:
    """Mass moved to the true class raises the score; mass moved from it to any other class lowers it."""
    p, h = np.array([0.3, 0.4, 0.2, 0.1]), 1e-4
    here = score("m-entropy", of_probabilities(p, 0))
    for k in (1, 2, 3):
        move = h * (np.eye(4)[0] - np.eye(4)[k])
        up, down = (score("m-entropy", of_probabilities(p + sign * move, 0)) for sign in (1, -1))
        assert up > here > down


@pytest.mark.parametrize("phi", [30.0, 60.0, -30.0, -60.0])
def test_m_entropy_is_precise_where_p_rounds_to_one(phi: float) -> None:
    """Two classes: M = -2 (1 - p_y) ln p_y with 1 - p_y = 1 / (1 + e^phi), which is 0 as a difference beyond phi = 37."""
    expected = 2 / (1 + math.exp(phi)) * (math.log1p(math.exp(-phi)))
    assert -score("m-entropy", Outputs(np.array([[phi, 0.0]]), np.array([0]))) == pytest.approx(expected, rel=1e-9, abs=0)


def test_entropy() -> None:
    assert score("entropy", of_probabilities([0.1] * 10, 3)) == pytest.approx(-math.log(10), abs=1e-12)
    assert score("entropy", Outputs(np.array([[1000.0, 0, 0]]), np.array([1]))) == 0
    expected = 0.7 * math.log(0.7) + 0.3 * math.log(0.3)
    for label in (0, 1):
        assert score("entropy", of_probabilities([0.7, 0.3], label)) == pytest.approx(expected, abs=1e-12)


def test_loss_and_confidence_are_log_p_of_the_true_label() -> None:
    for name in ("loss", "confidence"):
        assert score(name, of_probabilities([0.7, 0.2, 0.1], 1)) == pytest.approx(math.log(0.2), abs=1e-12)


@pytest.mark.parametrize("name", ["loss", "confidence", "m-entropy"])
def test_a_certain_mistake_is_the_least_member_like(name: str) -> None:
    """In float32, p_y of the last row is exactly 0; the released code gives that the most member-like loss of all."""
    logits = np.array([[120.0, 0, 0], [3, 0, 0], [0, 0, 0], [0, 3, 0], [0, 120, 0]], dtype=np.float32)
    assert torch.softmax(torch.from_numpy(logits), dim=1)[4, 0] == 0
    scores = METRIC_ATTACKS[name](Outputs(logits.astype(np.float64), np.zeros(5, dtype=int)))
    assert (np.diff(scores) < 0).all()


def test_confidence_does_not_tie_the_surest_members() -> None:
    scores = METRIC_ATTACKS["confidence"](Outputs(np.array([[40.0, 0], [60, 0], [80, 0]]), np.zeros(3, dtype=int)))
    assert scores[0] < scores[1] < scores[2] < 0


def test_correctness_is_the_gap_attack() -> None:
    """AUC and best accuracy are (training accuracy + 1 - test accuracy) / 2."""
    members = Outputs(np.eye(3)[[0] * 9 + [1]], np.zeros(10, dtype=int))  # accuracy .9
    others = Outputs(np.eye(3)[[0] * 6 + [2] * 4], np.zeros(10, dtype=int))  # accuracy .6
    a, b = METRIC_ATTACKS["correctness"](members), METRIC_ATTACKS["correctness"](others)
    assert metrics.auc(a, b) == pytest.approx(0.65)
    assert metrics.best_threshold(a, b) == (1.0, pytest.approx(0.65))


@pytest.mark.parametrize("name", METRIC_ATTACKS)
def test_a_point_is_scored_whatever_its_neighbours_are(name: str) -> None:
    rng = np.random.default_rng(0)
    outputs = Outputs(rng.normal(0, 3, (20, 6)), rng.integers(0, 6, 20))
    alone = [METRIC_ATTACKS[name](outputs.take(np.array([i])))[0] for i in range(20)]
    np.testing.assert_allclose(METRIC_ATTACKS[name](outputs), alone, rtol=1e-12)
