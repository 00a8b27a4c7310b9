"""`python <data set>/evaluate_MIAs/overhead.py --defense NAME`: the time of a query, without and with Diffence (paper Table V).

The same images are answered one at a time and in batches. Under Diffence, candidates are drawn one by one until one of them
qualifies, or all N at once, which takes the same time for every image. Training, and the search of scenario 1's interval, are
done before. MemGuard's noise is part of its answers. The paper averages over 100 members and 100 non-members.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from common.config import require
from common.data.partition import Split, evaluation_pools, load_split
from common.defenses import DefendedModel, load_defended_model
from common.diffence.ddpm import load_reconstructor
from common.diffence.protect import ProtectedClassifier
from common.diffence.reconstruct import DiffusionReconstructor
from common.experiments.collect import collect
from common.experiments.evaluate import fit_on_pool
from common.files import cached_arrays, write_json
from common.report.rows import SCENARIO_TITLES, as_markdown
from common.run import Run, environment, provenance
from common.seeds import image_keys

WARM_UP = 3  # calls before the first that is timed


@dataclass(frozen=True)
class Way:
    """A way to answer queries.

    scenario: of Diffence, None = without it. draws_at_once: how many candidates are drawn at a time, None = without Diffence.
    answer: answers images [B, 3, H, W] in [0, 1], and returns how many candidates it drew for all of them.
    """

    scenario: str | None
    draws_at_once: int | None
    answer: Callable[[torch.Tensor], int]


def overhead(run: Run, defense: str, scenarios: Sequence[str], batch: int, count: int) -> dict[str, Any]:
    """Time the answers to `count` scored images of each side, one at a time and `batch` in a call; writes and returns the row.

    Raises UserError where a side has fewer than `count` scored images.
    """
    most = run.config.data.scored
    require(count <= most, f"--count must lie in 1..{most}, the scored images of a side, not {count}.")
    require(batch <= 2 * count, f"--batch must lie in 1..{2 * count}, the images of both sides, not {batch}.")
    split = load_split(run)
    images = timed_images(run, split, count)
    answers, parts = [], []
    ways = [(way, size) for way in ways_to_answer(run, defense, scenarios, split) for size in sorted({1, batch})]
    for way, size in tqdm(ways, desc=f"answers of {defense}", unit="way", disable=None):
        facts = {"scenario": way.scenario, "batch": size, "draws_at_once": way.draws_at_once}
        path = run.outputs_dir / "overhead" / f"{defense}-{count}images-{'-'.join(map(str, facts.values()))}.npz"
        settings = {**facts, "config": run.config.as_dict(), **environment(run)}
        timed = cached_arrays(path, settings, partial(time_calls, run, way.answer, images, size))
        answers.append(facts | summarised(timed, size, way.scenario))
        parts.append(path)
    row = {
        "kind": "overhead",
        **provenance(run, defense, "clean"),
        "n": run.config.diffence.n,
        "t": run.config.diffence.t,
        "images": {"members": count, "non_members": count},
        "batch": batch,
        "answers": answers,
    }
    write_json(result_path(run, defense, batch, count), row)
    for path in parts:  # they let a killed run continue; the next measurement is a new one
        path.unlink()
    return row


def result_path(run: Run, defense: str, batch: int, count: int) -> Path:
    """The file of a row, beside those of evaluate_mia."""
    return run.results_dir("clean") / f"overhead-{defense}-batch{batch}-{count}images.json"


def timed_images(run: Run, split: Split, count: int) -> torch.Tensor:
    """The first `count` scored images of each side, member and non-member in turn: float32 [2 count, 3, H, W] on the device."""
    first = evaluation_pools(run.config.data, "clean").scored.start
    sides = [side.pixels(slice(first, first + count)) for side in split.evaluated]
    return torch.stack(sides, dim=1).flatten(0, 1).to(run.device)


def ways_to_answer(run: Run, defense: str, scenarios: Sequence[str], split: Split) -> list[Way]:
    """Without Diffence, then in each scenario with candidates drawn one by one and all at once. Averaging needs all of them."""
    model = load_defended_model(run, defense, "clean")

    def alone(images: torch.Tensor) -> int:
        released(model, model.classifier(images).float(), images)
        return 0

    ways = [Way(None, None, alone)]
    if not scenarios:
        return ways
    reconstruct, at_once = load_reconstructor(run), {1, run.config.diffence.n}
    behind = protected_classifiers(run, defense, model.classifier, reconstruct, split, scenarios, at_once)
    return [*ways, *(Way(scenario, draws, partial(behind_diffence, model, protected)) for scenario, draws, protected in behind)]


def protected_classifiers(
    run: Run,
    defense: str,
    classifier: nn.Module,
    reconstruct: DiffusionReconstructor,
    split: Split,
    scenarios: Sequence[str],
    at_once: Collection[int],
) -> Iterator[tuple[str, int, ProtectedClassifier]]:
    """A defense's `classifier` behind Diffence, in each scenario with each number of candidates drawn at a time.

    Averaging needs all N candidates at once.
    """
    pools, config = evaluation_pools(run.config.data, "clean"), run.config.diffence
    collected = collect(run, defense, "clean", classifier, split)
    for scenario in scenarios:
        selector = fit_on_pool(run, collected, pools, scenario)
        for draws in [config.n] if scenario == "average" else sorted(at_once):
            yield scenario, draws, ProtectedClassifier(classifier, reconstruct, selector, config.n, draws, config.batch)


def behind_diffence(model: DefendedModel, protected: ProtectedClassifier, images: torch.Tensor) -> int:
    """Answer images behind Diffence with new noise; returns how many candidates were drawn for all of them."""
    released(model, protected(images), images)
    return int(protected.drawn.sum())


def released(model: DefendedModel, logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """What the model releases for logits [B, C] of images: a post-inference defense, if it has one, changes them."""
    return logits if model.post_inference is None else model.post_inference.release(logits, image_keys(images))


@torch.inference_mode()
def time_calls(run: Run, answer: Callable[[torch.Tensor], int], images: torch.Tensor, size: int) -> dict[str, np.ndarray]:
    """Wall and CPU seconds of every call with `size` images, and how many candidates and images it had: arrays [calls].

    A last call with fewer images is left out.
    """
    calls = [part for part in images.split(size) if len(part) == size]
    for part in calls[:WARM_UP]:
        answer(part)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    wall, cpu, draws = (np.zeros(len(calls)) for _ in range(3))
    for i, part in enumerate(tqdm(calls, unit="call", leave=False, disable=None)):
        started = time.perf_counter(), time.process_time()
        draws[i] = answer(part)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        wall[i], cpu[i] = time.perf_counter() - started[0], time.process_time() - started[1]
    return {"wall": wall, "cpu": cpu, "draws": draws}


def summarised(timed: dict[str, np.ndarray], size: int, scenario: str | None) -> dict[str, Any]:
    """Milliseconds and candidates AN IMAGE, over the calls of `size` images."""

    def milliseconds(seconds: np.ndarray) -> dict[str, float]:
        an_image = 1000 * seconds / size
        p50, p95 = np.percentile(an_image, [50, 95])
        return {"p50": float(p50), "p95": float(p95), "mean": float(an_image.mean())}

    return {
        "draws": None if scenario is None else float(timed["draws"].mean() / size),
        "calls": len(timed["wall"]),
        "wall_ms": milliseconds(timed["wall"]),
        "cpu_ms": milliseconds(timed["cpu"]),
    }


def summary(row: dict[str, Any]) -> str:
    """A row as a table with a line for each way to answer and each batch size."""
    lines = [
        {
            "defense": row["defense"],
            "Diffence": "without" if one["scenario"] is None else SCENARIO_TITLES[one["scenario"]],
            "images a call": str(one["batch"]),
            "candidates at once": "-" if one["draws_at_once"] is None else str(one["draws_at_once"]),
            "candidates an image": "-" if one["draws"] is None else f"{one['draws']:.1f}",
            "ms an image, p50": f"{one['wall_ms']['p50']:.2f}",
            "CPU ms an image, p50": f"{one['cpu_ms']['p50']:.2f}",
        }
        for one in row["answers"]
    ]
    return as_markdown(pd.DataFrame(lines))
