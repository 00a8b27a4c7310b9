"""The metrics of a row that tables and figures show: each a function of a row, which returns a value and half its interval."""

from typing import Any

import numpy as np
from scipy.stats import norm

from common.metrics.intervals import LEVEL

Row = dict[str, Any]
Value = tuple[float, float | None]


def half_width(interval: list[float]) -> float:
    """Half the width of an interval."""
    return (interval[1] - interval[0]) / 2


def binomial_half_width(rate: float, points: int) -> float:
    """Half the width of the 95% interval of a rate of independent points, by the normal approximation."""
    return float(norm.isf((1 - LEVEL) / 2) * np.sqrt(rate * (1 - rate) / points))


def best_auc(row: Row) -> Value:
    """The AUC of the best of the paper's five attacks, 0..1."""
    return row["best"]["auc"], half_width(row["attacks"][row["best"]["attack"]]["auc_interval"])


def best_accuracy(row: Row) -> Value:
    """The largest accuracy of the paper's five attacks, 0..1, at the thresholds of the row's protocol."""
    return row["best"]["accuracy"], binomial_half_width(row["best"]["accuracy"], sum(row["scored"].values()))


def test_accuracy(row: Row) -> Value:
    """The accuracy on the scored non-members, which are test images, 0..1."""
    accuracy = row["accuracy"]["non_members"]
    return accuracy, binomial_half_width(accuracy, row["scored"]["non_members"])


def train_accuracy(row: Row) -> Value:
    """The accuracy on the scored members, 0..1."""
    accuracy = row["accuracy"]["members"]
    return accuracy, binomial_half_width(accuracy, row["scored"]["members"])


def gap_floor(row: Row) -> Value:
    """The AUC of the gap attack, 0..1."""
    return row["gap_floor"], half_width(row["attacks"]["correctness"]["auc_interval"])


def calibration_error(row: Row) -> Value:
    """The expected calibration error, 0..1. It has no interval."""
    return row["utility"]["ece"], None


def largest_rate(row: Row, rate: str) -> Value:
    """The largest TPR (`tpr_at_fpr`) or TNR (`tnr_at_fnr`) of any attack, LiRA and RMIA among them, 0..1."""
    best = max((attack[rate] for attack in row["attacks"].values()), key=lambda one: one["rate"])
    return best["rate"], half_width(best["interval"])


def attack_auc(row: Row, attack: str) -> Value:
    """The AUC of one attack, 0..1."""
    return row["attacks"][attack]["auc"], half_width(row["attacks"][attack]["auc_interval"])


def attack_accuracy(row: Row, attack: str) -> Value:
    """The accuracy of one attack, 0..1."""
    accuracy = row["attacks"][attack]["accuracy"]
    return accuracy, binomial_half_width(accuracy, sum(row["scored"].values()))
