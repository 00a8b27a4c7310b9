"""What predictions are worth: ECE, NLL, reliability diagrams and label agreement."""

import math
import warnings
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from conftest import planted
from sklearn.metrics import log_loss

from common.attacks import Outputs
from common.errors import UserError
from common.metrics import calibration
from common.metrics.privacy import Floats
from common.pair import Pair
from common.report import figures, measure

CLASSES = 10


def with_confidence(confidence: Floats, classes: int = 4) -> Floats:
    """Rows of probabilities whose largest, of class 0, is `confidence`."""
    others = np.repeat((1 - confidence)[:, None] / (classes - 1), classes - 1, axis=1)
    return np.concatenate([confidence[:, None], others], axis=1)


def test_ece_of_certainty() -> None:
    assert calibration.ece(with_confidence(np.ones(10)), [0] * 8 + [1] * 2) == pytest.approx(0.2)


def test_ece_of_perfect_calibration() -> None:
    assert calibration.ece(with_confidence(np.full(4, 0.75)), [0, 0, 0, 1]) == pytest.approx(0, abs=1e-15)
    confidence = np.random.default_rng(0).uniform(0.3, 1, 200_000)
    right = np.random.default_rng(1).uniform(size=200_000) < confidence
    assert calibration.ece(with_confidence(confidence), np.where(right, 0, 1)) < 0.006


def test_ece_bins_are_open_below_and_closed_above() -> None:
    """.5 (wrong) lies in (0, .5] and .8 (right) in (.5, 1]: (.5 + .2) / 2. In one bin they would give .15."""
    p = with_confidence(np.array([0.5, 0.8]))
    assert calibration.ece(p, [1, 0], bins=2) == pytest.approx(0.35)
    assert calibration.ece(p, [1, 0], bins=1) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("p", "labels", "bins"),
    [
        ([[2.0, 1.0]], [0], 10),
        ([[1.5, -0.5]], [0], 10),
        ([[0.6, 0.6]], [0], 10),
        ([[np.nan, 1.0]], [0], 10),
        ([[0.5, 0.5]], [0, 1], 10),
        ([0.5, 0.5], [0, 1], 10),
        (np.empty((0, 3)), [], 10),
        ([[0.5, 0.5]], [0], 0),
    ],
)
def test_ece_refuses(p: list, labels: list, bins: int) -> None:
    with pytest.raises(UserError):
        calibration.ece(p, labels, bins)


def test_bins_add_up_and_empty_ones_are_not_numbers() -> None:
    """.95 three times, two of them right, and .62 wrong: bins 10 and 7 of ten."""
    bins = calibration.calibration_bins(with_confidence(np.array([0.95, 0.95, 0.95, 0.62])), [0, 0, 1, 1])
    assert bins.counts.tolist() == [0] * 6 + [1] + [0] * 2 + [3]
    assert bins.accuracy[[6, 9]] == pytest.approx([0, 2 / 3])
    assert bins.confidence[[6, 9]] == pytest.approx([0.62, 0.95])
    assert np.isnan(bins.accuracy[:6]).all()


def test_bins_above_the_surest_prediction_are_there_too() -> None:
    bins = calibration.calibration_bins(with_confidence(np.array([0.62])), [0])
    assert [len(part) for part in (bins.counts, bins.confidence, bins.accuracy)] == [10, 10, 10]


def test_ece_has_ten_bins_unless_told_otherwise() -> None:
    """.905 (wrong) and .95 (right) share (.9, 1]: |.5 - .9275|. Of eleven bins one ends between them."""
    assert calibration.ece(with_confidence(np.array([0.905, 0.95])), [1, 0]) == pytest.approx(0.4275)


def test_ece_takes_probabilities_that_were_rounded_to_half_precision() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(100), 50).astype(np.float16)
    assert not np.allclose(p.astype(float).sum(1), 1)
    assert 0 <= calibration.ece(p, np.zeros(50, dtype=int)) <= 1


def test_nll_of_closed_forms() -> None:
    """Uniform over 4 classes: log 4. A thousand against 0, wrong: 1000, where log of the probability is infinite."""
    assert calibration.nll(np.zeros((3, 4)), [0, 1, 2]) == pytest.approx(math.log(4), abs=1e-12)
    assert calibration.nll([[1000.0, 0.0]], [1]) == pytest.approx(1000)
    assert calibration.nll([[60.0, 0.0]], [0]) == pytest.approx(math.exp(-60), rel=1e-9)


def test_nll_is_scikit_learns() -> None:
    outputs = planted(500, 2.0, seed=0)
    theirs = log_loss(outputs.labels, outputs.probabilities, labels=range(CLASSES))
    assert calibration.nll(outputs.logits.astype(np.float32), outputs.labels) == pytest.approx(theirs, abs=1e-6)


def test_reliability_is_a_picture_with_a_panel_a_scenario(tmp_path: Path) -> None:
    outputs = planted(300, 2.0, seed=1)
    widths = []
    for scenarios in ([None], [None, "1"]):
        figures.draw_reliability(tmp_path / "r.png", "generated images, undefended", dict.fromkeys(scenarios, outputs))
        image = matplotlib.image.imread(tmp_path / "r.png")
        assert image[..., :3].std() > 0.02
        widths.append(image.shape[1])
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)


def test_phi_of_a_model_that_answers_with_labels_alone_is_drawn_without_a_warning(tmp_path: Path) -> None:
    hard = np.eye(CLASSES) * 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.draw_phi(tmp_path / "phi.png", "", {"": Pair(hard, hard)})
    assert (tmp_path / "phi.png").stat().st_size > 5_000


def test_utility_counts_changed_labels_on_each_side() -> None:
    released = Pair(Outputs(np.eye(4)[[0, 1, 2, 0]], np.arange(4)), Outputs(np.eye(4), np.array([0, 1, 0, 3])))
    worth = measure.utility(released, Pair(np.eye(4), np.eye(4)))
    assert worth["label_agreement"] == {"members": 0.75, "non_members": 1.0}
    assert worth["accuracy"] == 0.75
    assert worth["ece"] == pytest.approx(abs(0.75 - math.e / (math.e + 3)))
    assert worth["nll"] == pytest.approx(math.log(math.e + 3) - 0.75)
    # All four predictions have the confidence .475, in the fifth bin.
    assert worth["bins"]["counts"] == [0, 0, 0, 0, 4, 0, 0, 0, 0, 0]
    assert worth["bins"]["accuracy"] == [None] * 4 + [0.75] + [None] * 5
    assert worth["bins"]["confidence"][4] == pytest.approx(math.e / (math.e + 3))
