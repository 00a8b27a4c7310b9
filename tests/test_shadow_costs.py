"""What LiRA and RMIA cost with 64 shadow models: seconds on 10,000 points, and memory that is linear in points."""

import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from conftest import halves

from common.attacks.lira import lira
from common.attacks.rmia import rmia
from common.metrics.privacy import Floats

MODELS = 64

Attack = Callable[[], Floats]


def lira_of_two_views(points: int) -> Attack:
    g = np.random.default_rng(0)
    phi = g.normal(size=(1 + MODELS, 2, points))
    return partial(lira, phi[0], phi[1:], halves(MODELS, points, 0), online=True)


def rmia_against_as_many_z(points: int) -> Attack:
    """10,000 x 10,000 ratios would be 800 MB."""
    g = np.random.default_rng(0)
    x, z = g.normal(size=(2, 1 + MODELS, 1, points))
    return partial(rmia, x[0], x[1:], halves(MODELS, points, 0), z[0], z[1:], online=True)


each_attack = pytest.mark.parametrize("attack_on", [lira_of_two_views, rmia_against_as_many_z])


@each_attack
def test_64_models_on_10_000_points_take_less_than_5_seconds(attack_on: Callable[[int], Attack]) -> None:
    attack = attack_on(10_000)
    start = time.process_time()
    attack()
    assert time.process_time() - start < 5


@each_attack
def test_memory_is_linear_in_points(attack_on: Callable[[int], Attack]) -> None:
    peaks = []
    for points in (1000, 4000):
        attack = attack_on(points)
        tracemalloc.start()
        attack()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 3.5 < peaks[1] / peaks[0] < 4.5
