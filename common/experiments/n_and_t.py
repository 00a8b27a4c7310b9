"""`python <data set>/evaluate_MIAs/n_and_t.py --defense NAME`: attacks for many N and T (paper Section IV-C2, Figure 11).

For each diffusion step T, the largest number of candidates is drawn once. Every smaller N uses the first N of them, and all
defenses of a call share them. The images of candidates are not kept, only a classifier's logits on them, in shards of 100
images. A killed run continues with the first shard, or with the first pair of N and T, that is missing.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from common.config import require
from common.data.partition import Examples, Pools, evaluation_pools, load_split
from common.defenses import DefendedModel, load_defended_model
from common.diffence.candidates import SHARD, candidate_settings, draw_shard
from common.diffence.ddpm import load_reconstructor
from common.experiments.collect import LabelledLogits, classify, refuse_infinite
from common.experiments.evaluate import DefendedOutputs, attack, defend, diffence_facts, scored_outputs
from common.files import read_arrays, read_json, sha256, write_arrays, write_json
from common.pair import SIDES, Pair
from common.report.measure import best_of, null_report, report_of
from common.report.rows import SCENARIO_TITLES, as_markdown
from common.run import Run, provenance
from common.training import predict
from common.training.targets import weights_path

# The ends are the paper's. Its text does not name the values between them.
N_VALUES = (2, 5, 10, 20, 30, 40, 50)
T_VALUES = (40, 80, 120, 160, 200, 240, 260)

Cell = dict[str, Any]  # what attacks reach with one N, T and scenario


def known_steps(run: Run) -> list[int]:
    """Those of T_VALUES that the run's diffusion model is trained on. Raises UserError where there are none."""
    most = run.config.ddpm.max_timestep
    known = [t for t in T_VALUES if t <= most]
    require(bool(known), f"the diffusion model is trained on T = 1..{most} (ddpm.max_timestep): name some of these with --t.")
    return known


def n_and_t(
    run: Run, defenses: Sequence[str], protocol: str, scenarios: Sequence[str], n_values: Sequence[int], t_values: Sequence[int]
) -> list[dict[str, Any]]:
    """Attack each defense behind Diffence with every N, T and scenario; writes and returns a row for each defense.

    Raises UserError for a T that the diffusion model is not trained on, and for an N below 1.
    """
    require(min(n_values) > 0, f"--n must be at least 1, not {min(n_values)}.")
    at_each_t = [with_n_and_t(run, max(n_values), t) for t in t_values]
    split, pools = load_split(run), evaluation_pools(run.config.data, protocol)
    models = {defense: load_defended_model(run, defense, protocol) for defense in defenses}
    used = split.evaluated.map(lambda side: side.take(slice(len(pools.used))))
    alone = {defense: used.map(partial(logits_alone, run, model)) for defense, model in models.items()}
    cells: dict[str, list[Cell]] = {defense: [] for defense in defenses}
    for at_t in at_each_t:
        draw_and_classify(at_t, models, protocol, used)
        for defense, model in models.items():
            collected = Pair(*SIDES).map(partial(with_candidates, at_t, defense, protocol), alone[defense])
            cells[defense] += cells_at(at_t, defense, model, protocol, pools, collected, scenarios, n_values)
    rows = []
    for defense, model in models.items():
        row = {
            "kind": "n_and_t",
            **provenance(run, defense, protocol),
            "n_values": list(n_values),
            "t_values": list(t_values),
            "scenarios": list(scenarios),
            "left_out": left_out(run),
            **facts_without(run, model, protocol, pools, alone[defense]),
            "cells": sorted(cells[defense], key=lambda cell: scenarios.index(cell["scenario"])),  # then by T, then by N
        }
        write_json(result_path(run, defense, protocol, n_values, t_values), row)
        rows.append(row)
    return rows


def with_n_and_t(run: Run, n: int, t: int) -> Run:
    """The run with other values of `diffence.n` and `diffence.t`, which the config checks."""
    return replace(run, config=replace(run.config, diffence=replace(run.config.diffence, n=n, t=t)))


def result_path(run: Run, defense: str, protocol: str, n_values: Sequence[int], t_values: Sequence[int]) -> Path:
    """The file of a row, beside those of evaluate_mia."""
    name = f"n_and_t-{defense}-n{max(n_values)}-t{min(t_values)}-{max(t_values)}.json"
    return run.results_dir(protocol) / name


def left_out(run: Run) -> dict[str, Any] | None:
    """The T_VALUES that the diffusion model is not trained on, and its last step. None if there are none."""
    most = run.config.ddpm.max_timestep
    late = [t for t in T_VALUES if t > most]
    return {"t_values": late, "max_timestep": most} if late else None


def draw_and_classify(run: Run, models: dict[str, DefendedModel], protocol: str, used: Pair[Examples]) -> None:
    """Draw the N candidates of the evaluated images for the run's T, and store every classifier's logits on them.

    A shard is drawn only where the logits of a classifier are missing.
    """
    settings = {defense: logits_settings(run, defense, protocol) for defense in models}
    shards = [(side, examples, start) for side, examples in used.as_dict().items() for start in range(0, len(examples), SHARD)]
    reconstruct = None
    title = f"candidates, T = {run.config.diffence.t}"
    with tqdm(total=sum(map(len, used)), desc=title, unit="image", smoothing=0.05, disable=None) as progress:
        for side, examples, start in shards:
            positions = range(start, min(start + SHARD, len(examples)))
            paths = {defense: shard_path(run, defense, protocol, side, start) for defense in models}
            missing = [name for name, path in paths.items() if read_shard(run, path, settings[name], positions) is None]
            if missing:
                reconstruct = reconstruct or load_reconstructor(run)
                candidates = torch.from_numpy(draw_shard(run, reconstruct, examples, side, positions)).float()
            for defense in missing:
                logits = classify(models[defense].classifier, candidates, run.device)
                refuse_infinite(run, defense, logits)
                write_arrays(paths[defense], settings[defense], candidates=logits)
            progress.update(len(positions))


def logits_settings(run: Run, defense: str, protocol: str) -> dict[str, Any]:
    """Everything that a classifier's logits on candidates depend on, beside the images and N."""
    return {
        "weights": sha256(weights_path(run, defense, protocol)),
        "options": run.config.defenses.get(defense, {}),
        "candidates": candidate_settings(run),
    }


def shard_path(run: Run, defense: str, protocol: str, side: str, start: int) -> Path:
    """The file of a defense's logits on the candidates of 100 images of a side, from position `start`."""
    return run.outputs_dir / "n_and_t" / f"{defense}-{protocol}-t{run.config.diffence.t}-{side}_{start:06d}.npz"


def read_shard(run: Run, path: Path, settings: dict[str, Any], positions: range) -> np.ndarray | None:
    """The stored logits [b, N, C] on the first N candidates of the images at `positions`. None where they are not complete."""
    stored, n = read_arrays(path), run.config.diffence.n
    if not stored or stored[0] != settings:
        return None
    logits: np.ndarray = stored[1]["candidates"]
    complete = len(logits) >= len(positions) and logits.shape[1] >= n
    return logits[: len(positions), :n] if complete else None


def logits_alone(run: Run, model: DefendedModel, examples: Examples) -> LabelledLogits:
    """A classifier's logits on images, each of which stands in for its only candidate."""
    original = predict(model.classifier, examples, run.device).numpy()
    return LabelledLogits(original, original[:, None], examples.labels.numpy())


def with_candidates(run: Run, defense: str, protocol: str, side: str, alone: LabelledLogits) -> LabelledLogits:
    """The logits on images of a side with those on their stored candidates for the run's N and T."""
    settings, count = logits_settings(run, defense, protocol), len(alone.labels)
    starts = range(0, count, SHARD)
    shards = [
        read_shard(run, shard_path(run, defense, protocol, side, start), settings, range(start, min(start + SHARD, count)))
        for start in starts
    ]
    return replace(alone, candidates=np.concatenate([shard for shard in shards if shard is not None]))


def cells_at(
    run: Run,
    defense: str,
    model: DefendedModel,
    protocol: str,
    pools: Pools,
    collected: Pair[LabelledLogits],
    scenarios: Sequence[str],
    n_values: Sequence[int],
) -> list[Cell]:
    """The cells of the run's T for every scenario and N, by scenario and then by N. What was measured before is read."""
    t = run.config.diffence.t
    path = run.outputs_dir / "n_and_t" / f"{defense}-{protocol}-t{t}-cells.json"
    settings = {"logits": logits_settings(run, defense, protocol), "seed": run.seed, **run.config.as_dict()}
    settings["diffence"].pop("n")
    stored = read_json(path, f"rm {path}") if path.is_file() else {}
    cells: list[Cell] = stored["cells"] if stored.get("settings") == settings else []
    by_key = {(cell["scenario"], cell["n"]): cell for cell in cells}
    wanted = [(scenario, n) for scenario in scenarios for n in n_values]
    for scenario, n in tqdm(wanted, desc=f"attacks on {defense}, T = {t}", unit="cell", disable=None):
        if (scenario, n) not in by_key:
            first_n = collected.map(lambda side, n=n: replace(side, candidates=side.candidates[:, :n]))
            by_key[scenario, n] = cell_of(with_n_and_t(run, n, t), model, protocol, pools, first_n, scenario)
            write_json(path, {"settings": settings, "cells": list(by_key.values())})
    return [by_key[key] for key in wanted]


def cell_of(
    run: Run, model: DefendedModel, protocol: str, pools: Pools, collected: Pair[LabelledLogits], scenario: str
) -> Cell:
    """What attacks reach behind Diffence with the run's N and T in a scenario, and the counts of `diffence_facts`."""
    defended = defend(run, model, collected, pools, scenario)
    assert defended.selector is not None  # because a scenario is given
    scored = collected.map(lambda side: side.take(pools.scored))
    facts = diffence_facts(run, defended.selector, scored, scored_outputs(defended, pools))
    kept = ("t", "n", "scenario", "interval", "labels_changed", "no_match", "draws")
    return {key: facts[key] for key in kept} | attack_facts(run, protocol, pools, defended)


def attack_facts(run: Run, protocol: str, pools: Pools, defended: DefendedOutputs) -> dict[str, Any]:
    """AUC and accuracies of every attack on defended outputs, and of the best of the paper's five."""
    scores = attack(run, pools, defended, protocol)
    reports = {name: report_of(of_attack, protocol, run.config.attack) for name, of_attack in scores.items()}
    best = best_of(reports)
    return {
        "best": best,
        "auc_interval": reports[best["attack"]]["auc_interval"],
        "attacks": null_report(reports),
    }


def facts_without(run: Run, model: DefendedModel, protocol: str, pools: Pools, alone: Pair[LabelledLogits]) -> dict[str, Any]:
    """The part of a row about the classifier without Diffence: accuracy, gap floor, and what attacks reach."""
    defended = defend(run, model, alone, pools, None)
    outputs, facts = scored_outputs(defended, pools), attack_facts(run, protocol, pools, defended)
    return {
        "scored": outputs.map(len).as_dict(),
        "accuracy": outputs.map(lambda side: float((side.logits.argmax(1) == side.labels).mean())).as_dict(),
        "gap_floor": facts["attacks"]["correctness"]["auc"],
        "without": facts,
    }


def summary(row: dict[str, Any]) -> str:
    """A row as one table for each scenario: the AUC of the best attack, with a line for each T and a column for each N."""
    tables = []
    for scenario in row["scenarios"]:
        cells = pd.DataFrame([cell | {"auc": cell["best"]["auc"]} for cell in row["cells"] if cell["scenario"] == scenario])
        table = cells.pivot(index="t", columns="n", values="auc").map("{:.3f}".format)
        table.columns = [f"N = {n}" for n in table.columns]
        tables.append(f"{SCENARIO_TITLES[scenario]}, best AUC:\n\n{as_markdown(table.rename_axis('T').reset_index())}")
    without = f"Without Diffence {row['without']['best']['auc']:.3f}, gap floor {row['gap_floor']:.3f}."
    if late := row["left_out"]:
        without += (
            f"\nLeft out: T = {', '.join(map(str, late['t_values']))}. The diffusion model is trained on T up to "
            f"{late['max_timestep']}: raise ddpm.max_timestep and train it again for more."
        )
    return "\n\n".join([*tables, without])
