"""How often a training writes its checkpoint: within 2% of the time, and without effect on the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import same
from test_training import train, without_time

from common import files
from common.training import loop as training
from common.training import pace


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        patch.setattr(pace, "perf_counter", lambda: self.now)


def test_checkpoints_cost_less_than_2_percent_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of 1 s and checkpoints of .1 s: the first after 5 s, then one each time that all of them are 2% of the time."""
    clock, kept = Clock(monkeypatch), []
    measured = pace.Pace()
    for epoch in range(1, 101):
        clock.now += 1
        if measured.due():
            kept.append(epoch)
            with measured.writing():
                clock.now += 0.1
            assert 0.1 * len(kept) < 0.02 * (clock.now - 100)
    assert kept[:4] == [5, 10, 15, 20]
    assert len(kept) == 20
    with measured.writing():
        clock.now += 10  # the disk was busy: after 1,000 s for 20 of them, and as many for the next one
    assert not measured.due()


def test_an_epoch_that_is_long_beside_its_checkpoint_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    measured = pace.Pace()
    for _ in range(5):
        clock.now += 60
        assert measured.due()
        with measured.writing():
            clock.now += 0.5


def test_a_training_with_short_epochs_writes_seldom_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of 1 s and files of .1 s: in the 4 s of this training nothing is due, and the best epoch is written at the end."""
    uninterrupted = tmp_path / "whole" / "model.pt"
    train(uninterrupted)
    clock, written = Clock(monkeypatch), []
    epoch, write = training._epoch, files.atomic_write

    def one_second(*arguments: Any) -> dict[str, float]:
        clock.now += 1
        return epoch(*arguments)

    def a_tenth(path: Path, content: Callable[[Any], object]) -> None:
        clock.now += 0.1
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(training, "_epoch", one_second)
    monkeypatch.setattr(files, "atomic_write", a_tenth)
    train(tmp_path / "model.pt")
    assert written == ["model.best.pt", "model.best.json", "model.log.csv", "model.pt", "model.json"]
    for name in ("model.pt", "model.best.pt"):
        made, whole = (torch.load(folder / name, weights_only=True) for folder in (tmp_path, uninterrupted.parent))
        assert same(made["model"], whole["model"])
        assert without_time(made["history"]) == without_time(whole["history"])
