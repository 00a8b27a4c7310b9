"""`python <data set>/evaluate_MIAs/worst_case.py --defense NAME`: attacks on canaries, the members that are most exposed.

After Aerni, Zhang and Tramer ("Evaluations of Machine Learning Privacy Defenses are Misleading", CCS 2024). M models are
trained on random halves of one pool of images, some of which, the canaries, have a wrong label. Each model is the target once.
Its shadow models are then the others, without the one that is trained on the other half. K canaries give M * K decisions. The
same is measured on K random images.

Under Diffence, each model fits its own interval on the defender's points, of which it knows which ones are its members. All
models share one diffusion model and one set of candidates, of the images and of their mirror images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from tqdm import tqdm

from common.attacks import METRIC_ATTACKS, Outputs
from common.attacks.leave_one_out import knowing_scores, shadow_scores_of_all
from common.attacks.lira import Bools
from common.attacks.suite import attack_all
from common.config import require
from common.data import DATASETS
from common.data.partition import Pools, Split, evaluation_pools, load_split
from common.defenses import load_defended_model
from common.diffence.candidates import MIRRORED, query_ids
from common.diffence.select import CandidateLogits, fit_selector
from common.experiments.canaries import Canaries, draw_canaries
from common.experiments.collect import collect
from common.experiments.evaluate import nn_options, released_logits
from common.experiments.shadow_models import in_mask, shadow_pool, shadow_run
from common.files import write_json
from common.metrics.bootstrap import decisions_report
from common.metrics.privacy import Floats, Ints, phi
from common.pair import SIDES, Pair
from common.report.rows import result_file
from common.run import Run, provenance
from common.seeds import derive_seed
from common.training.targets import training_facts

FPRS = (0.001, 0.01)


@dataclass(frozen=True, eq=False)
class Points:
    """The n evaluated points, members' side first, and who is a member of which model.

    labels: int64 [n], with the wrong labels of canaries. in_mask: bool [M, n]. queries: names of their noise, int64 [n].
    fit, known, canaries, controls: positions among the n points.
    """

    labels: Ints
    in_mask: Bools
    queries: Ints
    fit: Ints
    known: Ints
    canaries: Ints
    controls: Ints


@dataclass(frozen=True, eq=False)
class Answers:
    """What the M models release for the n points under one scenario.

    logits: float64 [M, n, C]. kept: float64 [M, n], the share of a point's candidates that keep the label, without Diffence 1.
    mirror_distance: float64 [M, n], between the answers to the image and to its mirror image.
    """

    logits: Floats
    kept: Floats
    mirror_distance: Floats


def worst_case(run: Run, defense: str, scenarios: list[str], count: int) -> list[dict[str, Any]]:
    """Attack `count` models under a defense, without Diffence and with it in each scenario; writes and returns the rows.

    Raises UserError without canaries in the config, and where a model is missing. The message names the command that trains it.
    """
    require(run.config.data.canaries > 0, "worst_case needs canaries: add --set data.canaries=100, also to train_shadows.py.")
    split, pools = load_split(run), evaluation_pools(run.config.data, "clean")
    pool_labels = shadow_pool(split).labels.numpy()
    drawn = draw_canaries(run.config.data, pool_labels, DATASETS[run.dataset].classes)
    points = evaluated_points(run, pool_labels, pools, drawn, count)
    names: list[str | None] = [None, *scenarios]
    of_models = [
        answers_of_model(run, defense, split, points, model, names)
        for model in tqdm(range(count), desc=f"answers of {defense}", unit="model", disable=None)
    ]
    rows = []
    for number, scenario in enumerate(names):
        answers = Answers(*(np.stack(values) for values in zip(*(of_model[number] for of_model in of_models), strict=True)))
        scores = attack_models(run, points, answers)
        row = {
            "kind": "worst_case",
            **provenance(run, defense, "clean"),
            "scenario": scenario,
            "n": run.config.diffence.n,
            "t": run.config.diffence.t,
            "fallback": run.config.diffence.fallback,
            "models": count,
            "training": training_facts(shadow_run(run, 0), defense, "clean"),  # of the first model, such as its epsilon
            # Decisions on canaries, and as many on controls: each point is a member of half of the models.
            "scored": dict.fromkeys(SIDES, count * run.config.data.canaries // 2),
            **{name: group_report(points, answers, scores, name) for name in ("canaries", "controls")},
        }
        write_json(result_path(run, defense, scenario, count), row)
        rows.append(row)
    return rows


def result_path(run: Run, defense: str, scenario: str | None, count: int) -> Path:
    """The file of a row, beside those of evaluate_mia."""
    return run.results_dir("clean") / f"worst_case-{result_file(defense, scenario)}-{count}models.json"


def evaluated_points(run: Run, pool_labels: Ints, pools: Pools, drawn: Canaries, count: int) -> Points:
    """The points of all pools, in the order of the evaluation: `pools.used` of the members, then of the non-members."""
    used = np.array(pools.used)
    in_pool = np.concatenate([used, run.config.data.members + used])  # positions in the pool of the shadow models, ascending
    labels = pool_labels.copy()
    labels[drawn.canaries] = drawn.wrong_labels
    masks = [in_mask(model, len(pool_labels), run.seed)[in_pool] for model in range(count)]
    fit, known = (np.concatenate([np.array(pool), len(used) + np.array(pool)]) for pool in (pools.fit, pools.known))
    canaries, controls = (np.searchsorted(in_pool, positions) for positions in (drawn.canaries, drawn.controls))
    queries = np.concatenate([query_ids(side, used.tolist()).numpy() for side in SIDES])
    return Points(labels[in_pool], np.stack(masks), queries, fit, known, canaries, controls)


def answers_of_model(
    run: Run, defense: str, split: Split, points: Points, number: int, scenarios: list[str | None]
) -> list[tuple[Floats, Floats, Floats]]:
    """The part of `Answers` that belongs to one model, for each scenario: logits [n, C], kept [n], mirror_distance [n]."""
    shadow = shadow_run(run, number)
    model = load_defended_model(shadow, defense, "clean")
    views = []
    for mirrored in (False, True):
        sides = collect(shadow, defense, "clean", model.classifier, split, mirrored)
        arrays = (np.concatenate([getattr(side, name) for side in sides]) for name in ("original", "candidates"))
        views.append((CandidateLogits(*arrays), points.queries + MIRRORED * mirrored))
    image, config = views[0][0], run.config.diffence
    is_member = points.in_mask[number, points.fit]
    fit = Pair(points.fit[is_member], points.fit[~is_member]).map(image.at)
    answers = []
    for scenario in scenarios:
        selector = None if scenario is None else fit_selector(scenario, fit, config.grid, config.js_bins, config.fallback)
        kept = np.ones(len(points.labels)) if selector is None else image.keeps_label.mean(1)
        logits, of_mirror = (released_logits(model, selector, *view).astype(np.float64) for view in views)
        answers.append((logits, kept, variation(logits, of_mirror)))
    return answers


def variation(first: Floats, second: Floats) -> Floats:
    """The total variation distance between the confidences of two answers: logits [n, C] -> float64 [n], 0..1."""
    return np.abs(softmax(first, axis=1) - softmax(second, axis=1)).sum(1) / 2


def attack_models(run: Run, points: Points, answers: Answers) -> dict[str, Floats]:
    """Scores float64 [M, n] of every attack, by name; NaN at points that are neither canaries nor controls."""
    scored = np.union1d(points.canaries, points.controls)
    features = seen_features(points, answers)
    values = features[..., 0]  # phi of the given label
    subset = np.concatenate([points.known, scored])
    by_shadows = shadow_scores_of_all(
        values[:, subset], points.in_mask[:, subset], points.labels[subset], np.arange(len(points.known)), run.config.attack
    )
    by_shadows["knowing"] = knowing_scores(
        features[:, subset], values[:, subset], points.in_mask[:, subset], derive_seed("knowing", run.seed)
    )
    scores = {name: np.full(values.shape, np.nan) for name in by_shadows}
    for name, of_subset in by_shadows.items():
        scores[name][:, scored] = of_subset[:, len(points.known) :]
    for model in tqdm(range(len(values)), desc="attacks", unit="model", leave=False, disable=None):
        for name, model_scores in attack_model(run, points, answers.logits[model], model, scored).items():
            scores.setdefault(name, np.full(values.shape, np.nan))[model] = model_scores
    return scores


def attack_model(run: Run, points: Points, logits: Floats, model: int, scored: Ints) -> dict[str, Floats]:
    """Scores float64 [n] of the attacks without shadow models on one model, NaN where a point is not scored."""
    sides = Pair(points.in_mask[model], ~points.in_mask[model]).map(np.flatnonzero)  # the model's members, its non-members
    known, asked = (sides.map(lambda side, of=of: np.flatnonzero(np.isin(side, of))) for of in (points.known, scored))
    outputs = sides.map(lambda side: Outputs(logits[side], points.labels[side]))
    options = nn_options(run, "clean")
    scores = {}
    for name, result in attack_all(outputs, known, asked, options, derive_seed("worst case", run.seed, model)).items():
        scores[name] = np.full(len(points.labels), np.nan)
        for side, positions, values in zip(sides, asked, result.scored, strict=True):
            scores[name][side[positions]] = values
    return scores


def seen_features(points: Points, answers: Answers) -> Floats:
    """What an attacker sees of each point under each model: float64 [M, n, 6].

    phi of the given label, phi of the predicted label, whether they are the same, the score of the entropy attack, the share of
    candidates that keep the label, which the time of an answer may show, and the distance between the answers to the image and
    to its mirror image.
    """
    right = answers.logits.argmax(-1) == points.labels
    entropy = np.stack([METRIC_ATTACKS["entropy"](Outputs(logits, points.labels)) for logits in answers.logits])
    values = [phi(answers.logits, points.labels), phi(answers.logits), right, entropy, answers.kept, answers.mirror_distance]
    return np.stack(values, axis=-1)


def group_report(points: Points, answers: Answers, scores: dict[str, Floats], group: str) -> dict[str, Any]:
    """The part of a row about the `canaries` or the `controls`: each attack, and shares of members and of non-members.

    given_label: how often the prediction is the point's given label, for a canary its wrong one. kept: the mean share of
    candidates that keep the predicted label. no_match: how often no candidate does.
    """
    index = getattr(points, group)
    member = points.in_mask[:, index]
    facts = {
        "given_label": answers.logits[:, index].argmax(-1) == points.labels[index],
        "kept": answers.kept[:, index],
        "no_match": answers.kept[:, index] == 0,
    }
    return {
        "points": len(index),
        **{name: {"members": float(of[member].mean()), "non_members": float(of[~member].mean())} for name, of in facts.items()},
        "attacks": {
            name: decisions_report(of_attack[:, index], member, FPRS, derive_seed("bootstrap", group, name))
            for name, of_attack in scores.items()
        },
    }
