"""`python <data set>/train_shadows.py`: shadow models for LiRA and RMIA (paper Section IV-A; Carlini et al., S&P 2022).

Shadow models are what an attacker trains who knows the target's recipe: the same architecture, defense, number of members and
diffusion model. They are trained on halves of a pool that holds the target's members and as many other images. Models 2j and
2j + 1 split the pool between them. So every image is in exactly half of any even number of models, every model has as many
members as the target, and more models can be added later.
"""

from dataclasses import replace

import numpy as np
import torch

from common.config import require
from common.data.partition import Examples, Split
from common.defenses import DEFENSES
from common.run import Run
from common.seeds import derive_seed
from common.training.targets import model_path


def shadow_pool(split: Split) -> Examples:
    """The images that shadow models are trained on: twice as many as the target has members.

    They are the target's members, then non-members, then reference images. Position i is member i, and position (number of
    members) + i is non-member i. Every image that an evaluation looks at is among them.
    """
    needed = 2 * len(split.members)
    parts = (split.members, split.non_members.take(slice(len(split.members))), split.reference)
    images, labels = (torch.cat([getattr(part, name) for part in parts])[:needed] for name in ("images", "labels"))
    require(
        len(labels) == needed,
        f"shadow models need {needed} images, twice the members; there are {len(labels)}: raise data.reference.",
    )
    return Examples(images, labels)


def in_mask(index: int, points: int, seed: int) -> np.ndarray:
    """Which of `points` pool images shadow model `index` is trained on: bool [points].

    It is trained on half of them, and its neighbour (index XOR 1) on the other half.
    """
    half = np.zeros(points, dtype=bool)
    half[np.random.default_rng(derive_seed("shadow pair", seed, index // 2)).permutation(points)[: points // 2]] = True
    return half if index % 2 == 0 else ~half


def shadow_run(run: Run, index: int) -> Run:
    """The run of one shadow model, with a seed and a folder of its own. None of its epochs is chosen by test accuracy."""
    require(index >= 0, f"shadow models are numbered from 0; there is no {index}.")
    config = replace(run.config, train=replace(run.config.train, best_on_test=False))
    return replace(run, config=config, seed=derive_seed("shadow", run.seed, index), shadow=(index, run.seed))


def train_shadow(run: Run, split: Split, defense: str, index: int) -> None:
    """Train shadow model `index` under `defense`, and the defenses that it needs. What is trained already is kept."""
    pool = shadow_pool(split)
    inside = torch.from_numpy(in_mask(index, len(pool), run.seed))
    own = Split(pool.take(inside), pool.take(~inside), split.non_members)
    shadow = shadow_run(run, index)
    for needed in DEFENSES[defense].needs:
        if not model_path(shadow, needed).is_file():
            DEFENSES[needed].train(shadow, own)
    DEFENSES[defense].train(shadow, own)
