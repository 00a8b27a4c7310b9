"""`python -m common.grid cifar10 --defense hamp --profile small`: train a defense at every point of a grid of its options.

HAMP and RelaxLoss were tuned by grid search and the settings picked by hand (paper Appendix E). This writes what a person
picks from: a row a setting, and a picture of test accuracy against the best attack's AUC without Diffence. Both come from
the points that protocol `clean` does not score (the defender's and the attacker's, `data.fit` and `data.known`), and the
attacks are those that train nothing: picking on the scored points would flatter the tables. A finished setting is not
trained again, so the same command continues and a larger grid adds to a smaller one. Each setting's models lie in
<data set>/final-all-models/<profile>/seed0/<model>/grid/<defense>/<setting>/.
"""

import itertools
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from common import cli
from common.attacks import METRIC_ATTACKS, Outputs
from common.attacks.contract import redealt
from common.config import load_config, require
from common.data import DATASETS
from common.data.partition import Split, load_split, pools
from common.defenses import DEFENSES, with_options
from common.errors import check_name
from common.figures import draw_trade_off
from common.files import atomic_write, derive_seed
from common.metrics import auc
from common.run import Run, environment, open_run
from common.targets import PostInference, load_target
from common.training import predict

ROOT = Path(__file__).parents[1]

# The grids of the released code, as --grid takes them (for CIFAR-100 it adds 2 to RelaxLoss's).
GRIDS: dict[str, list[str]] = {
    "hamp": ["gamma=0.5,0.6,0.7,0.8,0.9,0.95,0.99", "alpha=0.0005,0.001,0.005,0.01"],
    "relaxloss": ["alpha=0.00001,0.00005,0.0001,0.0005,0.001,0.005,0.01,0.05,0.07,0.1,0.2,0.3,0.4,0.5,1"],
}


@dataclass(frozen=True)
class GridRun(Run):
    """The run of one setting: its models lie in a folder of their own, beside those of the plain run."""

    defense: str = ""
    setting: tuple[str, ...] = ()  # ("gamma=0.5", "alpha=0.001")

    @property
    def models_dir(self) -> Path:
        return super().models_dir / "grid" / self.defense / ",".join(self.setting)

    def command(self, script: str, *arguments: str) -> str:
        if script != "train_defense.py":
            return super().command(script, *arguments)
        made = super().command(script, *arguments, f"--grid {' '.join(self.setting)}")
        return made.replace(f"python {self.dataset}/{script}", f"python -m common.grid {self.dataset}")


def read_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """`gamma=0.5,0.8 alpha=0.001` as {"gamma": ["0.5", "0.8"], "alpha": ["0.001"]}. UserError for a word of another form."""
    grid = {}
    for word in words:
        option, _, values = word.partition("=")
        grid[option] = list(dict.fromkeys(value for value in values.split(",") if value))
        require(bool(option and grid[option]), f"--grid {word} names no values: write it as OPTION=VALUE,VALUE.")
    return grid


def runs_of(run: Run, defense: str, grid: dict[str, list[str]]) -> list[GridRun]:
    """One run for each combination of the grid's values, every option checked. UserError names what is wrong."""
    known = " and ".join(GRIDS)
    require(bool(grid), f"there is no default grid for {defense} (only for {known}): name one, as in --grid alpha=3,6.")
    runs = []
    for values in itertools.product(*grid.values()):
        setting = tuple(f"{option}={value}" for option, value in zip(grid, values, strict=True))
        changes = [*run.overrides, *(f"defenses.{defense}.{word}" for word in setting), "train.best_on_test=false"]
        config = with_options(replace(run, config=load_config(run.folder, run.profile, changes))).config
        common = (run.folder, run.profile, config, run.seed, run.device, run.overrides)
        runs.append(GridRun(*common, defense=defense, setting=setting))
    guards = isinstance(DEFENSES[defense].build(run), PostInference)
    require(not guards, f"{defense} changes the answers of the undefended classifier and trains none: it has no grid.")
    return runs


def measured(run: Run, defense: str, split: Split) -> dict[str, Any]:
    """Accuracy on members (train) and non-members (test) and the AUC of every attack that trains nothing, all 0..1.

    null_auc: the best of the same scores under shuffled membership. On the first `data.fit + data.known` images a side, which
    are scored under protocol `released` only.
    """
    model = load_target(run, defense, "clean", DEFENSES[defense].build(run))
    places = slice(pools(run.config.data, "clean").scored.start)
    members, others = (
        Outputs(predict(model, part.take(places), run.device).numpy(), part.labels[places].numpy())
        for part in (split.members, split.non_members)
    )
    scores = {name: (score(members), score(others)) for name, score in METRIC_ATTACKS.items()}
    order = np.random.default_rng(derive_seed("null", "grid", run.seed)).permutation(2 * len(members))
    aucs = {name: auc(*pair) for name, pair in scores.items()}
    gap_floor = aucs.pop("correctness")
    train, test = (float((side.logits.argmax(1) == side.labels).mean()) for side in (members, others))
    return {
        "test_accuracy": test,
        "train_accuracy": train,
        "best_auc": max(aucs.values()),
        "gap_floor": gap_floor,
        "null_auc": max(auc(*redealt(*scores[name], order)) for name in aucs),
        **{f"{name}_auc": value for name, value in aucs.items()},
        "points_a_side": len(members),
    }


def pareto(accuracy: ArrayLike, leakage: ArrayLike) -> NDArray[np.bool_]:
    """Which of n settings [n] no other one beats: none is at least as accurate and leaks no more, and is better in one."""
    a, b = np.asarray(accuracy, np.float64), np.asarray(leakage, np.float64)
    no_worse = (a >= a[:, None]) & (b <= b[:, None])
    better = (a > a[:, None]) | (b < b[:, None])
    return np.asarray(~(no_worse & better).any(axis=1))


def search(run: Run, runs: Sequence[GridRun], split: Split) -> Iterable[pd.DataFrame]:
    """Train and measure the undefended classifier, then setting after setting; yields the table of all rows so far."""
    defense, rows = runs[0].defense, []
    no_setting = [f"{word.split('=')[0]}=-" for word in runs[0].setting]
    for one in tqdm([run, *runs], desc=f"grid of {defense}", unit="setting", disable=None):
        name = one.defense if isinstance(one, GridRun) else "undefended"
        DEFENSES[name].train(one, split)
        setting = dict(word.split("=") for word in (one.setting if isinstance(one, GridRun) else no_setting))
        where = {"dataset": run.dataset, "profile": run.profile_name, "model": run.config.model.name, "seed": run.seed}
        made = {key: value for key, value in environment(one).items() if key in ("commit", "torch", "device")}
        rows.append({"defense": name, **setting, **measured(one, name, split), **where, **made})
        table = pd.DataFrame(rows)
        front = pareto(table["test_accuracy"][1:], table["best_auc"][1:])
        table.insert(1 + len(runs[0].setting), "pareto", [False, *front])
        yield table


def write(folder: Path, title: str, table: pd.DataFrame, options: Sequence[str]) -> None:
    """Write the rows as CSV and the picture beside it; the undefended classifier is the first row."""
    settings = table[1:]
    name = f"{settings['defense'].iloc[0]}_grid"
    atomic_write(folder / f"{name}.csv", lambda file: file.write(table.to_csv(index=False).encode()))
    labels = settings[list(options)].agg(", ".join, axis=1)
    undefended, *points = zip(table["test_accuracy"], table["best_auc"], strict=True)
    named = dict(zip(labels, points, strict=True))
    draw_trade_off(folder / f"{name}.png", f"{title}: {', '.join(options)}", named, set(labels[settings["pareto"]]), undefended)


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line; `folder` is the repository's root and the data set comes first."""
    asked = any(word in ("-h", "--help") for word in arguments)
    dataset = "cifar10" if asked else check_name("data set (named first)", "".join(arguments[:1]), DATASETS)
    made = cli.parser(folder / dataset, "Train a defense at every point of a grid and draw its utility and its privacy.")
    made.add_argument("dataset", help=f"{', '.join(DATASETS)}; named first")
    made.add_argument("--defense", required=True, help=f"{' or '.join(GRIDS)}; others with --grid")
    made.add_argument(
        "--grid", nargs="+", default=[], metavar="OPTION=VALUE,VALUE", help="as in --grid gamma=0.5,0.8 alpha=0.001"
    )
    made.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many minutes; a rerun continues")
    parsed = made.parse_args(arguments)
    check_name("defense", parsed.defense, DEFENSES)
    require(parsed.minutes > 0, f"--minutes must be positive, not {parsed.minutes}.")
    run = with_options(open_run(folder / dataset, parsed))
    runs = runs_of(run, parsed.defense, read_grid(parsed.grid or GRIDS.get(parsed.defense, [])))
    if isfinite(parsed.minutes):  # as Ctrl-C would, which every training survives
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 60 * parsed.minutes)
    split, results = load_split(run), run.results_dir("clean")
    options = [word.split("=")[0] for word in runs[0].setting]
    for table in search(run, runs, split):
        if len(table) > 1:
            write(results, f"{run.dataset}, {run.profile_name}, {parsed.defense}", table, options)
    shown = ["defense", *options, "pareto", "test_accuracy", "train_accuracy", "best_auc", "gap_floor", "null_auc"]
    ranked = table.sort_values("test_accuracy", ascending=False)[shown]
    print(ranked.to_markdown(index=False, floatfmt=".3f", disable_numparse=range(1, 1 + len(options))))
    print(f"\n{results / parsed.defense}_grid.csv and .png. What you pick goes into {folder / dataset / 'configs'}.")


if __name__ == "__main__":
    cli.run_script(main, ROOT)
