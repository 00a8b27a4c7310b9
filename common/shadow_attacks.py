"""LiRA and RMIA in an evaluation: what shadow models answer on the evaluated images, and the scores that follow.

Shadow models are trained under the target's defense (`train_shadows.py`). Under Diffence their answers go through the
same reconstructions and the target's own interval, which the attacker is taken to know: classifier passes only, drawn lazily,
one shadow model in memory at a time, and of each only phi is kept, beside the logits that the other attacks use.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from tqdm import tqdm

from common.attacks.contract import Scores
from common.attacks.lira import lira
from common.attacks.rmia import rmia
from common.config import Attack, require
from common.data.partition import Pools, Split
from common.defenses import DEFENSES
from common.diffence.candidates import SIDES, StoredCandidates, candidate_settings, draw_all, query_ids
from common.diffence.protect import ProtectedClassifier
from common.diffence.select import Selector
from common.files import atomic_write, sha256
from common.metrics import Floats, phi
from common.run import Run
from common.shadows import kept, shadow_run
from common.targets import PostInference, load_target, model_path

# shadow answers and settings -> scores [n]; z are the points of RMIA's population
ShadowAttack = Callable[["Asked", Attack], Floats]


@dataclass(frozen=True, eq=False)
class Asked:
    """What is known of n points and of k population points z: phi of the target, phi of M shadow models, who was IN."""

    target: Floats  # [A, n]
    shadow: Floats  # [M, A, n]
    keep: np.ndarray  # bool [M, n]
    z: np.ndarray  # int64 [k], positions of the population among the n points


def _lira(asked: Asked, options: Attack, online: bool) -> Floats:
    data = asked.target, asked.shadow, asked.keep
    return lira(*data, online=online, variance=options.lira_variance, tail=options.lira_tail)


def _rmia(asked: Asked, options: Attack, online: bool) -> Floats:
    z = asked.z
    return rmia(
        asked.target,
        asked.shadow,
        asked.keep,
        asked.target[:, z],
        asked.shadow[:, :, z],
        online=online,
        gamma=options.rmia_gamma,
        offline_a=options.rmia_a,
        population_keep=asked.keep[:, z],
    )


SHADOW_ATTACKS: dict[str, ShadowAttack] = {
    "lira-online": partial(_lira, online=True),
    "lira-offline": partial(_lira, online=False),
    "rmia-online": partial(_rmia, online=True),
    "rmia-offline": partial(_rmia, online=False),
}


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
    points, scores = Asked(target, shadow, keep, known + len(asked)), {}
    for name, attack in SHADOW_ATTACKS.items():
        every = attack(points, config)
        of_members, of_others = np.split(every, 2)
        scores[name] = Scores(of_members[scored], of_others[scored], of_members[known], of_others[known])
    return scores


def dealt_out(scores: Scores, seed: int) -> Scores:
    """The null: the same scores, which never looked at the target's members, with membership shuffled in both pools."""
    rng = np.random.default_rng(seed)
    scored = rng.permutation(np.concatenate([scores.members, scores.non_members]))
    known = rng.permutation(np.concatenate([scores.known_members, scores.known_non_members]))
    return Scores(*np.split(scored, [len(scores.members)]), *np.split(known, [len(scores.known_members)]))


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
    weights = model_path(run, defense).with_suffix(".best.pt" if protocol == "released" else ".pt")
    remake = run.command("train_defense.py", f"--defense {defense}")
    require(weights.is_file(), f"{weights} is missing. Make it with: {remake}")
    settings: dict[str, Any] = {
        "weights": sha256(weights),
        "options": run.config.defenses.get(defense, {}),
        "asked": [int(asked[0]), int(asked[-1]), len(asked)],
    }
    if selector is not None:
        settings |= {"interval": [selector.low, selector.high], "n": run.config.diffence.n, **candidate_settings(run)}
    wanted = json.dumps(settings, sort_keys=True)
    try:
        with np.load(path) as made:
            if str(made["settings"]) == wanted:
                return np.asarray(made["phi"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass  # not made yet, or torn: it costs classifier passes only
    model = load_target(run, defense, protocol, DEFENSES[defense].build(run))
    found = np.concatenate([_ask(run, model, split, side, selector, asked, mirrored, stored) for side in SIDES])
    atomic_write(path, lambda file: np.savez(file, phi=found, settings=wanted))
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
