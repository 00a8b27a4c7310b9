"""What attacks take and return: Outputs against closed forms and what they refuse; every attack where members stand out."""

import math

import numpy as np
import pytest
from conftest import planted

from common.attacks import ATTACKS, TRAINED, NNOptions, Outputs
from common.errors import UserError
from common.metrics import privacy as metrics
from common.metrics.privacy import Floats
from common.pair import Pair

# Outputs


def test_outputs_are_float64_whatever_comes_in() -> None:
    outputs = Outputs(np.array([[1, 2, 3]], dtype=np.float32), np.array([2], dtype=np.uint8))
    assert (outputs.logits.dtype, outputs.labels.dtype) == (np.float64, np.int64)
    assert (len(outputs), outputs.classes) == (1, 3)
    np.testing.assert_allclose(outputs.probabilities, [[0.09003057, 0.24472847, 0.66524096]], rtol=1e-7)
    np.testing.assert_allclose(outputs.loss, [-math.log(0.66524096)], rtol=1e-7)


def test_probabilities_and_loss_of_large_logits() -> None:
    outputs = Outputs(np.array([[1000.0, 0, 0], [1000.0, 0, 0], [60.0, 0, 0]]), np.array([0, 1, 0]))
    np.testing.assert_array_equal(outputs.probabilities[:2], [[1, 0, 0], [1, 0, 0]])
    assert outputs.loss[0] == 0
    assert outputs.loss[1] == pytest.approx(1000, rel=1e-12)
    assert outputs.loss[2] == pytest.approx(2 * math.exp(-60), rel=1e-12)  # not rounded to 0


def test_take_picks_images() -> None:
    outputs = planted(5, 0, seed=0)
    taken = outputs.take(np.array([3, 1]))
    np.testing.assert_array_equal(taken.logits, outputs.logits[[3, 1]])
    np.testing.assert_array_equal(taken.labels, outputs.labels[[3, 1]])


@pytest.mark.parametrize(
    ("logits", "labels", "sentence"),
    [
        (np.array([[0, np.nan], [0, 1], [np.inf, 0]]), [0, 1, 0], "2 of 3 rows"),
        (np.zeros((2, 3)), [0, 3], r"integers in 0\.\.2"),
        (np.zeros((2, 3)), [0, -1], r"integers in 0\.\.2"),
        (np.zeros((2, 3)), [0.0, 1.0], r"integers in 0\.\.2"),
        (np.zeros((2, 3)), [0], "logits"),
        (np.zeros((2, 1)), [0, 0], "logits"),
        (np.zeros(3), 0, "logits"),
        (np.zeros((0, 3)), [], "logits"),
    ],
)
def test_outputs_refuse(logits: Floats, labels: list, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Outputs(logits, np.asarray(labels))


# every attack, as the evaluation calls it


def test_registry() -> None:
    assert list(ATTACKS) == ["nn", "loss", "confidence", "entropy", "m-entropy", "correctness"]
    assert set(ATTACKS) >= TRAINED == {"nn"}


@pytest.mark.parametrize("name", ATTACKS)
def test_members_score_higher(name: str) -> None:
    """Members are right and sure, non-members wrong and unsure: every attack separates them, in the same direction."""
    wrong = planted(40, -4, seed=4, spread=0.3)
    unsure = Outputs(wrong.logits * 0.5, wrong.labels)
    known = Pair(planted(100, 6, seed=0, spread=0.3), unsure.take(np.arange(30)))
    members = planted(50, 6, seed=2, spread=0.3)
    scores = ATTACKS[name](known, Pair(members, unsure), NNOptions(nn_epochs=20), 0)
    assert metrics.auc(*scores.scored) == 1.0
    assert list(scores.scored.map(np.shape)) == [(50,), (40,)]
    assert metrics.auc(*scores.known) == 1.0
    report = metrics.attack_report(scores.scored, scores.known, oracle=False)
    assert report["accuracy_oracle"] == 1.0
    assert report["accuracy"] > 0.9  # the lowest known member is the threshold: a few members fall below it
