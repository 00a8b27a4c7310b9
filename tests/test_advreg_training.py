"""AdvReg's training: resuming against an uninterrupted run, its effect against plain training, and refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import defense_run, random_split, same, stop_after

from common.config import Data
from common.data.partition import Split
from common.defenses import advreg
from common.defenses.advreg import AdvReg, Options
from common.errors import UserError
from common.run import Run
from common.training.loop import Objective, fit
from common.training.targets import load_target, options_of, target_classifier

CPU = torch.device("cpu")
DATA = Data(members=48, reference=40, non_members=24, fit=4, known=4, scored=4)
QUICK = {"attack_batches": 2, "defender_batches": 1, "warmup_attack_passes": 1}


def make_run(folder: Path, epochs: int = 3, **options: Any) -> Run:
    return defense_run(folder, "advreg", DATA, QUICK | options, epochs=epochs)


@pytest.mark.usefixtures("every_checkpoint")
def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, killed = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    advreg.train(straight, random_split(DATA))
    for start in (1, 2):  # killed at the start of the second epoch, the first of the game, then of the third
        with monkeypatch.context() as patch:
            patch.setattr(AdvReg, "batches", stop_after(1, AdvReg.batches))
            with pytest.raises(KeyboardInterrupt):
                advreg.train(killed, random_split(DATA))
        assert (killed.models_dir / "advreg.resume.pt").is_file(), start
    advreg.train(killed, random_split(DATA))
    for name in ("advreg.pt", "advreg.best.pt"):
        a, b = (torch.load(run.models_dir / name, weights_only=True) for run in (straight, killed))
        assert same(a["model"], b["model"])
        assert [row["loss"] for row in a["history"]] == [row["loss"] for row in b["history"]]
    loaded = load_target(killed, "advreg", "clean", target_classifier(killed))
    assert same(loaded.state_dict(), torch.load(killed.models_dir / "advreg.pt", weights_only=True)["model"])


def test_the_penalty_changes_training(tmp_path: Path) -> None:
    """Under a large alpha, f ends elsewhere than undefended: the game is really played."""
    run = make_run(tmp_path, epochs=2, attack_lr=1e-2, alpha=100.0)
    plain = Objective(target_classifier(run), random_split(DATA).members, run.config.train, CPU)
    fit(plain, tmp_path / "plain.pt", {}, 0, "")
    assert not same(advreg.train(run, random_split(DATA)).state_dict(), plain.model.state_dict())


def test_no_reference_images(tmp_path: Path) -> None:
    split = random_split(DATA)
    with pytest.raises(UserError, match=r"data\.reference"):
        advreg.train(make_run(tmp_path), Split(split.members, split.reference.take(slice(0)), split.non_members))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"attack_batches": -1}, "attack_batches"),
        ({"defender_batches": -2}, "defender_batches"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"warmup_attack_passes": -1}, "warmup_attack_passes"),
        ({"attack_lr": 0.0}, "attack_lr"),
        ({"penalty": "log"}, "penalty"),
        ({"schedule": "papers"}, "schedule"),
        ({"alhpa": 1.0}, "alhpa"),
    ],
)
def test_refusals(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        options_of(make_run(tmp_path, **options), "advreg", Options)
