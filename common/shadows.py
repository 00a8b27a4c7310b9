"""`python <data set>/train_shadows.py`: shadow models for LiRA and RMIA (paper Section IV-A; Carlini et al., S&P 2022).

They are what an attacker trains who knows the target's recipe: same architecture, defense, number of members and diffusion
model, on halves of a pool that holds the target's members and as many other images. Models 2j and 2j + 1 split the pool
between them, so that every image is in exactly half of any even number of models, every model has as many members as the
target, and more models can be added later.
"""

from dataclasses import replace

import numpy as np
import torch

from common.config import require
from common.data.partition import Examples, Split
from common.defenses import DEFENSES
from common.files import derive_seed
from common.run import Run
from common.targets import model_path


def pool(split: Split) -> Examples:
    """Twice as many images as the target has members: its members, then non-members, then reference images.

    Position i is member i, position (number of members) + i is non-member i: all that an evaluation looks at is among them.
    """
    needed = 2 * len(split.members)
    parts = (split.members, split.non_members.take(slice(len(split.members))), split.reference)
    images, labels = (torch.cat([getattr(part, name) for part in parts])[:needed] for name in ("images", "labels"))
    require(
        len(labels) == needed,
        f"shadow models need {needed} images, twice the members; there are {len(labels)}: raise data.reference.",
    )
    return Examples(images, labels)


def kept(index: int, points: int, seed: int) -> np.ndarray:
    """Which images of the pool shadow model `index` trains on: bool [points], half of them, its neighbour's the rest."""
    half = np.zeros(points, dtype=bool)
    half[np.random.default_rng(derive_seed("shadow pair", seed, index // 2)).permutation(points)[: points // 2]] = True
    return half if index % 2 == 0 else ~half


def shadow_run(run: Run, index: int) -> Run:
    """The run of one shadow model: a seed and a folder of its own; no epoch of it is chosen by test accuracy."""
    require(index >= 0, f"shadow models are numbered from 0; there is no {index}.")
    config = replace(run.config, train=replace(run.config.train, best_on_test=False))
    return replace(run, config=config, seed=derive_seed("shadow", run.seed, index), shadow=(index, run.seed))


def train_shadow(run: Run, split: Split, defense: str, index: int) -> None:
    """Train shadow model `index` under `defense`, or find it trained; a killed training continues."""
    images = pool(split)
    inside = torch.from_numpy(kept(index, len(images), run.seed))
    own = Split(images.take(inside), images.take(~inside), split.non_members)
    shadow = shadow_run(run, index)
    if defense == "memguard" and not model_path(shadow, "undefended").is_file():
        DEFENSES["undefended"].train(shadow, own)
    DEFENSES[defense].train(shadow, own)
