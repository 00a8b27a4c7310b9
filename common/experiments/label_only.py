"""`python <data set>/evaluate_MIAs/label_only.py --defense NAME`: the attacks that see labels only (paper Table VI).

In scenarios 1, 2 and 3 Diffence keeps every label, so that these attacks get the same labels with it as without it (a test
checks this). By default the classifier alone is therefore queried. With --scenario the classifier behind Diffence is queried,
which costs reconstructions.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.attacks import METRIC_ATTACKS, Outputs, Scores
from common.attacks.boundary import BoundaryResult, LabelOnly, augmentation_scores, boundary_distances, shifts
from common.attacks.contract import shuffled_scores
from common.config import require
from common.data.partition import Examples, Split, evaluation_pools, load_split
from common.defenses import load_defended_model
from common.diffence.candidates import candidate_settings
from common.diffence.protect import load_protected
from common.experiments.collect import collect
from common.experiments.evaluate import fit_on_pool
from common.files import read_arrays, refuse_other_config, sha256, write_arrays, write_json
from common.pair import Pair
from common.report.measure import null_report, report_of
from common.report.rows import result_file
from common.run import Run, provenance
from common.seeds import derive_seed
from common.training.targets import training_facts, weights_path

BATCH = 20  # images for which the boundary attack searches together, and whose distances are saved together


def label_only(run: Run, defense: str, protocol: str, count: int, steps: int, scenario: str | None) -> dict[str, Any]:
    """Attack the first `count` scored images of each side; writes and returns the row.

    Thresholds are fitted on as many known images. `steps` are those of HopSkipJump. With `scenario` None the classifier alone
    is queried. Raises UserError where a pool has fewer than `count` images.
    """
    split, pools = load_split(run), evaluation_pools(run.config.data, protocol)
    most = min(len(pools.known), len(pools.scored))
    require(0 < count <= most, f"--count must lie in 1..{most}, the known and the scored images of a side, not {count}.")
    one_answer = scenario != "average" or run.config.diffence.stable
    require(one_answer, "in --scenario average an image gets several labels: add --set diffence.stable=true.")
    model, diffence = attacked_model(run, defense, protocol, split, scenario)
    scored = split.evaluated.map(partial(_first_images, pool=pools.scored, count=count))
    known = split.evaluated.map(partial(_first_images, pool=pools.known, count=count))
    # Under the names that the row has for them, in the order in which their distances are stored.
    parts = scored.as_dict() | {f"known_{side}": examples for side, examples in known.as_dict().items()}
    # The searches start from the attacker's own images, which are the same for every --count.
    all_known = split.evaluated.map(partial(_first_images, pool=pools.known, count=len(pools.known)))
    starts = torch.cat([side.pixels(slice(None)) for side in all_known])
    row_path = result_path(run, defense, protocol, count, steps, scenario)
    distances_path = run.outputs_dir / f"{row_path.stem}-{protocol}.npz"
    settings = {
        "weights": sha256(weights_path(run, defense, protocol)),
        "partition": sha256(run.partition_dir / "manifest.json"),
        "pools": {name: [pool.start, pool.stop] for name, pool in vars(pools).items()},
        "batch": BATCH,
        "diffence": diffence,
    }
    boundary = search_boundary(run, model, parts, starts, steps, distances_path, settings)
    scores = {
        name: Scores(scored.map(partial(score, run, model)), known.map(partial(score, run, model)))
        for name, score in (("correctness", _correctness), ("augmentation", _augmentation))
    }
    scores["boundary"] = Scores(Pair(*boundary.distances[:2]), Pair(*boundary.distances[2:]))
    row = row_facts(run, defense, protocol, scores, diffence) | {
        "boundary": {
            "steps": steps,
            "asked_an_image": boundary.queries / boundary.distances.size,
            "failed": dict(zip(parts, boundary.failed.sum(1).tolist(), strict=True)),
            "median_distance": dict(zip(parts, np.median(boundary.distances, axis=1).tolist(), strict=True)),
        },
        "augmentation": {"asked_an_image": len(shifts(1))},
        "correctness": {"asked_an_image": 1},
    }
    write_json(row_path, row)
    return row


def row_facts(
    run: Run, defense: str, protocol: str, scores: dict[str, Scores], diffence: dict[str, Any] | None
) -> dict[str, Any]:
    """The part of a row that does not depend on the kind of attack: provenance, accuracy, metrics and null of all attacks."""

    def report(attack_scores: Scores) -> dict[str, Any]:
        return report_of(attack_scores, protocol, run.config.attack)

    attacks = {name: report(scores[name]) for name in scores}
    seeds = {name: derive_seed("null", "label-only", name, run.seed) for name in scores}
    null = {name: report(shuffled_scores(scores[name], seeds[name])) for name in scores}
    gap = scores["correctness"].scored
    return {
        "kind": "label_only",
        **provenance(run, defense, protocol),
        "accuracy": gap.map(lambda correct: float(correct.mean())).as_dict(),
        "scored": gap.map(len).as_dict(),
        "training": training_facts(run, defense, protocol),
        "diffence": diffence,
        "attacks": attacks,
        "gap_floor": attacks["correctness"]["auc"],
        "null": {"attacks": null_report(null)},
    }


def result_path(run: Run, defense: str, protocol: str, count: int, steps: int, scenario: str | None) -> Path:
    """The file of a row. It lies beside the rows of evaluate_mia."""
    return run.results_dir(protocol) / f"label_only-{result_file(defense, scenario)}-{count}images-{steps}steps.json"


def attacked_model(
    run: Run, defense: str, protocol: str, split: Split, scenario: str | None
) -> tuple[nn.Module, dict[str, Any] | None]:
    """The model that is queried for labels, and the setting of Diffence before it (None = without Diffence).

    A post-inference defense (MemGuard) keeps labels by definition, so that its classifier is queried instead of it.
    """
    classifier = load_defended_model(run, defense, protocol).classifier
    if scenario is None:
        return classifier, None
    pools, config = evaluation_pools(run.config.data, protocol), run.config.diffence
    selector = fit_on_pool(run, collect(run, defense, protocol, classifier, split), pools, scenario)
    interval = [selector.low, selector.high] if np.isfinite(selector.low) else None
    facts = {"scenario": scenario, "n": config.n, "stable": config.stable, "interval": interval, **candidate_settings(run)}
    return load_protected(run, classifier, selector), facts


def _first_images(side: Examples, pool: range, count: int) -> Examples:
    """The first `count` images of a pool."""
    return side.take(slice(pool.start, pool.start + count))


def _correctness(run: Run, model: nn.Module, part: Examples) -> np.ndarray:
    """Scores of the gap attack, float64 [n]: 1 where the label is correct, else 0."""
    labels = LabelOnly(model)(part.pixels(slice(None)).to(run.device))
    return METRIC_ATTACKS["correctness"](Outputs(labels.cpu().double().numpy(), part.labels.numpy()))


def _augmentation(run: Run, model: nn.Module, part: Examples) -> np.ndarray:
    """Scores of the augmentation attack, float64 [n]."""
    return augmentation_scores(model, part.pixels(slice(None)), part.labels, device=run.device)


def search_boundary(
    run: Run,
    model: nn.Module,
    parts: dict[str, Examples],
    starts: torch.Tensor,
    steps: int,
    path: Path,
    settings: dict[str, Any],
) -> BoundaryResult:
    """The `boundary_distances` of `parts`: arrays [number of parts, n], with one row for each part.

    Every batch is saved to `path`, so that a killed run continues. Raises UserError where the file at `path` was written under
    other `settings`.
    """
    shape = len(parts), max(len(part) for part in parts.values())
    arrays = {
        "distances": np.full(shape, np.nan),
        "failed": np.zeros(shape, dtype=bool),
        "asked": np.zeros((), dtype=np.int64),
    }
    stored = read_arrays(path)
    if stored:
        refuse_other_config(path, stored[0], settings, "delete it and run this again.")
        arrays = stored[1]
    missing = np.isnan(arrays["distances"])
    with tqdm(total=missing.size, desc="boundary attack", unit="image", smoothing=0.1, disable=None) as progress:
        progress.update(int((~missing).sum()))
        for row, (name, part) in enumerate(parts.items()):
            for start in range(0, len(part), BATCH):
                batch = slice(start, start + BATCH)
                if not missing[row, batch].any():
                    continue
                images, seed = part.pixels(batch), derive_seed("label-only", name, start, run.seed)
                result = boundary_distances(
                    model, images, part.labels[batch], steps=steps, seed=seed, device=run.device, starts=starts
                )
                arrays["distances"][row, batch], arrays["failed"][row, batch] = result.distances, result.failed
                arrays["asked"] = arrays["asked"] + result.queries
                write_arrays(path, settings, **arrays)
                progress.update(len(images))
    return BoundaryResult(arrays["distances"], arrays["failed"], int(arrays["asked"]))
