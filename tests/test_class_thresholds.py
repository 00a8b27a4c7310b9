"""Thresholds per class, as an option (Song & Mittal): by hand, and how they overfit."""

import numpy as np
import pytest

from common.errors import UserError
from common.metrics import privacy as metrics
from common.metrics.privacy import Floats
from common.pair import Pair


def null_classes(classes: int, points: int, seed: int) -> tuple[Floats, np.ndarray]:
    """Scores N(0, 1) of `points` points of each class, and their labels."""
    return np.random.default_rng(seed).normal(size=classes * points), np.arange(classes).repeat(points)


def test_thresholds_per_class_by_hand() -> None:
    """Class 0 separates at 10 and class 1 at 1; class 2 has no known non-member and takes the global threshold, 1."""
    known = ([10, 11, 1, 2, 5], [8, 9, 0, 0], [0, 0, 1, 1, 2], [0, 0, 1, 1])
    thresholds = metrics.class_thresholds(*known)
    assert thresholds == (1.0, {0: 10.0, 1: 1.0})
    assert metrics.class_accuracy(*known, thresholds) == 1.0
    assert metrics.class_accuracy([9, 2], [11, 1], [0, 2], [0, 2], thresholds) == 0.25  # only 9 stays below its own


def test_thresholds_per_class_overfit_where_known_points_are_few() -> None:
    """No leakage, 10 + 10 known points a class: .616 on the known points themselves, .500 on fresh ones."""
    known_side, scored_side = [], []
    for seed in range(0, 40, 4):
        (a, y), (b, _), (c, z), (d, _) = (null_classes(100, n, seed + i) for i, n in enumerate((10, 10, 20, 20)))
        thresholds = metrics.class_thresholds(a, b, y, y)
        known_side.append(metrics.class_accuracy(a, b, y, y, thresholds))
        scored_side.append(metrics.class_accuracy(c, d, z, z, thresholds))
    assert np.mean(known_side) == pytest.approx(0.616, abs=0.006)
    assert np.mean(scored_side) == pytest.approx(0.500, abs=0.01)


def test_thresholds_per_class_need_a_label_a_score() -> None:
    with pytest.raises(UserError, match="label for each score"):
        metrics.class_thresholds([1, 2], [0, 1], [0, 0], [0])


@pytest.mark.parametrize(("oracle", "accuracy"), [(False, 0.5), (True, 1.0)])
def test_report_fits_thresholds_per_class_on_the_points_of_the_protocol(oracle: bool, accuracy: float) -> None:
    """Known points call for 2 in class 0 and 20 in class 1; the scored ones for 1 and 10."""
    sides = [1, 10], [0, 9], [2, 20], [0, 9]
    labels = Pair(np.array([0, 1]), np.array([0, 1]))
    report = metrics.attack_report(Pair(*sides[:2]), Pair(*sides[2:]), oracle, scored_labels=labels, known_labels=labels)
    assert report["accuracy_per_class"] == accuracy


@pytest.mark.parametrize("oracle", [False, True])
def test_report_reads_the_labels_of_the_points_that_it_fits_on(oracle: bool) -> None:
    """Class 0 separates at 1 and class 1 at 10, on scored and known points alike; the known ones come in the order 1, 0."""
    scored, known = (Pair(np.array(order), np.array(order)) for order in ([0, 1], [1, 0]))
    report = metrics.attack_report(Pair([1, 10], [0, 9]), Pair([10, 1], [9, 0]), oracle, 0.001, scored, known)
    assert report["accuracy_per_class"] == 1.0
