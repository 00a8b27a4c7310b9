"""`bash <data set>/evaluate_MIAs/evaluate_mia.sh --defense NAME`: every attack, without and with Diffence.

The main path of the project, top to bottom: load the partition and the classifier, collect its answers on images and on
candidates, release under each scenario, attack what is released, measure, write (paper Section IV-B, Figures 15 and 16).
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.attacks import ATTACKS, TRAINED, Known, NNOptions, Outputs, Scores
from common.config import require
from common.data.partition import Pools, load_split, pools
from common.defenses import DEFENSES
from common.diffence.candidates import SIDES, query_ids
from common.diffence.select import ORIGINAL, Selector, fit_selector
from common.figures import draw_phi, draw_roc
from common.files import derive_seed
from common.metrics import attack_report, ece
from common.outputs import Side, collect
from common.report import result_name, write_result
from common.run import Run, environment
from common.targets import PostInference, load_target, training_facts

BEST_OF = ("nn", "m-entropy", "confidence", "entropy", "loss")  # the paper's five: "best attack" is the best of these


@dataclass(frozen=True)
class Released:
    """What an attacker sees of all evaluated images under one scenario: logits [n, C] of each side."""

    selector: Selector | None  # None = without Diffence
    members: np.ndarray
    non_members: np.ndarray


def evaluate(run: Run, defense: str, protocol: str, scenarios: list[str]) -> list[dict[str, Any]]:
    """Evaluate one defense without Diffence and with it in each scenario; writes and returns the rows."""
    split = load_split(run)
    places = pools(run.config.data, protocol)
    model = load_target(run, defense, protocol, DEFENSES[defense].build(run))
    post = model if isinstance(model, PostInference) else None
    sides = collect(run, defense, protocol, post.classifier if post else model, split)
    released = [guard(release(run, sides, places, scenario), post) for scenario in (None, *scenarios)]
    rows = []
    for shown in released:
        scores = attack_all(run, sides, places, shown, protocol)
        row = describe(run, defense, protocol, shown, sides, places) | measure(scores, protocol, run.config.attack.fpr)
        write_result(run.results_dir(protocol), row, scores)
        rows.append(row)
        draw_roc(run.results_dir(protocol) / f"{result_name(row)}_roc.png", result_name(row), scores)
    histograms = {result_name(row): (shown.members, shown.non_members) for row, shown in zip(rows, released, strict=True)}
    draw_phi(run.results_dir(protocol) / f"{defense}_phi.png", f"{run.dataset}, {defense}", histograms)
    return rows


def release(run: Run, sides: dict[str, Side], places: Pools, scenario: str | None) -> Released:
    """Fit the scenario's selector on the defender's points and release a prediction for every evaluated image."""
    members, non_members = sides["members"], sides["non_members"]
    if scenario is None:
        return Released(None, members.original, non_members.original)
    chosen = run.config.diffence
    selector = fit_selector(
        scenario, members.fit_points(places.fit), non_members.fit_points(places.fit), chosen.grid, chosen.js_bins
    )
    outputs = (selector.release(side.candidates, side.original) for side in (members, non_members))
    return Released(selector, *outputs)


def guard(shown: Released, post: PostInference | None) -> Released:
    """Apply a post-inference defense to what is released (paper Section III-B4); each image is one query."""
    if post is None:
        return shown
    guarded = []
    for side in SIDES:
        logits = torch.from_numpy(getattr(shown, side)).to(next(post.parameters()).device)
        guarded.append(post.release(logits, query_ids(side, range(len(logits)))).cpu().numpy())
    return Released(shown.selector, *guarded)


def attack_all(run: Run, sides: dict[str, Side], places: Pools, shown: Released, protocol: str) -> dict[str, Scores]:
    """Scores of every attack. Attackers are adaptive: their known points are answers of the defended model too."""
    config = run.config.attack
    options = NNOptions(
        config.nn_epochs,
        config.nn_lr,
        config.nn_batch_size,
        config.nn_held_out,
        select_on="known" if protocol == "clean" else "scored",
        device=run.device,
    )
    members, non_members = (Outputs(getattr(shown, side), sides[side].labels) for side in SIDES)
    known_places, scored = np.array(places.known), np.array(places.scored)
    known = Known(members.take(known_places), non_members.take(known_places))
    # In the released protocol the known points are scored too, but never by an attack that was trained on them.
    unseen = np.setdiff1d(scored, known_places)
    require(len(unseen) > 0, "the released protocol scores the known points and more: raise data.scored above data.known.")
    scores = {}
    for name, attack in ATTACKS.items():
        targets = unseen if name in TRAINED else scored
        seed = derive_seed("attack", name, run.seed)
        scores[name] = attack(known, members.take(targets), non_members.take(targets), options, seed)
    return scores


def measure(scores: dict[str, Scores], protocol: str, fpr: float) -> dict[str, Any]:
    """Metrics of every attack, the best of the paper's five, and the gap floor that label-keeping defenses cannot go below."""
    attacks = {
        name: attack_report(s.members, s.non_members, s.known_members, s.known_non_members, protocol == "released", fpr)
        for name, s in scores.items()
    }
    best = {key: max(attacks[name][key] for name in BEST_OF) for key in ("auc", "accuracy", "accuracy_oracle")}
    return {"attacks": attacks, "best": best, "gap_floor": attacks["correctness"]["auc"]}


def describe(run: Run, defense: str, protocol: str, shown: Released, sides: dict[str, Side], places: Pools) -> dict[str, Any]:
    """Everything that says how a row came about, and what the scored images' predictions are worth."""
    where = slice(places.scored.start, places.scored.stop)
    outputs = {
        side: Outputs(logits[where], sides[side].labels[where])
        for side, logits in (("members", shown.members), ("non_members", shown.non_members))
    }
    return {
        "dataset": run.dataset,
        "profile": run.profile_name,
        "protocol": protocol,
        "defense": defense,
        "seed": run.seed,
        "overrides": list(run.overrides),
        "model": run.config.model.name,
        "accuracy": {side: float((o.logits.argmax(1) == o.labels).mean()) for side, o in outputs.items()},
        "scored": {side: len(o) for side, o in outputs.items()},
        "ece": ece(outputs["non_members"].probabilities, outputs["non_members"].labels),
        "training": training_facts(run, defense, protocol),
        "diffence": None if shown.selector is None else diffence_facts(run, shown.selector, sides, outputs, where),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **environment(run),
        "config": run.config.as_dict(),
    }


def diffence_facts(
    run: Run, selector: Selector, sides: dict[str, Side], outputs: dict[str, Outputs], where: slice
) -> dict[str, Any]:
    """The setting of Diffence, and counts over the scored images, members and non-members apart.

    no_match: images none of whose candidates keeps the label; draws: candidates an image needs when drawn one by one.
    """
    chosen = run.config.diffence
    originals = {name: side.original[where].argmax(1) for name, side in sides.items()}
    candidates = {name: side.candidates[where] for name, side in sides.items()}
    choices = {name: selector.choose(candidates[name], originals[name]) for name in sides}
    return {
        "scenario": selector.scenario,
        "n": chosen.n,
        "t": chosen.t,
        "steps": chosen.steps,
        "forward": chosen.forward,
        "interval": [selector.low, selector.high] if np.isfinite(selector.low) else None,
        "no_match": {name: int((choice == ORIGINAL).sum()) for name, choice in choices.items()},
        "draws": {name: float(selector.draws(candidates[name], originals[name]).mean()) for name in sides},
        "labels_changed": {name: int((outputs[name].logits.argmax(1) != originals[name]).sum()) for name in sides},
    }
