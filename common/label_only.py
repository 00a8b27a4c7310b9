"""`python <data set>/evaluate_MIAs/label_only.py --defense NAME`: the attacks that see labels only (paper Table VI).

Diffence keeps every label, so without --scenario it is not asked: its answers to these attacks are those of the classifier,
which a test shows. With --scenario the attacks ask the defended classifier, at the price of its reconstructions.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.attacks import METRIC_ATTACKS, Outputs, Scores
from common.attacks.boundary import BoundaryResult, LabelOnly, augmentation_scores, boundary_distances, shifts
from common.attacks.contract import dealt_out
from common.config import require
from common.data.partition import Examples, Split, load_split, pools
from common.defenses import DEFENSES
from common.diffence.candidates import candidate_settings
from common.diffence.protect import load_protected
from common.evaluate import release
from common.files import derive_seed, read_arrays, refuse_other_config, sha256, write_arrays, write_json
from common.measure import null_part, report_of
from common.outputs import collect
from common.report import result_file
from common.run import Run, provenance
from common.targets import PostInference, load_target, training_facts, weights_path

BATCH = 20  # images searched at once, and saved at once


def label_only(run: Run, defense: str, protocol: str, count: int, steps: int, scenario: str | None) -> dict[str, Any]:
    """Attack the first `count` scored images of each side, with thresholds from as many known ones; writes and returns the row.

    `steps` of HopSkipJump; `scenario` None asks the classifier alone. Raises UserError for a count that the pools do not have.
    """
    split, places = load_split(run), pools(run.config.data, protocol)
    most = min(len(places.known), len(places.scored))
    require(0 < count <= most, f"--count must lie in 1..{most}, the known and the scored images of a side, not {count}.")
    answering, facts = answering_model(run, defense, protocol, split, scenario)
    sides = {"members": split.members, "non_members": split.non_members}
    # In the order of the fields of Scores.
    points = {name: _first(side, places.scored, count) for name, side in sides.items()}
    points |= {f"known_{name}": _first(side, places.known, count) for name, side in sides.items()}
    # The attacker's own images, as many for every --count, are where its searches start.
    starts = torch.cat([_first(side, places.known, len(places.known)).pixels(slice(None)) for side in sides.values()])
    result = result_path(run, defense, protocol, count, steps, scenario)
    stored = run.outputs_dir / f"{result.stem}-{protocol}.npz"
    settings = {
        "weights": sha256(weights_path(run, defense, protocol)),
        "partition": sha256(run.partition_dir / "manifest.json"),
        "pools": {name: [pool.start, pool.stop] for name, pool in vars(places).items()},
        "batch": BATCH,
        "diffence": facts,
    }
    found = boundary(run, answering, points, starts, steps, stored, settings)
    scores = {
        "correctness": Scores(*(_correctness(run, answering, part) for part in points.values())),
        "augmentation": Scores(*(_augmentation(run, answering, part) for part in points.values())),
        "boundary": Scores(*found.distances),
    }
    row = describe(run, defense, protocol, scores, facts) | {
        "boundary": {
            "steps": steps,
            "asked_an_image": found.asked / found.distances.size,
            "failed": dict(zip(points, found.failed.sum(1).tolist(), strict=True)),
            "median_distance": dict(zip(points, np.median(found.distances, axis=1).tolist(), strict=True)),
        },
        "augmentation": {"asked_an_image": len(shifts(1))},
        "correctness": {"asked_an_image": 1},
    }
    write_json(result, row)
    return row


def describe(
    run: Run, defense: str, protocol: str, scores: dict[str, Scores], diffence: dict[str, Any] | None
) -> dict[str, Any]:
    """A row like those of common/evaluate.py: how it came about, and every attack's metrics. It has no `best`, by which
    common/tables.py tells the rows of its main tables.
    """
    attacks = {name: report_of(points, protocol, run.config.attack) for name, points in scores.items()}
    dealt = {name: dealt_out(points, derive_seed("null", "label-only", name, run.seed)) for name, points in scores.items()}
    null = {name: report_of(points, protocol, run.config.attack) for name, points in dealt.items()}
    gap = scores["correctness"]
    return {
        **provenance(run, defense, protocol),
        "accuracy": {"members": float(gap.members.mean()), "non_members": float(gap.non_members.mean())},
        "scored": {"members": len(gap.members), "non_members": len(gap.non_members)},
        "training": training_facts(run, defense, protocol),
        "diffence": diffence,
        "attacks": attacks,
        "gap_floor": attacks["correctness"]["auc"],
        "null": {"attacks": null_part(null)},
    }


def result_path(run: Run, defense: str, protocol: str, count: int, steps: int, scenario: str | None) -> Path:
    """Where a row lies, beside those of evaluate_mia."""
    return run.results_dir(protocol) / f"label_only-{result_file(defense, scenario)}-{count}images-{steps}steps.json"


def answering_model(
    run: Run, defense: str, protocol: str, split: Split, scenario: str | None
) -> tuple[nn.Module, dict[str, Any] | None]:
    """The classifier that is asked, and the setting of Diffence in front of it (None = without).

    A post-inference defense (MemGuard) keeps labels by its definition, so its classifier answers for it.
    """
    model = load_target(run, defense, protocol, DEFENSES[defense].build(run))
    classifier = model.classifier if isinstance(model, PostInference) else model
    if scenario is None:
        return classifier, None
    places, chosen = pools(run.config.data, protocol), run.config.diffence
    selector = release(run, collect(run, defense, protocol, classifier, split), places, scenario).selector
    assert selector is not None
    interval = [selector.low, selector.high] if np.isfinite(selector.low) else None
    facts = {"scenario": scenario, "n": chosen.n, "stable": chosen.stable, "interval": interval, **candidate_settings(run)}
    return load_protected(run, classifier, selector), facts


def _first(side: Examples, places: range, count: int) -> Examples:
    return side.take(slice(places.start, places.start + count))


def _correctness(run: Run, answering: nn.Module, part: Examples) -> np.ndarray:
    answers = LabelOnly(answering)(part.pixels(slice(None)).to(run.device))
    return METRIC_ATTACKS["correctness"](Outputs(answers.cpu().double().numpy(), part.labels.numpy()))


def _augmentation(run: Run, answering: nn.Module, part: Examples) -> np.ndarray:
    return augmentation_scores(answering, part.pixels(slice(None)), part.labels, device=run.device)


def boundary(
    run: Run,
    answering: nn.Module,
    points: dict[str, Examples],
    starts: torch.Tensor,
    steps: int,
    path: Path,
    settings: dict[str, Any],
) -> BoundaryResult:
    """`boundary_distances` of each of `points`, a row each: arrays [len(points), n]. Every batch is saved to `path`, where a
    killed run continues; UserError where `path` was made under other `settings`.
    """
    shape = len(points), max(len(part) for part in points.values())
    kept = {"distances": np.full(shape, np.nan), "failed": np.zeros(shape, dtype=bool), "asked": np.zeros((), dtype=np.int64)}
    stored = read_arrays(path)
    if stored:
        refuse_other_config(path, stored[0], settings, "delete it and run this again.")
        kept = stored[1]
    waiting = np.isnan(kept["distances"])
    with tqdm(total=waiting.size, desc="boundary attack", unit="image", smoothing=0.1, disable=None) as progress:
        progress.update(int((~waiting).sum()))
        for row, (name, part) in enumerate(points.items()):
            for begin in range(0, len(part), BATCH):
                where = row, slice(begin, begin + BATCH)
                if not waiting[where].any():
                    continue
                images, seed = part.pixels(where[1]), derive_seed("label-only", name, begin, run.seed)
                found = boundary_distances(
                    answering, images, part.labels[where[1]], steps=steps, seed=seed, device=run.device, starts=starts
                )
                kept["distances"][where], kept["failed"][where] = found.distances, found.failed
                kept["asked"] = kept["asked"] + found.asked
                write_arrays(path, settings, **kept)
                progress.update(len(images))
    return BoundaryResult(kept["distances"], kept["failed"], int(kept["asked"]))
