"""LiRA and RMIA in an evaluation: phi of the evaluated images under the target and under shadow models, and the scores.

Shadow models are trained under the target's defense (`train_shadows.py`). Under Diffence they classify the target's own
reconstructions and select by the target's own interval, which the attacker is assumed to know. This costs classifier passes
only. A model answers for all scenarios at once: it classifies an image once, and each candidate at most once. One shadow model
is in memory at a time, and only phi of each released prediction is stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from common.diffence.select import Selector
from common.experiments.collect import refuse_infinite
from common.experiments.shadow_models import in_mask, shadow_run
from common.files import read_arrays, sha256, write_arrays
from common.metrics.privacy import Floats, Ints, phi
from common.pair import SIDES, Pair
from common.run import Run
from common.training.targets import weights_path

DRAWS = 4  # candidates of an image that are classified at a time, until every scenario has what it releases
BATCH = 500  # candidates in one call of a classifier


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries that the target and all shadow models get: the same images, under the same scenarios of Diffence.

    index: positions [n] of the images, the same on both sides. selectors: one for each scenario, None = without Diffence.
    candidates: the stored ones.
    """

    split: Split
    index: Ints
    selectors: Sequence[Selector | None]
    candidates: StoredCandidates


def shadow_scores(
    run: Run, defense: str, protocol: str, split: Split, pools: Pools, selectors: Sequence[Selector | None]
) -> list[dict[str, Scores]]:
    """Scores of every attack with shadow models on the target, by name, for each of `selectors` (None = without Diffence).

    The population of RMIA is the attacker's k known non-members. They are scored too, to fit a threshold. Being in the
    population moves the score of such a point by at most 1 / k. Raises UserError where a shadow model is missing. The message
    names the command that trains it.
    """
    config = run.config.attack
    index = np.union1d(pools.known, pools.scored)
    views = (False, True) if config.mirror else (False,)
    if any(selector is not None for selector in selectors):
        for mirrored in views:
            draw_all(run, split, protocol, mirrored)
    queries = Queries(split, index, selectors, StoredCandidates(run))
    target = np.stack([model_phi(run, defense, protocol, queries, mirrored) for mirrored in views])
    shadow = [
        [model_phi(shadow_run(run, i), defense, "clean", queries, mirrored) for mirrored in views]
        for i in tqdm(range(config.shadows), desc=f"answers of shadow models, {defense}", unit="model", disable=None)
    ]
    by_model = np.array(shadow)
    members = len(split.members)
    pool_masks = np.stack([in_mask(i, 2 * members, run.seed) for i in range(config.shadows)])
    in_masks = pool_masks[:, np.concatenate([index, members + index])]  # non-member i is at position members + i of the pool
    labels = torch.cat([side.labels[torch.from_numpy(index)] for side in split.evaluated]).numpy()
    # Positions among the 2n values of phi, in which non-members follow the n members.
    known, scored = (np.searchsorted(index, pool) for pool in (pools.known, pools.scored))
    sides = Pair(known, known + len(index)), Pair(scored, scored + len(index))
    outputs = [
        ShadowOutputs(target[:, number], by_model[:, :, number], in_masks, labels, population=known + len(index))
        for number in range(len(selectors))
    ]
    return [shadow_attacks(of_scenario, *sides, config) for of_scenario in outputs]


def model_phi(run: Run, defense: str, protocol: str, queries: Queries, mirrored: bool) -> Floats:
    """phi of the true label in the predictions that a run's model releases under each scenario: float64 [S, 2n], members first.

    The run is that of the target or of a shadow model. With `mirrored` the images are mirrored first. The values are computed
    once and stored. Raises UserError where the model is missing.
    """
    weights = weights_path(run, defense, protocol)
    remake = run.command("train_defense.py", f"--defense {defense}")
    require(weights.is_file(), f"{weights} is missing. Make it with: {remake}")
    index = queries.index
    common: dict[str, Any] = {
        "weights": sha256(weights),
        "options": run.config.defenses.get(defense, {}),
        "asked": [int(index[0]), int(index[-1]), len(index)],
    }
    places = {}
    for selector in queries.selectors:
        name = "without" if selector is None else f"scenario-{selector.scenario}"
        settings = common
        if selector is not None:
            interval = {"interval": [selector.low, selector.high], "n": run.config.diffence.n}
            settings = common | interval | candidate_settings(run)
            if selector.fallback != "original":  # which answers of version 0.2 do not name
                settings |= {"fallback": selector.fallback}
        places[selector] = run.outputs_dir / f"{defense}-{protocol}-phi-{name}{'-mirrored' if mirrored else ''}.npz", settings
    known: dict[Selector | None, Floats] = {}
    for selector, (path, settings) in places.items():
        stored = read_arrays(path)
        if stored and stored[0] == settings:
            known[selector] = stored[1]["phi"]
    missing = [selector for selector in places if selector not in known]
    if missing:
        model = load_defended_model(run, defense, protocol)
        of_side = partial(_phi_of_side, run, defense, model, replace(queries, selectors=missing), mirrored)
        computed = np.concatenate([*Pair(*SIDES).map(of_side, queries.split.evaluated)], axis=1)
        for selector, values in zip(missing, computed, strict=True):
            path, settings = places[selector]
            write_arrays(path, settings, phi=values)
            known[selector] = values
    return np.stack([known[selector] for selector in queries.selectors])


@torch.inference_mode()
def _phi_of_side(
    run: Run, defense: str, model: DefendedModel, queries: Queries, mirrored: bool, side: str, examples: Examples
) -> Floats:
    """The part of `model_phi` that belongs to one side: float64 [S, n]."""
    index = queries.index
    queried = examples.take(torch.from_numpy(index))
    parts = []
    for batch in torch.arange(len(index)).split(250):
        images = queried.pixels(batch).to(run.device)
        images = images.flip(-1) if mirrored else images
        ids = query_ids(side, index[batch].tolist(), mirrored)
        original = model.classifier(images).float()
        answers = [original] * len(queries.selectors)
        if any(queries.selectors):
            answers = _released(run, defense, model.classifier, queries, images, ids, original)
        if model.post_inference is not None:
            answers = [model.post_inference.release(logits, ids) for logits in answers]
        labels = queried.labels[batch].numpy()
        parts.append(np.stack([phi(logits.cpu().numpy(), labels) for logits in answers]))
    return np.concatenate(parts, axis=1)


def _released(
    run: Run,
    defense: str,
    classifier: nn.Module,
    queries: Queries,
    images: torch.Tensor,
    ids: torch.Tensor,
    original: torch.Tensor,
) -> list[torch.Tensor]:
    """The logits [b, C] that each scenario releases for images [b, 3, H, W], from the `original` logits [b, C].

    An image gets no further candidates once one of them qualifies in every scenario. The places of candidates that were not
    classified hold the first one, which a scenario would release before its copies.
    """
    selectors = [selector for selector in queries.selectors if selector is not None]
    n, labels = run.config.diffence.n, original.argmax(1).cpu().numpy()
    logits = np.empty((len(images), n, original.shape[1]), dtype=np.float32)
    settled = np.zeros((len(selectors), len(images)), dtype=bool)
    for start in range(0, n, DRAWS):
        waiting = np.flatnonzero(~settled.all(0))
        if not len(waiting):
            break
        numbers = torch.arange(start, min(start + DRAWS, n))
        rows = torch.from_numpy(waiting).repeat_interleave(len(numbers))
        parts = [
            classifier(queries.candidates(images[row.to(images.device)], ids[row], number)).float().cpu().numpy()
            for row, number in zip(rows.split(BATCH), numbers.repeat(len(waiting)).split(BATCH), strict=True)
        ]
        drawn = np.concatenate(parts).reshape(len(waiting), len(numbers), -1)
        refuse_infinite(run, defense, drawn)
        if start == 0:
            logits[:] = drawn[:, :1]
        logits[waiting, start : start + len(numbers)] = drawn
        for selector, done in zip(selectors, settled, strict=True):
            if selector.scenario != "average":  # which needs every candidate
                done[waiting] |= (selector.distance(drawn, labels[waiting, None]) == 0).any(1)
    bare = original.cpu().numpy()
    return [
        original if selector is None else torch.from_numpy(selector.release(logits, bare)).to(original)
        for selector in queries.selectors
    ]
