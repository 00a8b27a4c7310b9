"""LiRA and RMIA in an evaluation: phi of the evaluated images under the target and under shadow models, and the scores.

Shadow models are trained under the target's defense (`train_shadows.py`). Under Diffence they classify the target's own
reconstructions and select by the target's own interval, which the attacker is assumed to know. This costs classifier passes
only. One shadow model is in memory at a time, and only phi of each released prediction is stored.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.attacks.contract import Scores
from common.attacks.shadow import ShadowOutputs, shadow_attacks
from common.config import require
from common.data.partition import Examples, Pools, Split
from common.defenses import DefendedModel, load_defended_model
from common.diffence.candidates import StoredCandidates, candidate_settings, draw_all, query_ids
from common.diffence.protect import ProtectedClassifier
from common.diffence.select import Selector
from common.experiments.shadow_models import in_mask, shadow_run
from common.files import cached_arrays, sha256
from common.metrics.privacy import Floats, Ints, phi
from common.pair import SIDES, Pair
from common.run import Run
from common.training.targets import weights_path


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries that the target and all shadow models get: the same images, under the same scenario of Diffence.

    index: positions [n] of the images, the same on both sides. selector: None = without Diffence. candidates: the stored ones.
    """

    split: Split
    index: Ints
    selector: Selector | None
    candidates: StoredCandidates


def shadow_scores(
    run: Run, defense: str, protocol: str, split: Split, pools: Pools, selector: Selector | None
) -> dict[str, Scores]:
    """Scores of every attack with shadow models on the target under `selector` (None = without Diffence), by name.

    The population of RMIA is the attacker's k known non-members. They are scored too, to fit a threshold. Being in the
    population moves the score of such a point by at most 1 / k. Raises UserError where a shadow model is missing. The message
    names the command that trains it.
    """
    config = run.config.attack
    index = np.union1d(pools.known, pools.scored)
    views = (False, True) if config.mirror else (False,)
    if selector is not None:
        for mirrored in views:
            draw_all(run, split, protocol, mirrored)
    queries = Queries(split, index, selector, StoredCandidates(run))
    target = np.stack([model_phi(run, defense, protocol, queries, mirrored) for mirrored in views])
    shadow = [
        [model_phi(shadow_run(run, i), defense, "clean", queries, mirrored) for mirrored in views]
        for i in tqdm(range(config.shadows), desc=f"answers of shadow models, {defense}", unit="model", disable=None)
    ]
    members = len(split.members)
    pool_masks = np.stack([in_mask(i, 2 * members, run.seed) for i in range(config.shadows)])
    in_masks = pool_masks[:, np.concatenate([index, members + index])]  # non-member i is at position members + i of the pool
    labels = torch.cat([side.labels[torch.from_numpy(index)] for side in split.evaluated]).numpy()
    # Positions among the 2n values of phi, in which non-members follow the n members.
    known, scored = (np.searchsorted(index, pool) for pool in (pools.known, pools.scored))
    outputs = ShadowOutputs(target, np.array(shadow), in_masks, labels, population=known + len(index))
    return shadow_attacks(outputs, Pair(known, known + len(index)), Pair(scored, scored + len(index)), config)


def model_phi(run: Run, defense: str, protocol: str, queries: Queries, mirrored: bool) -> Floats:
    """phi of the true label in the released predictions of a run's model: float64 [2n], members first.

    The run is that of the target or of a shadow model. With `mirrored` the images are mirrored first. The values are computed
    once and stored. Raises UserError where the model is missing.
    """
    selector, index = queries.selector, queries.index
    name = "without" if selector is None else f"scenario-{selector.scenario}"
    path = run.outputs_dir / f"{defense}-{protocol}-phi-{name}{'-mirrored' if mirrored else ''}.npz"
    weights = weights_path(run, defense, protocol)
    remake = run.command("train_defense.py", f"--defense {defense}")
    require(weights.is_file(), f"{weights} is missing. Make it with: {remake}")
    settings: dict[str, Any] = {
        "weights": sha256(weights),
        "options": run.config.defenses.get(defense, {}),
        "asked": [int(index[0]), int(index[-1]), len(index)],
    }
    if selector is not None:
        settings |= {"interval": [selector.low, selector.high], "n": run.config.diffence.n, **candidate_settings(run)}

    def compute() -> dict[str, np.ndarray]:
        model = load_defended_model(run, defense, protocol)
        sides = Pair(*SIDES).map(partial(_phi_of_side, run, model, queries, mirrored), queries.split.evaluated)
        return {"phi": np.concatenate([*sides])}

    return cached_arrays(path, settings, compute)["phi"]


@torch.inference_mode()
def _phi_of_side(run: Run, model: DefendedModel, queries: Queries, mirrored: bool, side: str, examples: Examples) -> Floats:
    """The part of `model_phi` that belongs to one side: float64 [n]."""
    index, selector = queries.index, queries.selector
    classifier: nn.Module = model.classifier
    if selector is not None:
        n = run.config.diffence.n
        classifier = ProtectedClassifier(classifier, queries.candidates, selector, n, draws=4, batch=500)
    queried = examples.take(torch.from_numpy(index))
    parts = []
    for batch in torch.arange(len(index)).split(250):
        images = queried.pixels(batch).to(run.device)
        images = images.flip(-1) if mirrored else images
        ids = query_ids(side, index[batch].tolist(), mirrored)
        logits = (classifier(images) if selector is None else classifier(images, ids)).float()
        if model.post_inference is not None:
            logits = model.post_inference.release(logits, ids)
        parts.append(phi(logits.cpu().numpy(), queried.labels[batch].numpy()))
    return np.concatenate(parts)
