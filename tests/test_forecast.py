"""What the dry run says of jobs that have not run: bytes that are those of the real files, and minutes that were measured."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Call, random_examples, refusal

from common import launch
from common.config import DDPM, Attack, Config, Data, Diffence, Model, Train
from common.defenses import DEFENSES, with_options
from common.diffence.candidates import SHARD, draw_shard
from common.diffence.ddpm import Padded, build_unet
from common.diffence.reconstruct import DiffusionReconstructor
from common.errors import UserError
from common.experiments import forecast
from common.experiments.forecast import Forecast, classifier_bytes, of_candidates, of_trainings, refuse_full_disk, unet_bytes
from common.experiments.plan import plan_jobs
from common.experiments.shadow_models import shadow_run
from common.files import save_checkpoint, write_json
from common.run import Run
from common.training.loop import facts_path
from common.training.targets import model_path, settings_of, target_classifier

TINY = DDPM(channels=[8, 8], layers=1, groups=4, attention=[], max_timestep=160)
Usage = namedtuple("Usage", "total used free")


def a_run(folder: Path, **sections: Any) -> Run:
    data = Data(members=400, reference=100, non_members=400, fit=40, known=60, scored=150)
    config = replace(Config(data=data, model=Model(width=4, depth=1), ddpm=TINY, diffence=Diffence(n=4, t=100)), **sections)
    return with_options(Run(folder / "synthetic", "small", config, 0, torch.device("cpu")))


def test_candidates_have_the_bytes_of_what_is_drawn(tmp_path: Path) -> None:
    """250 images of each side are asked about. They are in three shards, and a shard is drawn whole."""
    run = a_run(tmp_path)
    reconstruct = DiffusionReconstructor(Padded(build_unet(run.config.ddpm)), 100, 1, "paper", 0, False)
    shard = draw_shard(run, reconstruct, random_examples(SHARD, 0), "members", range(10))
    assert of_candidates(run, "clean").stays == 2 * 300 * shard.nbytes / 10
    mirrored = a_run(tmp_path, attack=Attack(shadows=4, mirror=True))
    assert of_candidates(mirrored, "clean").stays == 4 * 300 * shard.nbytes / 10


def test_weights_have_the_bytes_of_their_files(tmp_path: Path) -> None:
    run = a_run(tmp_path, model=Model())
    path = tmp_path / "weights.pt"
    save_checkpoint(path, target_classifier(run).state_dict())
    assert classifier_bytes("synthetic", Model(), 0) == pytest.approx(path.stat().st_size, rel=0.01)
    build_unet(TINY).save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    assert unet_bytes(TINY, (32, 32)) == pytest.approx(file.stat().st_size, rel=0.15)  # the names of tensors count here
    assert unet_bytes(DDPM(), (32, 32)) == pytest.approx(4 * 35.7e6, rel=0.002)  # the paper's


def test_a_training_keeps_its_best_epoch_where_that_is_asked_for(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    weights = classifier_bytes("synthetic", run.config.model, 0)
    own = model_path(run, "hamp"), settings_of(run, "hamp")
    assert of_trainings(run, [own]).stays == 2 * weights
    assert of_trainings(a_run(tmp_path, train=Train(best_on_test=False)), [own]).stays == 2 * weights  # as the settings say
    shadow = shadow_run(run, 0)
    assert of_trainings(shadow, [(model_path(shadow, "hamp"), settings_of(shadow, "hamp"))]).stays == weights


def finished(run: Run, path: Path, settings: dict[str, object], seconds: list[float]) -> None:
    """The files beside a checkpoint that a training writes at its end."""
    write_json(facts_path(path), {"settings": settings, "facts": {}, "last_epoch": {}})
    path.with_suffix(".log.csv").write_text("epoch,seconds\n" + "".join(f"{i},{value}\n" for i, value in enumerate(seconds)))


def test_minutes_come_from_trainings_of_the_same_kind(tmp_path: Path) -> None:
    """From shadow models for a target and from sub-models for another one, but not from another defense or other settings."""
    run = a_run(tmp_path, attack=Attack(shadows=4))
    parts_of = DEFENSES["selena"].parts
    assert parts_of is not None
    for index, seconds in ((0, [50.0, 70.0]), (1, [100.0, 140.0])):
        shadow = shadow_run(run, index)
        finished(shadow, model_path(shadow, "hamp"), settings_of(shadow, "hamp"), seconds)
    finished(run, *parts_of(run)[3], [600.0])
    forecast._seconds_by_settings.cache_clear()
    jobs = {job.name.removeprefix("synthetic "): job for job in plan_jobs([run], ["hamp", "selena"], ["1"], "clean")}
    minutes = {name: job.forecast().minutes for name, job in jobs.items()}
    assert minutes["train hamp"] == minutes["shadow hamp 3"] == 3.0  # the median of 2 and 4
    assert minutes["train selena 0"] == 10.0
    assert {minutes[name] for name in ("train selena", "shadow selena 0", "ddpm", "evaluate hamp")} == {None}
    other = a_run(tmp_path, train=Train(epochs=3))
    assert of_trainings(other, [(model_path(other, "hamp"), settings_of(other, "hamp"))]).minutes is None


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays of all jobs, and what the largest of those that run at a time need meanwhile."""
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda path: Usage(10**9, 0, 10**9))
    jobs = [Forecast(None, 3 * 10**8, 10**8, tmp_path / "a" / "b"), Forecast(None, 10**8, 4 * 10**8, tmp_path)]
    refuse_full_disk(jobs, 1)
    refuse_full_disk([])
    with pytest.raises(UserError, match=r"need about 1\.1 GB on the disk of .*/a/b, which has 1\.0 GB free"):
        refuse_full_disk([*jobs, Forecast(stays=3 * 10**8, folder=tmp_path)], 1)
    with pytest.raises(UserError, match="need about"):
        refuse_full_disk([*jobs, Forecast(stays=2 * 10**8, folder=tmp_path)], 2)


def test_the_launcher_starts_nothing_on_a_full_disk(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda path: Usage(1000, 0, 1000))
    monkeypatch.setattr(launch, "run_jobs", None)
    options = ["--datasets", "cifar10", "--defenses", "undefended", "--device", "cpu", "--set", "ddpm.steps=77"]
    assert "free some space" in refusal(call(launch.main, ROOT, *options))


def test_the_dry_run_says_what_is_missing(call: Call) -> None:
    options = ["--datasets", "cifar10", "--defenses", "undefended", "--shadows", "8", "--device", "cpu", "--seed", "99"]
    answer = call(launch.main, ROOT, *options, "--dry-run")
    assert answer.code == 0
    # 4,000 images of each side, 30 candidates, float16
    assert "cifar10 candidates: unknown minutes, 1.5 GB, after ddpm\n" in answer.out
    assert "after candidates, train undefended, shadow undefended 0, shadow undefended 1, 6 more\n" in answer.out
    assert "of disk" in answer.out
