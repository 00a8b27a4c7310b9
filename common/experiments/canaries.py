"""Canaries: images with a wrong label, which a classifier can only know by heart (Aerni, Zhang and Tramer, CCS 2024).

Averages over members hide the few that a defense does not protect. A wrong label cannot be predicted from other images.
Whether a classifier answers with it therefore tells whether the image was a training image with that label.
"""

from dataclasses import dataclass

import numpy as np
import torch

from common.config import Data
from common.data.partition import Examples, evaluation_pools
from common.metrics.privacy import Ints
from common.seeds import derive_seed


@dataclass(frozen=True)
class Canaries:
    """K canaries and K random images for comparison, as positions in the pool of the shadow models (`shadow_pool`).

    canaries: int64 [K]. wrong_labels: int64 [K], the labels that the canaries get. controls: int64 [K], with true labels.
    """

    canaries: Ints
    wrong_labels: Ints
    controls: Ints


def draw_canaries(data: Data, labels: Ints, classes: int) -> Canaries:
    """Draw `data.canaries` canaries and as many controls, seeded by `data.seed`.

    `labels` int64 [2m] are the true labels of the shadow models' pool. Canaries and controls are drawn from the points that
    protocol `clean` scores, on both sides, and never from those of the defender or those that the attacker knows. A wrong label
    is any other class with equal probability.
    """
    generator = np.random.default_rng(derive_seed("canaries", data.seed))
    scored = np.array(evaluation_pools(data, "clean").scored)
    drawn = generator.permutation(np.concatenate([scored, data.members + scored]))[: 2 * data.canaries]
    canaries, controls = np.sort(drawn[: data.canaries]), np.sort(drawn[data.canaries :])
    shift = generator.integers(1, classes, data.canaries)
    return Canaries(canaries, (labels[canaries] + shift) % classes, controls)


def plant_canaries(pool: Examples, data: Data, classes: int) -> Examples:
    """The pool of the shadow models with the wrong labels of its canaries. With `data.canaries` = 0 it is the same pool."""
    if not data.canaries:
        return pool
    drawn = draw_canaries(data, pool.labels.numpy(), classes)
    labels = pool.labels.clone()
    labels[torch.from_numpy(drawn.canaries)] = torch.from_numpy(drawn.wrong_labels)
    return Examples(pool.images, labels)
