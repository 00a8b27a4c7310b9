"""Train a defense at every point of a grid of its options, and measure its utility and privacy.

The command line is in `__main__`.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from common.attacks import METRIC_ATTACKS, Outputs
from common.attacks.contract import shuffle_membership
from common.config import require
from common.data.partition import Split, evaluation_pools
from common.defenses import DEFENSES, load_defended_model, with_options
from common.files import write_text
from common.metrics.privacy import auc
from common.profiles import load_config
from common.report.figures import draw_trade_off
from common.run import Run, environment
from common.seeds import derive_seed
from common.training.loop import predict


@dataclass(frozen=True)
class GridRun(Run):
    """The run of one setting of the grid. Its models have a folder of their own below that of the plain run's models."""

    defense: str = ""
    setting: tuple[str, ...] = ()  # ("gamma=0.5", "alpha=0.001")

    @property
    def models_dir(self) -> Path:
        return super().models_dir / "grid" / self.defense / ",".join(self.setting)

    def command(self, script: str, *arguments: str) -> str:
        if script != "train_defense.py":
            return super().command(script, *arguments)
        command = super().command(script, *arguments, f"--grid {' '.join(self.setting)}")
        return command.replace(f"python {self.dataset}/{script}", f"python -m common.grid {self.dataset}")


def read_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each option: ["gamma=0.5,0.8", "alpha=0.001"] -> {"gamma": ["0.5", "0.8"], "alpha": ["0.001"]}.

    A value that is repeated counts once. Raises UserError for a word of another form and for an option that is named twice.
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        option, _, values = word.partition("=")
        require(option not in grid, f"--grid names {option} twice: write all its values as {option}=VALUE,VALUE.")
        grid[option] = list(dict.fromkeys(value for value in values.split(",") if value))
        require(bool(option and grid[option]), f"--grid {word} names no values: write it as OPTION=VALUE,VALUE.")
    return grid


def grid_runs(run: Run, defense: str, grid: dict[str, list[str]]) -> list[GridRun]:
    """One run for each combination of the grid's values.

    Raises UserError for a defense that trains no classifier, for an unknown option and for a value out of range.
    """
    needed = DEFENSES[defense].needs
    require(not needed, f"{defense} changes the answers of {' and '.join(needed)} and trains no classifier: it has no grid.")
    runs = []
    for values in itertools.product(*grid.values()):
        setting = tuple(f"{option}={value}" for option, value in zip(grid, values, strict=True))
        overrides = [*run.overrides, *(f"defenses.{defense}.{word}" for word in setting), "train.best_on_test=false"]
        config = with_options(replace(run, config=load_config(run.folder, run.profile, overrides))).config
        common = (run.folder, run.profile, config, run.seed, run.device, run.overrides)
        runs.append(GridRun(*common, defense=defense, setting=setting))
    return runs


def measure_defense(run: Run, defense: str, split: Split) -> dict[str, Any]:
    """Accuracy on members (train) and on non-members (test), and the AUC of every attack that trains nothing: all 0..1.

    They are measured on the first `data.fit + data.known` images of each side, which protocol `clean` does not score. null_auc
    is the largest AUC of the same scores under shuffled membership.
    """
    model = load_defended_model(run, defense, "clean")
    pool = slice(evaluation_pools(run.config.data, "clean").scored.start)
    outputs = split.evaluated.map(
        lambda side: Outputs(predict(model.classifier, side.take(pool), run.device).numpy(), side.labels[pool].numpy())
    )
    scores = {name: outputs.map(attack) for name, attack in METRIC_ATTACKS.items()}
    order = np.random.default_rng(derive_seed("null", "grid", run.seed)).permutation(sum(map(len, outputs)))
    aucs = {name: auc(*pair) for name, pair in scores.items()}
    gap_floor = aucs.pop("correctness")
    train, test = outputs.map(lambda side: float((side.logits.argmax(1) == side.labels).mean()))
    return {
        "test_accuracy": test,
        "train_accuracy": train,
        "best_auc": max(aucs.values()),
        "gap_floor": gap_floor,
        "null_auc": max(auc(*shuffle_membership(scores[name], order)) for name in aucs),
        **{f"{name}_auc": value for name, value in aucs.items()},
        "points_a_side": len(outputs.members),
    }


def pareto(accuracy: ArrayLike, leakage: ArrayLike) -> NDArray[np.bool_]:
    """Which of n settings are on the Pareto front: bool [n].

    A setting is on it unless another one is no worse in both, `accuracy` [n] (higher is better) and `leakage` [n] (lower is
    better), and better in at least one.
    """
    accuracies, leakages = np.asarray(accuracy, np.float64), np.asarray(leakage, np.float64)
    # Element [i, j] says whether setting j is no worse, or better, than setting i.
    no_worse = (accuracies >= accuracies[:, None]) & (leakages <= leakages[:, None])
    better = (accuracies > accuracies[:, None]) | (leakages < leakages[:, None])
    return np.asarray(~(no_worse & better).any(axis=1))


def search(run: Run, runs: Sequence[GridRun], split: Split) -> Iterable[pd.DataFrame]:
    """Train and measure the undefended classifier, then one setting after another; yields the table of all rows so far."""
    rows, options = [], [word.split("=")[0] for word in runs[0].setting]
    undefended = run, "undefended", dict.fromkeys(options, "-")
    settings = [(grid_run, grid_run.defense, dict(word.split("=") for word in grid_run.setting)) for grid_run in runs]
    progress = tqdm([undefended, *settings], desc=f"grid of {runs[0].defense}", unit="setting", disable=None)
    for own_run, defense, values in progress:
        DEFENSES[defense].train(own_run, split)
        facts = {"dataset": run.dataset, "profile": run.profile_name, "model": run.config.model.name, "seed": run.seed}
        facts |= {key: value for key, value in environment(own_run).items() if key in ("commit", "torch", "device")}
        rows.append({"defense": defense, **values, **measure_defense(own_run, defense, split), **facts})
        table = pd.DataFrame(rows)
        front = pareto(table["test_accuracy"][1:], table["best_auc"][1:])
        table.insert(1 + len(options), "pareto", [False, *front])
        yield table


def write_table(folder: Path, title: str, table: pd.DataFrame, options: Sequence[str]) -> None:
    """Write a table of `search` as CSV, and its picture. `options` are the columns that name a setting."""
    settings = table[1:]
    name = f"{settings['defense'].iloc[0]}_grid"
    write_text(folder / f"{name}.csv", table.to_csv(index=False))
    labels = settings[list(options)].agg(", ".join, axis=1)
    undefended, *points = zip(table["test_accuracy"], table["best_auc"], strict=True)
    by_label, front = dict(zip(labels, points, strict=True)), set(labels[settings["pareto"]])
    draw_trade_off(folder / f"{name}.png", f"{title}: {', '.join(options)}", by_label, front, undefended)
