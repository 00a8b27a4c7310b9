"""The grid search: which settings are on the Pareto front, and what the command trains, keeps, writes and refuses."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, Call, refusal, run_script, tiny_run
from sklearn.metrics import roc_auc_score
from torch import nn

from common.config import Config
from common.data.partition import Examples, Split, load_split
from common.defenses import DefendedModel, with_options
from common.errors import UserError
from common.grid import search
from common.grid.__main__ import GRIDS
from common.grid.__main__ import main as grid_main
from common.grid.search import grid_runs, pareto, read_grid
from common.profiles import load_config
from common.run import Run
from common.training.loop import predict
from common.training.targets import target_classifier

OPTIONS = ["--defense", "hamp", "--device", "cpu", "--set", "train.epochs=2"]


def test_pareto_front() -> None:
    """By hand: c is beaten by b, d by a (as accurate, leaks more); two equal settings do not beat each other."""
    accuracy = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.9, "e": 0.8, "f": 0.1}
    leakage = {"a": 0.7, "b": 0.6, "c": 0.65, "d": 0.8, "e": 0.6, "f": 0.5}
    front = pareto(list(accuracy.values()), list(leakage.values()))
    assert {name for name, on in zip(accuracy, front, strict=True) if on} == {"a", "b", "e", "f"}
    assert pareto([0.5], [0.5]).tolist() == [True]


def test_pareto_front_against_the_definition() -> None:
    generator = np.random.default_rng(0)
    accuracy, leakage = generator.integers(0, 6, (2, 60)) / 10
    points = list(zip(accuracy, leakage, strict=True))
    for (a, b), on in zip(points, pareto(accuracy, leakage), strict=True):
        beaten = any(c >= a and d <= b and (c, d) != (a, b) for c, d in points)
        assert on != beaten


def test_the_default_grids_hold_the_settings_that_the_paper_picked() -> None:
    grids = {name: read_grid(words) for name, words in GRIDS.items()}
    sizes = {name: [len(values) for values in options.values()] for name, options in grids.items()}
    assert sizes == {"hamp": [7, 4], "relaxloss": [15]}
    for dataset in ("cifar10", "cifar100", "svhn"):
        picked = load_config(ROOT / dataset, "paper").defenses
        for name, options in grids.items():
            assert all(picked[name][option] in map(float, values) for option, values in options.items())


def test_the_command(copied: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings are trained beside the plain classifier, measured on unscored points, and not trained again."""
    arguments = ["synthetic", *OPTIONS, "--profile", tiny, "--set", "train.best_on_test=true"]
    (copied / "final-all-models/tiny/seed0/resnet18/undefended.pt").unlink()  # made under other settings
    made = call(grid_main, copied.parent, *arguments, "--grid", "gamma=0,0.95", "alpha=0.01")
    assert (made.code, made.err) == (0, "")
    models = copied / "final-all-models/tiny/seed0/resnet18"
    weights = [models / f"grid/hamp/gamma={gamma},alpha=0.01/hamp.pt" for gamma in ("0", "0.95")]
    assert all(path.is_file() for path in [*weights, models / "undefended.pt"]) and not (models / "hamp.pt").exists()
    assert not list((models / "grid").rglob("*.best.pt"))

    results = copied / "evaluate_MIAs/results/tiny-train.epochs=2-train.best_on_test=true"
    assert (results / "hamp_grid.png").stat().st_size > 10_000
    table = pd.read_csv(results / "hamp_grid.csv")
    assert table["defense"].tolist() == ["undefended", "hamp", "hamp"]
    assert table["gamma"].tolist() == ["-", "0", "0.95"] and table["alpha"].tolist() == ["-", "0.01", "0.01"]
    assert made.out.count("| 0.95 ") == 1 and "hamp_grid.csv" in made.out
    assert table["pareto"].tolist() == [False, *pareto(table["test_accuracy"][1:], table["best_auc"][1:])]
    split = load_split(tiny_run(copied, tiny))
    for row, path in zip(range(3), [models / "undefended.pt", *weights], strict=True):
        model = target_classifier(tiny_run(copied, tiny))
        model.load_state_dict(torch.load(path, weights_only=True)["model"])
        check(table.iloc[row], model, split)

    times = [path.stat().st_mtime_ns for path in weights]
    monkeypatch.setattr("common.training.loop._epoch", None)  # a training would fail
    again = call(grid_main, copied.parent, *arguments, "--grid", "gamma=0,0.95", "alpha=0.01")
    assert (again.code, again.err) == (0, "")
    assert times == [path.stat().st_mtime_ns for path in weights]
    pd.testing.assert_frame_equal(table, pd.read_csv(results / "hamp_grid.csv"))


def check(row: pd.Series, model: nn.Module, split: Split) -> None:
    """A row against scikit-learn on the 40 + 60 unscored images a side."""
    sides = [part.take(slice(100)) for part in (split.members, split.non_members)]
    logits = [predict(model, part, torch.device("cpu")).double() for part in sides]
    for column, z, part in zip(("train_accuracy", "test_accuracy"), logits, sides, strict=True):
        assert row[column] == pytest.approx((z.argmax(1) == part.labels).double().mean().item())
    losses = F.cross_entropy(torch.cat(logits), torch.cat([part.labels for part in sides]), reduction="none")
    assert row["loss_auc"] == pytest.approx(roc_auc_score([1] * 100 + [0] * 100, -losses), abs=1e-4)
    assert row["best_auc"] == max(row[f"{name}_auc"] for name in ("loss", "confidence", "entropy", "m-entropy"))
    assert row["gap_floor"] == pytest.approx((row["train_accuracy"] + 1 - row["test_accuracy"]) / 2)
    assert row["points_a_side"] == 100


def test_where_members_are_plain_to_see_the_null_sees_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Black images are members, whose label is certain, white ones are not: AUC 1, and .5 after membership is shuffled."""
    run = Run(tmp_path / "synthetic", "small", Config(), 0, torch.device("cpu"))
    labels = torch.arange(5000) % 10
    black, white = (Examples(torch.full((5000, 3, 1, 1), grey, dtype=torch.uint8), labels) for grey in (0, 255))
    monkeypatch.setattr(search, "load_defended_model", lambda *_: DefendedModel(nn.Identity(), None))

    def answers(_: nn.Module, part: Examples, device: torch.device) -> torch.Tensor:
        return 9.0 * F.one_hot(part.labels, 10) * (part.images[:, :1, 0, 0] == 0)

    monkeypatch.setattr(search, "predict", answers)
    row = search.measure_defense(run, "undefended", Split(black, black, white))
    assert row["best_auc"] == 1
    assert row["null_auc"] == pytest.approx(0.5, abs=0.03)  # the standard error is .013 at 1,000 + 1,000 points


def test_time_runs_out(workspace: Path, tiny: Path) -> None:
    arguments = ["synthetic", *OPTIONS, "--profile", tiny, "--minutes", 1e-4]
    stopped = run_script(workspace, "common.grid", *arguments, options=["-m"])
    assert stopped.code == 130 and "run the same command again" in stopped.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["syntetic", "--defense", "hamp"], "Did you mean 'synthetic'"),
        (["--defense", "hamp", "synthetic"], "unknown data set (named first) '--defense'"),
        (["synthetic", "--defense", "hmap"], "Did you mean 'hamp'"),
        (["synthetic", "--defense", "hamp", "--grid", "gama=0.5"], "gama"),
        (["synthetic", "--defense", "hamp", "--grid", "gamma=0.5,high"], "high"),
        (["synthetic", "--defense", "hamp", "--grid", "gamma=0.5,1.5"], "gamma must lie in 0..1"),
        (["synthetic", "--defense", "hamp", "--grid", "gamma="], "names no values"),
        (["synthetic", "--defense", "hamp", "--grid", "0.5"], "names no values"),
        (["synthetic", "--defense", "hamp", "--grid", "alpha=0.001", "alpha=0.01"], "names alpha twice"),
        (["synthetic", "--defense", "advreg"], "no default grid for advreg"),
        (["synthetic", "--defense", "memguard", "--grid", "epsilon=0.5"], "it has no grid"),
        (["synthetic", "--defense", "hamp", "--minutes", "0"], "--minutes must be positive"),
    ],
)
def test_refusals(workspace: Path, tiny: Path, call: Call, arguments: list[str], sentence: str) -> None:
    assert sentence in refusal(call(grid_main, workspace, *arguments, "--profile", tiny))


def test_a_word_of_a_grid() -> None:
    assert read_grid(["gamma=0.5,0.5,0.8,", "alpha=1"]) == {"gamma": ["0.5", "0.8"], "alpha": ["1"]}
    with pytest.raises(UserError, match="OPTION=VALUE"):
        read_grid(["=1"])


def test_a_message_names_the_command_that_makes_a_setting(tmp_path: Path, tiny: Path) -> None:
    run = with_options(tiny_run(tmp_path / "synthetic", tiny, seed=3))
    made = grid_runs(run, "hamp", {"gamma": ["0.5"]})[0]
    assert made.command("train_defense.py", "--defense hamp") == (
        f"python -m common.grid synthetic --defense hamp --grid gamma=0.5 --profile {tiny} --seed 3"
    )
    assert made.command("data_partition.py") == run.command("data_partition.py")
