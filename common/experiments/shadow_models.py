"""`python <data set>/train_shadows.py`: shadow models for LiRA and RMIA (paper Section IV-A; Carlini et al., S&P 2022).

Shadow models are trained by an attacker who knows how the target was trained. They have the same architecture, defense, number
of members and diffusion model. Each is trained on half of a pool, which holds the target's members and as many other images.
Models 2j and 2j + 1 are trained on the two halves of one random split. Therefore every image is a training image of exactly
half of the models, every model has as many members as the target, and more models can be added later, two at a time.
"""

from dataclasses import replace

import numpy as np
import torch

from common.config import require
from common.data import DATASETS
from common.data.partition import Examples, Split, unscored_members
from common.defenses import DEFENSES
from common.experiments.canaries import plant_canaries
from common.run import Run
from common.seeds import derive_seed
from common.training.targets import model_path


def shadow_pool(split: Split) -> Examples:
    """The images that shadow models are trained on, twice as many as the target has members.

    They are the target's members, then non-members, then, where there are too few of these, reference images. With m members,
    position i is member i and position m + i is non-member i. All evaluated images are among them. Raises UserError where there
    are too few images.
    """
    needed = 2 * len(split.members)
    evaluated = split.members.followed_by(split.non_members.take(slice(len(split.members))))
    pool = evaluated.followed_by(split.reference).take(slice(needed))
    require(
        len(pool) == needed,
        f"shadow models need {needed} images, twice the members; there are {len(pool)}: raise data.reference.",
    )
    return pool


def in_mask(index: int, points: int, seed: int) -> np.ndarray:
    """Which of the `points` images of the pool shadow model `index` is trained on: bool [points].

    It is one half of them. Model `index` XOR 1 is trained on the other half.
    """
    half = np.zeros(points, dtype=bool)
    half[np.random.default_rng(derive_seed("shadow pair", seed, index // 2)).permutation(points)[: points // 2]] = True
    return half if index % 2 == 0 else ~half


def shadow_run(run: Run, index: int) -> Run:
    """The run of one shadow model, with a seed and a folder of its own.

    Its last epoch is used, whatever the target's `train.best_on_test` is. Raises UserError for a negative `index`.
    """
    require(index >= 0, f"shadow models are numbered from 0; there is no {index}.")
    config = replace(run.config, train=replace(run.config.train, best_on_test=False))
    return replace(run, config=config, seed=derive_seed("shadow", run.seed, index), shadow=(index, run.seed))


def unscored_in_pool(run: Run, points: int) -> torch.Tensor:
    """Which of the `points` images of the pool no protocol scores: bool [points]. Both sides have the same scored positions."""
    members = unscored_members(run.config.data)
    unscored = torch.zeros(points, dtype=torch.bool)
    unscored[torch.cat([members, run.config.data.members + members])] = True
    return unscored


def train_shadow(run: Run, split: Split, defense: str, index: int) -> None:
    """Train shadow model `index` under `defense`, after the defenses that this one needs. What is trained already stays.

    It has as many reference images as the target: those that are not in the pool, then those that are, which it is not trained
    on and which no protocol scores. A defense that trained on scored reference images would learn what an attack looks for.
    """
    pool = plant_canaries(shadow_pool(split), run.config.data, DATASETS[run.dataset].classes)
    mask = torch.from_numpy(in_mask(index, len(pool), run.seed))
    unscored = unscored_in_pool(run, len(pool))
    in_pool = max(len(pool) - len(split.members) - len(split.non_members), 0)
    reference = split.reference.take(slice(in_pool, None)).followed_by(pool.take(~mask & unscored))
    reference = reference.take(slice(len(split.reference)))
    shadow_split = Split(pool.take(mask), reference, split.non_members, unscored=unscored[mask].nonzero().squeeze(1))
    shadow = shadow_run(run, index)
    for needed in DEFENSES[defense].needs:
        if not model_path(shadow, needed).is_file():
            DEFENSES[needed].train(shadow, shadow_split)
    DEFENSES[defense].train(shadow, shadow_split)
