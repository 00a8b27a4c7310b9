"""LiRA and RMIA in an evaluation: what shadow models answer on the evaluated images, and the scores that follow.

Shadow models are trained under the target's defense (`train_shadows.py`). Under Diffence their answers go through the
same reconstructions and the target's own interval, which the attacker is taken to know: classifier passes only, drawn lazily,
one shadow model in memory at a time, and of each only phi is kept, beside the logits that the other attacks use.
"""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.attacks.contract import Scores
from common.attacks.shadow import ShadowOutputs, shadow_attacks
from common.config import require
from common.data.partition import Pools, Split
from common.defenses import DEFENSES
from common.diffence.candidates import SIDES, StoredCandidates, candidate_settings, draw_all, query_ids
from common.diffence.protect import ProtectedClassifier
from common.diffence.select import Selector
from common.files import read_arrays, sha256, write_arrays
from common.metrics import Floats, phi
from common.run import Run
from common.shadows import kept, shadow_run
from common.targets import PostInference, load_target, weights_path


def shadow_scores(
    run: Run, defense: str, protocol: str, split: Split, places: Pools, selector: Selector | None
) -> dict[str, Scores]:
    """Scores of every attack with shadow models on what the target releases under `selector` (None: without Diffence).

    The population of RMIA are the known non-members; that they are scored too, to fit its threshold, moves their own score
    by at most 1 / k. UserError says which command trains a shadow model that is missing.
    """
    config = run.config.attack
    asked = np.union1d(places.known, places.scored)
    views = (False, True) if config.mirror else (False,)
    if selector is not None:
        for mirrored in views:
            draw_all(run, split, protocol, mirrored)
    stored = StoredCandidates(run)
    target = np.stack([answers(run, defense, protocol, split, selector, asked, mirrored, stored) for mirrored in views])
    shadows = [
        [answers(shadow_run(run, i), defense, "clean", split, selector, asked, mirrored, stored) for mirrored in views]
        for i in tqdm(range(config.shadows), desc=f"answers of shadow models, {defense}", unit="model", disable=None)
    ]
    shadow = np.array(shadows)  # [M, A, 2 * asked], members first
    members = len(split.members)
    everywhere = np.stack([kept(i, 2 * members, run.seed) for i in range(config.shadows)])
    keep = everywhere[:, np.concatenate([asked, members + asked])]
    known, scored = (np.searchsorted(asked, part) for part in (places.known, places.scored))
    labels = torch.cat([side.labels[torch.from_numpy(asked)] for side in (split.members, split.non_members)]).numpy()
    outputs = ShadowOutputs(target, shadow, keep, labels, population=known + len(asked))
    return shadow_attacks(outputs, (scored, scored + len(asked), known, known + len(asked)), config)


def answers(
    run: Run,
    defense: str,
    protocol: str,
    split: Split,
    selector: Selector | None,
    asked: np.ndarray,
    mirrored: bool,
    stored: StoredCandidates,
) -> Floats:
    """phi of the true label in what the model of `run` (a target or a shadow model) releases for the images at `asked`.

    float64 [2 * asked], members first; computed once and kept. `mirrored` asks for the mirrored images.
    """
    name = "without" if selector is None else f"scenario-{selector.scenario}"
    path = run.outputs_dir / f"{defense}-{protocol}-phi-{name}{'-mirrored' if mirrored else ''}.npz"
    weights = weights_path(run, defense, protocol)
    remake = run.command("train_defense.py", f"--defense {defense}")
    require(weights.is_file(), f"{weights} is missing. Make it with: {remake}")
    settings: dict[str, Any] = {
        "weights": sha256(weights),
        "options": run.config.defenses.get(defense, {}),
        "asked": [int(asked[0]), int(asked[-1]), len(asked)],
    }
    if selector is not None:
        settings |= {"interval": [selector.low, selector.high], "n": run.config.diffence.n, **candidate_settings(run)}
    made = read_arrays(path)
    if made and made[0] == settings:  # otherwise it costs classifier passes only
        return made[1]["phi"]
    model = load_target(run, defense, protocol, DEFENSES[defense].build(run))
    found = np.concatenate([_ask(run, model, split, side, selector, asked, mirrored, stored) for side in SIDES])
    write_arrays(path, settings, phi=found)
    return found


@torch.inference_mode()
def _ask(
    run: Run,
    model: torch.nn.Module,
    split: Split,
    side: str,
    selector: Selector | None,
    asked: np.ndarray,
    mirrored: bool,
    stored: StoredCandidates,
) -> Floats:
    """phi [asked] of one side."""
    post = model if isinstance(model, PostInference) else None
    classifier = post.classifier if post else model
    if selector is not None:
        classifier = ProtectedClassifier(classifier, stored, selector, run.config.diffence.n, draws=4, batch=500)
    examples: Any = getattr(split, side).take(torch.from_numpy(asked))
    parts = []
    for where in torch.arange(len(asked)).split(250):
        images = examples.pixels(where).to(run.device)
        images = images.flip(-1) if mirrored else images
        queries = query_ids(side, asked[where].tolist(), mirrored)
        logits = classifier(images) if selector is None else classifier(images, queries)
        logits = post.release(logits.float(), queries) if post else logits.float()
        parts.append(phi(logits.cpu().numpy(), examples.labels[where].numpy()))
    return np.concatenate(parts)
