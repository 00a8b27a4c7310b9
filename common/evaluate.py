"""`bash <data set>/evaluate_MIAs/evaluate_mia.sh --defense NAME`: every attack, without and with Diffence.

The main path of the project, top to bottom: load the partition and the classifier, collect its answers on images and on
candidates, release under each scenario, attack what is released, measure, write (paper Section IV-B, Figures 15 and 16).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from common.attacks import ATTACKS, TRAINED, Known, NNOptions, Outputs, Scores
from common.attacks.contract import dealt_out, redealt
from common.config import require
from common.data.partition import Pools, load_split, pools
from common.defenses import DEFENSES
from common.diffence.candidates import SIDES, query_ids
from common.diffence.select import ORIGINAL, Selector, fit_selector
from common.figures import draw_phi, draw_reliability, draw_roc
from common.files import derive_seed
from common.measure import measure, utility
from common.outputs import Side, collect
from common.report import result_file, result_name, write_result
from common.run import Run, provenance
from common.shadow_attacks import shadow_scores
from common.targets import PostInference, load_target, training_facts


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
        # First what needs no training, so that a shadow model that is missing is named at once.
        shadows = run.config.attack.shadows
        found = shadow_scores(run, defense, protocol, split, places, shown.selector) if shadows else {}
        scores = attack_all(run, sides, places, shown, protocol) | found
        null = null_scores(run, defense, sides, places, shown, protocol)
        null |= {name: dealt_out(points, derive_seed("null", name, run.seed)) for name, points in found.items()}
        row = describe(run, defense, protocol, shown, sides, places) | measure(scores, null, protocol, run.config.attack)
        write_result(run.results_dir(protocol), row, scores)
        rows.append(row)
        draw_roc(run.results_dir(protocol) / f"{result_name(row)}_roc.png", result_name(row), scores)
    named = dict(zip(map(result_name, rows), released, strict=True))
    pictures, title = run.results_dir(protocol), f"{run.dataset}, {defense}"
    draw_phi(pictures / f"{defense}_phi.png", title, {name: (one.members, one.non_members) for name, one in named.items()})
    predictions = {name: scored_outputs(one, sides, places)["non_members"] for name, one in named.items()}
    draw_reliability(pictures / f"{defense}_reliability.png", title, predictions)
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


def null_scores(
    run: Run, defense: str, sides: dict[str, Side], places: Pools, shown: Released, protocol: str
) -> dict[str, Scores]:
    """Scores of every attack under shuffled membership: what the same harness finds where there is nothing to find.

    Who counts as a member is drawn anew among all known and scored points of both sides together, once, so that a point is
    the same in both roles; attacks that train do so again. Each AUC is then .5 give or take sqrt((2n + 1) / 12) / n, .013
    at 1,000 + 1,000 scored points, and the best of the paper's five, of which three rank almost alike, is .509 on average.
    The released protocol, which chooses epoch and threshold on the scored points, finds more. In the clean protocol nothing
    is chosen there, so that no number of epochs can move this null: the NN attack trains for a fifth of them.
    """
    used = np.union1d(places.known, places.scored)
    scenario = None if shown.selector is None else shown.selector.scenario
    order = np.random.default_rng(derive_seed("null", result_file(defense, scenario), run.seed)).permutation(2 * len(used))
    logits = shuffled(shown.members, shown.non_members, used, order)
    labels = shuffled(sides["members"].labels, sides["non_members"].labels, used, order)
    relabelled = {name: replace(sides[name], labels=part) for name, part in zip(SIDES, labels, strict=True)}
    if protocol == "clean":
        attack = replace(run.config.attack, nn_epochs=-(-run.config.attack.nn_epochs // 5))
        run = replace(run, config=replace(run.config, attack=attack))
    return attack_all(run, relabelled, places, Released(shown.selector, *logits), protocol)


def shuffled(members: np.ndarray, non_members: np.ndarray, used: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """Both sides, each [n, ..], with their rows `used` [k] dealt out again in `order` [2k]."""
    dealt = [members.copy(), non_members.copy()]
    for side, part in zip(dealt, redealt(members[used], non_members[used], order), strict=True):
        side[used] = part
    return dealt


def scored_outputs(shown: Released, sides: dict[str, Side], places: Pools) -> dict[str, Outputs]:
    """What is released for the scored images of each side."""
    where = np.array(places.scored)
    return {side: Outputs(getattr(shown, side), sides[side].labels).take(where) for side in SIDES}


def describe(run: Run, defense: str, protocol: str, shown: Released, sides: dict[str, Side], places: Pools) -> dict[str, Any]:
    """Everything that says how a row came about, and what the scored images' predictions are worth."""
    where = slice(places.scored.start, places.scored.stop)
    outputs = scored_outputs(shown, sides, places)
    return {
        **provenance(run, defense, protocol),
        "accuracy": {side: float((o.logits.argmax(1) == o.labels).mean()) for side, o in outputs.items()},
        "scored": {side: len(o) for side, o in outputs.items()},
        "utility": utility(outputs, {side: sides[side].original[where] for side in SIDES}),
        "training": training_facts(run, defense, protocol),
        "diffence": None if shown.selector is None else diffence_facts(run, shown.selector, sides, outputs, where),
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
