"""The epoch loop: whatever kills it, it resumes exactly; which epochs are kept; which checkpoints are refused."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import random_examples, run_script, same, script_environment, write_profile
from torch import nn

from common import files
from common.config import Train
from common.data.partition import Examples
from common.models import build_classifier
from common.training import loop as training
from common.training.loop import Objective, fit
from common.training.pace import Pace

CPU = torch.device("cpu")
EPOCHS = 4
SETTINGS = {"defense": "none", "seed": 3}


MEMBERS, TEST = random_examples(24, 1), random_examples(30, 2)


class Killed(BaseException):
    """As kill -9 does, it ends the process between two operations."""


def plain(epochs: int = EPOCHS) -> Objective:
    """Dropout and shuffling, so that the state of the random generator matters; BatchNorm, so that buffers do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 10))
    return Objective(model, MEMBERS, Train(epochs=epochs, batch_size=8), CPU)


def train(path: Path, objective: Objective | None = None, **settings: Any) -> dict[str, Any]:
    return fit(objective or plain(), path, SETTINGS | settings, 3, "python train.py", TEST)


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "model.pt"
    train(path)
    return path


# Exact resume


def events(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call `act(k)` at the k-th moment at which something may have changed: around each step and each file's replacement."""
    count = iter(range(10_000))
    step, replace, unlink = Objective.step, os.replace, Path.unlink

    def around(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            act(next(count))
            answer = call(*arguments, **options)
            act(next(count))
            return answer

        return called

    monkeypatch.setattr(Objective, "step", around(step))
    monkeypatch.setattr(files.os, "replace", around(replace))
    monkeypatch.setattr(Path, "unlink", around(unlink))


@pytest.mark.parametrize("written_after", [(1, 2, 3), (2,)])
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, written_after: tuple[int, ...]
) -> None:
    """Also where epochs are lost, because the checkpoint is of an earlier one."""
    monkeypatch.setattr(training, "Pace", lambda: OnlyAfter(written_after))
    seen: list[int] = []
    with monkeypatch.context() as patch:
        events(patch, seen.append)
        train(tmp_path / "counted" / "model.pt")
    assert len(seen) > 2 * (3 * EPOCHS + 2 * len(written_after) + 2)
    whole = torch.load(uninterrupted, weights_only=True)
    best = torch.load(uninterrupted.with_suffix(".best.pt"), weights_only=True)
    for moment in seen[::2]:
        path = tmp_path / str(moment) / "model.pt"

        def kill(k: int, moment: int = moment) -> None:
            if k == moment:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            events(patch, kill)
            train(path)
        objective = plain()
        done = train(path, objective)
        stored = torch.load(path, weights_only=True)
        assert same(stored["model"], whole["model"]), moment
        assert same(objective.model.state_dict(), whole["model"]), moment
        assert without_time(done["history"]) == without_time(whole["history"]), moment
        kept = torch.load(path.with_suffix(".best.pt"), weights_only=True)
        assert same(kept["model"], best["model"]), moment
        assert pd.read_csv(path.with_suffix(".log.csv"))["epoch"].tolist() == list(range(1, EPOCHS + 1)), moment


class OnlyAfter(Pace):
    """Checkpoints after these epochs of an uninterrupted training, counted from 1."""

    def __init__(self, epochs: tuple[int, ...]) -> None:
        super().__init__()
        self.epochs, self.asked = epochs, 0

    def due(self) -> bool:
        self.asked += 1
        return self.asked in self.epochs


def test_randomness_of_an_epoch_matters(tmp_path: Path, uninterrupted: Path) -> None:
    """Else the test above could not fail: another seed of the run gives other weights."""
    fit(plain(), tmp_path / "model.pt", SETTINGS, 4, "", TEST)
    made, whole = (torch.load(path, weights_only=True)["model"] for path in (tmp_path / "model.pt", uninterrupted))
    assert not same(made, whole)


def test_a_script_killed_with_9_ends_with_the_same_bits(trained: Path, workspace: Path, at_once: Path) -> None:
    """`trained` holds the uninterrupted run of the same script under the same settings."""
    profile = write_profile(workspace / "killed.yaml")
    shutil.copytree(trained / "data/partition/tiny", trained / "data/partition/killed")
    command = ["synthetic/train_defense.py", "--defense", "undefended", "--profile", "killed.yaml"]
    folder = trained / "final-all-models/killed/seed0/resnet18"
    words = [sys.executable, str(at_once), *command]
    process = subprocess.Popen(words, cwd=workspace, env=script_environment(), stdout=subprocess.DEVNULL)
    while not (folder / "undefended.resume.pt").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "undefended.pt").exists()
    half = torch.load(folder / "undefended.resume.pt", weights_only=True)
    assert 1 <= len(half["history"]) < 8

    answer = run_script(workspace, *command)
    assert answer.code == 0, answer.err
    whole = trained / "final-all-models/tiny/seed0/resnet18"
    for name in ("undefended.pt", "undefended.best.pt"):
        resumed, expected = (torch.load(place / name, weights_only=True) for place in (folder, whole))
        assert same(resumed["model"], expected["model"])
        assert resumed["settings"] == expected["settings"]
        assert without_time(resumed["history"]) == without_time(expected["history"])
    assert pd.read_csv(folder / "undefended.log.csv")["epoch"].tolist() == list(range(1, 9))
    assert not (folder / "undefended.resume.pt").exists()
    assert profile.stem == "killed"


def test_every_epoch_has_batches_of_its_own(tmp_path: Path) -> None:
    class Noted(Objective):
        def step(self, index: torch.Tensor, epoch: int) -> tuple[float, float]:
            seen.setdefault(epoch, []).extend(index.tolist())
            return super().step(index, epoch)

    seen: dict[int, list[int]] = {}
    fit(Noted(plain().model, MEMBERS, Train(epochs=EPOCHS, batch_size=8), CPU), tmp_path / "model.pt", {}, 0, "")
    assert all(sorted(order) == list(range(24)) for order in seen.values())
    assert len({tuple(order) for order in (*seen.values(), range(24))}) == EPOCHS + 1


# What is kept


def test_the_first_epoch_that_is_best_on_the_test_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []

    def scripted(model: nn.Module, test: Examples, device: torch.device) -> float:
        assert test is TEST
        shown.append({name: value.clone() for name, value in model.state_dict().items()})
        return [0.3, 0.6, 0.6, 0.5][len(shown) - 1]

    monkeypatch.setattr(training, "accuracy", scripted)
    last = train(tmp_path / "model.pt")
    best = torch.load(tmp_path / "model.best.pt", weights_only=True)
    assert same(best["model"], shown[1])
    assert [row["epoch"] for row in best["history"]] == [1, 2]
    assert best["settings"] == SETTINGS
    assert same(torch.load(tmp_path / "model.pt", weights_only=True)["model"], shown[3])
    assert [row["test_accuracy"] for row in last["history"]] == [0.3, 0.6, 0.6, 0.5]
    assert not same(shown[1], shown[2])


def test_without_a_test_set_only_the_last_epoch_is_kept(tmp_path: Path) -> None:
    fit(plain(), tmp_path / "model.pt", SETTINGS, 3, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.log.csv", "model.pt"]


def test_the_log_has_a_line_an_epoch(uninterrupted: Path) -> None:
    log = pd.read_csv(uninterrupted.with_suffix(".log.csv"))
    assert log.columns.tolist() == ["epoch", "loss", "train_accuracy", "test_accuracy", "seconds"]
    assert log["epoch"].tolist() == [1, 2, 3, 4]
    assert (log["loss"] > 0).all()
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert ((log["train_accuracy"] * 24) % 1 < 1e-9).all()


def test_a_finished_model_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = train(tmp_path / "model.pt")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(Objective, "step", None)
    objective = plain()
    assert without_time(train(tmp_path / "model.pt", objective)["history"]) == without_time(done["history"])
    assert same(objective.model.state_dict(), done["model"])
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


# Precision


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_is_used_where_it_is_asked_for_and_native(monkeypatch: pytest.MonkeyPatch, asked: bool, native: bool) -> None:
    monkeypatch.setattr("common.training.loop.native_bf16", lambda device: native)
    torch.manual_seed(0)
    model = build_classifier("resnet18", 10, 4, 1, mean=(0.5,) * 3, std=(0.25,) * 3)
    objective = Objective(model, MEMBERS, Train(bf16=asked), CPU)
    images = MEMBERS.pixels(slice(4))
    objective.model.eval()
    exact, used = model(images), objective.forward(images)
    assert used.dtype == torch.float32
    assert torch.equal(used, exact) == (not (asked and native))
    torch.testing.assert_close(used, exact, atol=0.05, rtol=0.05)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in objective.model.parameters() if p.ndim == 4)
