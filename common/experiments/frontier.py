"""`python <data set>/evaluate_MIAs/frontier.py --defense NAME`: how small may Diffence's diffusion model be?

With one DDIM evaluation, Diffence only removes the noise of one step, T. Networks of several sizes are trained for this, on all
steps up to T and on T alone, each for the same CPU time. A *cell* is one of these trainings. The same classifier is attacked
behind each of them in scenarios 1 and 3, and the cost of a query is timed. Every cell has a row of its own.

Candidates are drawn as in serving, until one qualifies in scenario 1, which then has qualified in scenario 3 as well. The
answers are those of drawing all N. Only the defender's points need all N, because the interval is fitted on them.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from common.config import require
from common.data.partition import Examples, Pools, Split, evaluation_pools, load_split, unscored_members
from common.defenses import DefendedModel, load_defended_model
from common.diffence.candidates import SHARD, query_ids
from common.diffence.ddpm import Padded, build_unet, ddpm_settings, ddpm_step, load_reconstructor, train_ddpm, training_images
from common.diffence.reconstruct import Reconstructor
from common.diffence.select import Selector
from common.experiments.collect import LabelledLogits, classify, refuse_infinite
from common.experiments.draw_cost import seconds, time_draws
from common.experiments.evaluate import fit_on_pool
from common.experiments.n_and_t import cell_of, facts_without, logits_alone, logits_settings
from common.experiments.overhead import timed_images
from common.experiments.training_cost import ddpm_cost
from common.experiments.variants import Variant, run_of
from common.files import cached_arrays, read_json, write_json
from common.pair import SIDES, Pair
from common.report.frontier import NETWORKS, TRAININGS
from common.report.rows import SCENARIO_TITLES, as_markdown
from common.run import Run, environment, provenance

SCENARIOS = ("1", "3")
CALIBRATION = 3  # training steps that are timed to learn how many fit into the minutes
SIZES = {  # of the networks in NETWORKS: channels of each level, residual blocks in a level
    "width 16": ([16, 32, 32], 1),
    "width 32": ([32, 64, 64], 1),
    "width 64": ([64, 128, 128], 2),
}


@dataclass(frozen=True)
class Cell:
    """A diffusion model of the frontier: its network and training, and the run with its settings.

    budget: the minutes of its training, and the steps and the seconds a step that follow from them.
    """

    network: str
    training: str
    budget: dict[str, float]
    run: Run


def frontier(run: Run, defense: str, minutes: float, count: int) -> list[dict[str, Any]]:
    """Train, attack and time every cell; writes and returns a row for each.

    Each diffusion model is trained for `minutes` of CPU time. `count` images of each side are scored, and a quarter as many fit
    the interval and are known to the attacker: the first images of the partition. Raises UserError where it has too few.
    """
    data = run.config.data
    require(minutes > 0, f"--minutes must be more than 0, not {minutes:g}.")
    require(4 <= count <= data.scored, f"--count must lie in 4..{data.scored}, the scored images of a side, not {count}.")
    split = load_split(run)
    smaller = replace(data, fit=count // 4, known=count // 4, scored=count)
    unseen_by_guard = set(unscored_members(data).tolist()).isdisjoint(evaluation_pools(smaller, "clean").scored)
    require(defense != "memguard" or unseen_by_guard, "so small a --count scores members that memguard's guard was trained on.")
    model = load_defended_model(run, defense, "clean")
    rows = []
    for network, training in product(NETWORKS, TRAININGS):
        cell = cell_with_steps(run, split, network, training, minutes)
        train_ddpm(cell.run, training_images(cell.run, split))
        evaluated = replace(cell.run, config=replace(cell.run.config, data=smaller))
        rows.append(row_of(run, replace(cell, run=evaluated), defense, model, split))
    return rows


def cell_with_steps(run: Run, split: Split, network: str, training: str, minutes: float) -> Cell:
    """A cell whose training steps take `minutes`. Both trainings of a network have the same steps, which are stored."""
    channels, layers = SIZES[network]
    t, name = run.config.diffence.t, f"frontier-{network}-{training}-{minutes:g}min".replace(" ", "_").replace(".", "_")
    overrides = [f"ddpm.name={name}", f"ddpm.channels={channels}", f"ddpm.layers={layers}", "ddpm.attention=[]"]
    overrides += ["ddpm.groups=8", "ddpm.dropout=0.0", f"ddpm.max_timestep={t}"]
    overrides += [f"ddpm.min_timestep={t}"] if training == "T alone" else []
    before = run_of(Variant("frontier", tuple(overrides)), run)
    path = before.ddpm_dir.with_name(f"frontier-{network.replace(' ', '_')}-{minutes:g}min-steps.json")
    timed = {key: value for key, value in ddpm_settings(before).items() if key not in ("min_timestep", "steps")}
    timed |= {"device": environment(run)["device"]}
    stored = read_json(path, f"rm {path}") if path.is_file() else {}
    if stored.get("timed") != timed:
        a_step = seconds_a_step(before, split)
        stored = {"minutes": minutes, "seconds_a_step": a_step, "steps": max(1, round(60 * minutes / a_step)), "timed": timed}
        write_json(path, stored)
    budget = {key: stored[key] for key in ("minutes", "seconds_a_step", "steps")}
    steps = budget["steps"]
    overrides += [f"ddpm.steps={steps}", f"ddpm.warmup={min(run.config.ddpm.warmup, steps // 10)}"]
    overrides += [f"ddpm.save_every={max(1, steps // 10)}"]
    return Cell(network, training, budget, run_of(Variant("frontier", tuple(overrides)), run))


def seconds_a_step(run: Run, split: Split) -> float:
    """The median CPU seconds of a training step of the run's diffusion model, after a step to warm up."""
    images, config = training_images(run, split).to(run.device), run.config.ddpm
    unet = build_unet(config, images.images.shape[2:]).to(run.device, memory_format=torch.channels_last).train()
    optimizer, network = torch.optim.Adam(unet.parameters(), config.lr), Padded(unet)
    times = [seconds(run, partial(ddpm_step, network, optimizer, images, config, i, i)) for i in range(CALIBRATION + 1)]
    return median(times[1:])


def row_of(run: Run, cell: Cell, defense: str, model: DefendedModel, split: Split) -> dict[str, Any]:
    """The row of a cell whose diffusion model is trained. One that exists, of this code and these settings, is read."""
    path = result_path(run, cell, defense)
    origin = provenance(run, defense, "clean") | {"config": cell.run.config.as_dict()}
    unchanged = ("config", *environment(run))
    if path.is_file():
        stored = read_json(path, f"rm {path}")
        if all(stored.get(key) == origin[key] for key in unchanged):
            return stored
    pools = evaluation_pools(cell.run.config.data, "clean")
    alone, collected = collect_lazily(cell.run, defense, model, split, pools)
    reconstruct = load_reconstructor(cell.run)
    cells = {one: cell_of(cell.run, model, "clean", pools, collected, one) for one in SCENARIOS}
    draws = {one: sum(cells[one]["draws"].values()) / len(SIDES) for one in SCENARIOS}
    images = timed_images(cell.run, split, min(len(pools.scored), 32))
    row = {
        "kind": "frontier",
        **origin,
        "network": cell.network,
        "training": cell.training,
        "budget": cell.budget,
        "ddpm": ddpm_cost(cell.run),
        **facts_without(cell.run, model, "clean", pools, alone),
        "cells": [cells[one] for one in SCENARIOS],
        "cost": time_draws(cell.run, model.classifier, reconstruct, images, draws),
    }
    write_json(path, row)
    return row


def result_path(run: Run, cell: Cell, defense: str) -> Path:
    """The file of a cell's row, beside those of evaluate_mia."""
    minutes, count = cell.budget["minutes"], cell.run.config.data.scored
    name = f"frontier-{defense}-{cell.network}-{cell.training}-{minutes:g}min-{count}images"
    return run.results_dir("clean") / f"{name.replace(' ', '_')}.json"


def collect_lazily(
    run: Run, defense: str, model: DefendedModel, split: Split, pools: Pools
) -> tuple[Pair[LabelledLogits], Pair[LabelledLogits]]:
    """The logits of both sides on the images alone, and with their candidates, as far as scenarios 1 and 3 draw them."""
    used = split.evaluated.map(lambda side: side.take(slice(len(pools.used))))
    alone = used.map(partial(logits_alone, run, model))
    reconstruct = load_reconstructor(run)
    with tqdm(total=sum(map(len, used)), desc="candidates", unit="image", smoothing=0.05, disable=None) as progress:

        def of_range(selector: Selector | None, positions: range, side: str, examples: Examples, of: LabelledLogits) -> Any:
            """The logits [b, N, C] on candidates of the images at `positions`, in shards that are stored."""
            settings = logits_settings(run, defense, "clean") | {"n": run.config.diffence.n}
            settings["interval"] = None if selector is None else [selector.low, selector.high]
            parts = []
            for start in range(positions.start, positions.stop, SHARD):
                stop = min(start + SHARD, positions.stop)
                images = examples.pixels(slice(start, stop)).to(run.device)
                queries, original = query_ids(side, range(start, stop)), of.original[start:stop]
                work = partial(draw_until, run, model.classifier, reconstruct, selector, images, queries, original)
                path = run.outputs_dir / "frontier" / f"{defense}-{side}-{start}-{stop}.npz"
                parts.append(cached_arrays(path, settings, work)["candidates"])
                progress.update(stop - start)
            logits = np.concatenate(parts)
            refuse_infinite(run, defense, logits)
            return logits

        sides = Pair(*SIDES)
        fitted = sides.map(partial(of_range, None, pools.fit), used, alone)
        fit = alone.map(lambda side, logits: replace(side.take(pools.fit), candidates=logits), fitted)
        selector = fit_on_pool(run, fit, pools, "1")
        others = sides.map(partial(of_range, selector, range(pools.fit.stop, pools.used.stop)), used, alone)
    return alone, alone.map(lambda side, *parts: replace(side, candidates=np.concatenate(parts)), fitted, others)


@torch.inference_mode()
def draw_until(
    run: Run,
    classifier: nn.Module,
    reconstruct: Reconstructor,
    selector: Selector | None,
    images: torch.Tensor,
    queries: torch.Tensor,
    original: np.ndarray,
) -> dict[str, np.ndarray]:
    """`candidates`: logits [B, N, C] on the candidates of images [B, 3, H, W], drawn one by one until one qualifies.

    `queries` [B] name the noise of the images, `original` [B, C] are their logits. The last candidate that was drawn stands in
    for those after it, which no scenario looks at: the first that qualifies is released. Without a selector all N are drawn.
    """
    labels, waiting = original.argmax(1), torch.arange(len(images))
    candidates = original[:, None].repeat(run.config.diffence.n, axis=1)
    for number in range(run.config.diffence.n):
        if not len(waiting):
            break
        drawn = [
            reconstruct(images[rows.to(images.device)], queries[rows], torch.full_like(rows, number))
            for rows in waiting.split(run.config.diffence.batch)
        ]
        stored = torch.cat(drawn).half().float()  # as evaluations store candidates (common/diffence/candidates.py)
        logits = classify(classifier, stored[:, None], run.device)
        candidates[waiting.numpy(), number:] = logits
        if selector is not None:
            waiting = waiting[torch.from_numpy(selector.distance(logits[:, 0], labels[waiting.numpy()]) > 0)]
    return {"candidates": candidates}


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a table with a line for each cell and scenario."""
    lines = []
    for row in rows:
        for cell in row["cells"]:
            costs = {
                f"x {one['classifier']}, {one['batch']} at once": f"{one['over_bare'][cell['scenario']]:.1f}"
                for one in row["cost"]["queries"]
            }
            lines.append(
                {
                    "network": f"{row['network']}, {row['cost']['gflop']['unet']:.2f} GFLOP",
                    "trained on": row["training"],
                    "Diffence": SCENARIO_TITLES[cell["scenario"]],
                    "best AUC [95%]": "{:.3f} [{:.3f}, {:.3f}]".format(cell["best"]["auc"], *cell["auc_interval"]),
                    "no match": f"{100 * sum(cell['no_match'].values()) / sum(row['scored'].values()):.1f}%",
                    "draws": f"{np.mean(list(cell['draws'].values())):.2f}",
                    **costs,
                }
            )
    without = f"Without Diffence {rows[0]['without']['best']['auc']:.3f}, gap floor {rows[0]['gap_floor']:.3f}."
    return f"{as_markdown(pd.DataFrame(lines))}\n\n{without}"
