"""`bash <data set>/evaluate_MIAs/evaluate_mia.sh --defense NAME`: every attack, without and with Diffence.

This is the main path of the project. `evaluate` loads the partition and the defended model, collects its logits on images and
on their candidates, defends them under each scenario, attacks the defended outputs, measures, and writes rows and pictures
(paper Section IV-B, Figures 15 and 16).
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from common.attacks import NNOptions, Outputs, Scores
from common.attacks.contract import shuffled_scores
from common.attacks.nn import SelectOn
from common.attacks.suite import attack_all, attack_shuffled
from common.config import require
from common.data.partition import Pools, evaluation_pools, load_split
from common.defenses import DefendedModel, load_defended_model
from common.diffence.candidates import query_ids
from common.diffence.select import ORIGINAL, CandidateLogits, Selector, fit_selector
from common.experiments.collect import LabelledLogits, collect
from common.experiments.shadow_scores import shadow_scores
from common.metrics.privacy import Ints
from common.pair import SIDES, Pair
from common.report.figures import draw_phi, draw_reliability, draw_roc
from common.report.measure import measure, utility
from common.report.rows import result_file, result_name, write_result
from common.report.style import DATASET_TITLES, DEFENSE_TITLES, DIFFENCE_TITLES, title_of
from common.run import Run, provenance
from common.seeds import derive_seed
from common.training.targets import PostInference, training_facts


@dataclass(frozen=True)
class DefendedOutputs:
    """The released outputs of all evaluated images under one scenario, which is what an attacker sees."""

    selector: Selector | None  # None = without Diffence
    outputs: Pair[Outputs]

    @property
    def scenario(self) -> str | None:
        """The scenario of Diffence; None = without it."""
        return None if self.selector is None else self.selector.scenario


def evaluate(run: Run, defense: str, protocol: str, scenarios: list[str]) -> list[dict[str, Any]]:
    """Evaluate one defense without Diffence and with it in each scenario; writes and returns the rows."""
    split = load_split(run)
    pools = evaluation_pools(run.config.data, protocol)
    planted = run.config.data.canaries and run.config.attack.shadows
    require(not planted, "shadow models with canaries do not fit the target, which has none: leave out data.canaries.")
    model = load_defended_model(run, defense, protocol)
    collected = collect(run, defense, protocol, model.classifier, split)
    folder = run.results_dir(protocol)
    all_defended = [defend(run, model, collected, pools, scenario) for scenario in (None, *scenarios)]
    # Attacks with shadow models come first: they train nothing, so that a missing shadow model is reported at once.
    all_by_shadows: list[dict[str, Scores]] = [{} for _ in all_defended]
    if run.config.attack.shadows:
        selectors = [defended.selector for defended in all_defended]
        all_by_shadows = shadow_scores(run, defense, protocol, split, pools, selectors)
    title = f"{title_of(DATASET_TITLES, run.dataset)}, {title_of(DEFENSE_TITLES, defense)}"
    rows, defended_by_scenario = [], {}
    for defended, by_shadows in zip(all_defended, all_by_shadows, strict=True):
        scores = attack(run, pools, defended, protocol) | by_shadows
        null = attack_null(run, defense, pools, defended, protocol)
        null |= {name: shuffled_scores(by_shadows[name], derive_seed("null", name, run.seed)) for name in by_shadows}
        row = row_facts(run, defense, protocol, defended, collected, pools)
        row |= measure(scores, null, protocol, run.config.attack)
        write_result(folder, row, scores)
        draw_roc(folder / f"{result_name(row)}_roc.png", f"{title}, {DIFFENCE_TITLES[defended.scenario]}", scores)
        rows.append(row)
        defended_by_scenario[defended.scenario] = defended
    logits = {DIFFENCE_TITLES[key]: each.outputs.map(attrgetter("logits")) for key, each in defended_by_scenario.items()}
    draw_phi(folder / f"{defense}_phi.png", title, logits)
    predictions = {key: scored_outputs(each, pools).non_members for key, each in defended_by_scenario.items()}
    draw_reliability(folder / f"{defense}_reliability.png", title, predictions)
    return rows


def fit_on_pool(run: Run, collected: Pair[LabelledLogits], pools: Pools, scenario: str) -> Selector:
    """The selector of a scenario, fitted on the defender's points."""
    config = run.config.diffence
    fit = collected.map(lambda side: side.take(pools.fit))
    return fit_selector(scenario, fit, config.grid, config.js_bins, config.fallback)


def defend(
    run: Run, model: DefendedModel, collected: Pair[LabelledLogits], pools: Pools, scenario: str | None
) -> DefendedOutputs:
    """The defended outputs of every evaluated image.

    A `scenario` applies Diffence to the model's logits, None does not. A post-inference defense, if the model has one, is
    applied to the result.
    """
    selector = None if scenario is None else fit_on_pool(run, collected, pools, scenario)
    keys = collected.map(lambda of, side: query_ids(side, range(len(of.labels))).numpy(), Pair(*SIDES))  # each image is a query
    logits = collected.map(lambda of, side_keys: released_logits(model, selector, of, side_keys), keys)
    return DefendedOutputs(selector, logits.map(Outputs, collected.map(attrgetter("labels"))))


def released_logits(model: DefendedModel, selector: Selector | None, collected: CandidateLogits, keys: Ints) -> np.ndarray:
    """The logits [n, C] that are released for n images, the queries `keys` int64 [n].

    These are those on the images themselves or, with a `selector`, those that it releases. A post-inference defense is applied
    to them (paper Section III-B4).
    """
    logits = collected.original if selector is None else selector.release(collected.candidates, collected.original)
    return logits if model.post_inference is None else release(model.post_inference, logits, keys)


def release(defense: PostInference, logits: np.ndarray, keys: Ints) -> np.ndarray:
    """The released log-probabilities [n, C] of a post-inference defense, from logits [n, C] of the queries `keys` int64 [n]."""
    device = next(defense.parameters()).device
    return defense.release(torch.from_numpy(logits).to(device), torch.from_numpy(keys)).cpu().numpy()


def attack(run: Run, pools: Pools, defended: DefendedOutputs, protocol: str) -> dict[str, Scores]:
    """Scores of every attack on the defended outputs, by name."""
    known, scored = known_and_scored(pools)
    return attack_all(defended.outputs, known, scored, nn_options(run, protocol), run.seed)


def attack_null(run: Run, defense: str, pools: Pools, defended: DefendedOutputs, protocol: str) -> dict[str, Scores]:
    """The null: scores of the same attacks under shuffled membership, by name."""
    known, scored = known_and_scored(pools)
    shuffle_seed = derive_seed("null", result_file(defense, defended.scenario), run.seed)
    return attack_shuffled(defended.outputs, known, scored, nn_options(run, protocol), run.seed, shuffle_seed)


def known_and_scored(pools: Pools) -> tuple[Pair[Ints], Pair[Ints]]:
    """Positions of the attacker's known points and of the scored points, the same on both sides.

    Raises UserError where all scored points are known, which leaves none for attacks that are trained on the known points.
    """
    known, scored = np.array(pools.known), np.array(pools.scored)
    enough = len(np.setdiff1d(scored, known)) > 0
    require(enough, "the released protocol scores the known points and more: raise data.scored above data.known.")
    return Pair(known, known), Pair(scored, scored)


def nn_options(run: Run, protocol: str) -> NNOptions:
    """How the NN attack is trained under a protocol."""
    config = run.config.attack
    select_on: SelectOn = "known" if protocol == "clean" else "scored"
    return NNOptions(config.nn_epochs, config.nn_lr, config.nn_batch_size, config.nn_held_out, select_on, run.device)


def scored_outputs(defended: DefendedOutputs, pools: Pools) -> Pair[Outputs]:
    """The defended outputs of the scored images."""
    return defended.outputs.map(lambda side: side.take(np.array(pools.scored)))


def row_facts(
    run: Run, defense: str, protocol: str, defended: DefendedOutputs, collected: Pair[LabelledLogits], pools: Pools
) -> dict[str, Any]:
    """The part of a row that is not about attacks: provenance, training, accuracy and utility of the released predictions."""
    outputs, scored = scored_outputs(defended, pools), collected.map(lambda side: side.take(pools.scored))
    return {
        "kind": "evaluation",
        **provenance(run, defense, protocol),
        "accuracy": outputs.map(lambda side: float((side.logits.argmax(1) == side.labels).mean())).as_dict(),
        "scored": outputs.map(len).as_dict(),
        "utility": utility(outputs, scored.map(attrgetter("original"))),
        "training": training_facts(run, defense, protocol),
        "diffence": None if defended.selector is None else diffence_facts(run, defended.selector, scored, outputs),
    }


def diffence_facts(run: Run, selector: Selector, scored: Pair[LabelledLogits], outputs: Pair[Outputs]) -> dict[str, Any]:
    """The setting of Diffence, and counts over the scored images, members and non-members apart.

    no_match: how many images have no candidate that keeps the label. draws: how many candidates of an image are drawn until one
    qualifies, one at a time, on average. labels_changed: how many released labels differ from the classifier's.
    """
    config = run.config.diffence
    labels = scored.map(lambda side: side.original.argmax(1))
    candidates = scored.map(attrgetter("candidates"))
    choices = candidates.map(selector.choose, labels)
    changed = outputs.map(lambda side, before: int((side.logits.argmax(1) != before).sum()), labels)
    return {
        "scenario": selector.scenario,
        "n": config.n,
        "t": config.t,
        "steps": config.steps,
        "forward": config.forward,
        "interval": [selector.low, selector.high] if np.isfinite(selector.low) else None,
        "no_match": choices.map(lambda choice: int((choice == ORIGINAL).sum())).as_dict(),
        "draws": candidates.map(lambda side, before: float(selector.draws(side, before).mean()), labels).as_dict(),
        "labels_changed": changed.as_dict(),
    }
