"""LiRA and RMIA in an evaluation: what shadow models answer about the evaluated images, and the scores that follow.

Shadow models are trained under the target's defense (`train_shadows.py`). Under Diffence their answers go through the same
reconstructions and through the target's own interval, which the attacker is assumed to know. This costs classifier passes only.
One shadow model is in memory at a time. Of each answer only phi is kept.
"""

from dataclasses import dataclass
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
class Questions:
    """What the target and all shadow models are asked: the same images, under the same scenario of Diffence.

    index: positions [n] of the images, the same on both sides. selector: None = without Diffence.
    """

    split: Split
    index: Ints
    selector: Selector | None
    candidates: StoredCandidates


def shadow_scores(
    run: Run, defense: str, protocol: str, split: Split, pools: Pools, selector: Selector | None
) -> dict[str, Scores]:
    """Scores of every attack with shadow models on what the target releases under `selector` (None: without Diffence).

    The population of RMIA is the attacker's known non-members. They are scored too, to fit a threshold. Being in the population
    moves the score of such a point by at most 1 / k. UserError says which command trains a shadow model that is missing.
    """
    config = run.config.attack
    index = np.union1d(pools.known, pools.scored)
    views = (False, True) if config.mirror else (False,)
    if selector is not None:
        for mirrored in views:
            draw_all(run, split, protocol, mirrored)
    questions = Questions(split, index, selector, StoredCandidates(run))
    target = np.stack([answers(run, defense, protocol, questions, mirrored) for mirrored in views])
    shadow = [
        [answers(shadow_run(run, i), defense, "clean", questions, mirrored) for mirrored in views]
        for i in tqdm(range(config.shadows), desc=f"answers of shadow models, {defense}", unit="model", disable=None)
    ]
    members = len(split.members)
    pool_keep = np.stack([in_mask(i, 2 * members, run.seed) for i in range(config.shadows)])
    keep = pool_keep[:, np.concatenate([index, members + index])]
    labels = torch.cat([side.labels[torch.from_numpy(index)] for side in split.evaluated]).numpy()
    # Positions among the 2n answers: members come first.
    known, scored = (np.searchsorted(index, pool) for pool in (pools.known, pools.scored))
    outputs = ShadowOutputs(target, np.array(shadow), keep, labels, population=known + len(index))
    return shadow_attacks(outputs, Pair(known, known + len(index)), Pair(scored, scored + len(index)), config)


def answers(run: Run, defense: str, protocol: str, questions: Questions, mirrored: bool) -> Floats:
    """phi of the true label in what the model of `run`, a target or a shadow model, releases: float64 [2n], members first.

    It is computed once and stored. With `mirrored` the images are flipped first.
    """
    selector, index = questions.selector, questions.index
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
        sides = Pair(*SIDES).map(
            lambda side, examples: _ask(run, model, questions, side, examples, mirrored), questions.split.evaluated
        )
        return {"phi": np.concatenate([*sides])}

    return cached_arrays(path, settings, compute)["phi"]


@torch.inference_mode()
def _ask(run: Run, model: DefendedModel, questions: Questions, side: str, examples: Examples, mirrored: bool) -> Floats:
    """phi [n] of one side."""
    index, selector = questions.index, questions.selector
    classifier: nn.Module = model.classifier
    if selector is not None:
        n = run.config.diffence.n
        classifier = ProtectedClassifier(classifier, questions.candidates, selector, n, draws=4, batch=500)
    asked = examples.take(torch.from_numpy(index))
    parts = []
    for batch in torch.arange(len(index)).split(250):
        images = asked.pixels(batch).to(run.device)
        images = images.flip(-1) if mirrored else images
        queries = query_ids(side, index[batch].tolist(), mirrored)
        logits = (classifier(images) if selector is None else classifier(images, queries)).float()
        if model.post_inference is not None:
            logits = model.post_inference.release(logits, queries)
        parts.append(phi(logits.cpu().numpy(), asked.labels[batch].numpy()))
    return np.concatenate(parts)
