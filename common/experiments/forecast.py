"""What the jobs of a plan need before they run: minutes, where the same work has been measured, and disk, from the config.

Counted are the images of the partition, the weights of diffusion models and classifiers, the candidates, and the logits of an
evaluation. Rows, pictures, logs and what further experiments store are not: they are small beside these.
"""

import functools
import json
import os
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from common.cli import ROOT
from common.config import DDPM, Model, require
from common.data import DATASETS
from common.data.partition import evaluation_pools
from common.diffence.candidates import candidates_dir, missing_shards, shard_positions
from common.diffence.ddpm import build_unet, ddpm_settings
from common.files import read_json
from common.models import build_classifier
from common.pair import SIDES
from common.run import Run
from common.training.loop import facts_path

FLOAT, HALF, INTEGER = 4, 2, 8  # bytes of float32, float16 and int64
Training = tuple[Path, dict[str, Any]]  # a checkpoint and its settings


@dataclass(frozen=True)
class Forecast:
    """What a job needs.

    minutes: on the machine where the same work was measured; None = it has not been measured.
    stays: bytes of its products that do not exist yet.
    meanwhile: further bytes while it runs, of the checkpoint from which it continues.
    folder: of the products.
    """

    minutes: float | None = None
    stays: int = 0
    meanwhile: int = 0
    folder: Path = ROOT


def of_partition(run: Run) -> Forecast:
    """The pixels and labels of its images. Files that are downloaded first are not counted."""
    data = run.config.data
    return Forecast(
        stays=(data.members + data.reference + data.non_members) * (_pixels(run) + INTEGER), folder=run.partition_dir
    )


def of_ddpm(run: Run) -> Forecast:
    """The weights; meanwhile weights, their average and Adam's two moments, twice while one checkpoint replaces another."""
    weights = unet_bytes(run.config.ddpm, DATASETS[run.dataset].image_size(run.config.data.image_size))
    wanted = {**ddpm_settings(run), "seed": None}
    seconds = []
    for log in run.ddpm_dir.parents[bool(run.config.ddpm.name)].glob(f"seed*/{run.config.ddpm.name or '.'}/log.csv"):
        settings = log.parent / "unet" / "settings.json"
        lines = pd.read_csv(log)
        if settings.is_file() and {**read_json(settings, "train_ddpm.py"), "seed": None} == wanted and "seconds" in lines:
            seconds.append(float(lines["seconds"].sum()))
    return Forecast(_median_minutes(seconds), weights, 2 * 4 * weights, run.ddpm_dir)


def of_candidates(run: Run, protocol: str) -> Forecast:
    """The shards that are missing. With shadow models and `attack.mirror` the first evaluation draws as many mirrored ones."""
    config = run.config
    views = (False, True) if config.attack.mirror and config.attack.shadows else (False,)
    missing = [shard for mirrored in views for shard in missing_shards(run, protocol, mirrored)]
    images = sum(len(shard_positions(run, side, start)) for side, start in missing)
    return Forecast(stays=images * config.diffence.n * _pixels(run) * HALF, folder=candidates_dir(run))


def of_trainings(run: Run, trainings: Sequence[Training]) -> Forecast:
    """Trainings that one job does in turn. Each keeps the last epoch, and with `train.best_on_test` the best one too.

    Meanwhile there are weights and up to three moments of the optimizer, twice while one checkpoint replaces another.
    """
    missing = [(path, settings) for path, settings in trainings if not path.is_file()]
    weights = classifier_bytes(run.dataset, run.config.model, run.config.data.image_size)
    stays = sum(weights * (1 + settings["train"]["best_on_test"]) for _, settings in missing)
    minutes = [_measured_minutes(run, path, settings) for path, settings in missing]
    known = [one for one in minutes if one is not None]
    return Forecast(sum(known) if len(known) == len(minutes) else None, stays, 2 * 4 * weights, run.models_dir)


def of_evaluation(run: Run, defense: str, protocol: str) -> Forecast:
    """The logits of the images and of their candidates."""
    count, classes = len(evaluation_pools(run.config.data, protocol).used), DATASETS[run.dataset].classes
    missing = [side for side in SIDES if not (run.outputs_dir / f"{defense}-{protocol}-{side}.npz").is_file()]
    logits = len(missing) * count * (run.config.diffence.n + 1) * classes
    return Forecast(stays=logits * FLOAT, folder=run.outputs_dir)


def unet_bytes(config: DDPM, size: tuple[int, int]) -> int:
    """The bytes of a diffusion model's weights, for images of `size` (H, W)."""
    with torch.device("meta"):  # without memory, and without drawing weights
        return _state_bytes(build_unet(config, size))


@functools.cache
def classifier_bytes(dataset: str, model: Model, image_size: int) -> int:
    """The bytes of a classifier's weights. What defenses add to it is small."""
    data = DATASETS[dataset]
    size = data.image_size(image_size)
    with torch.device("meta"):
        return _state_bytes(
            build_classifier(model.name, data.classes, model.width, model.depth, mean=data.mean, std=data.std, size=size)
        )


def refuse_full_disk(forecasts: Iterable[Forecast], at_once: int = 1) -> None:
    """Raise UserError where a disk has too little space for what is missing, of which `at_once` jobs run at a time."""
    by_disk: dict[int, list[Forecast]] = defaultdict(list)
    for forecast in forecasts:
        by_disk[os.stat(_existing(forecast.folder)).st_dev].append(forecast)
    for of_disk in by_disk.values():
        needed = sum(one.stays for one in of_disk) + sum(sorted(one.meanwhile for one in of_disk)[-at_once:])
        largest = max(of_disk, key=lambda one: one.stays).folder
        free = shutil.disk_usage(_existing(largest)).free
        require(
            needed <= free,
            f"the missing jobs need about {gigabytes(needed)} on the disk of {largest}, which has {gigabytes(free)} free: free "
            "some space, or link this folder to a larger disk.",
        )


def gigabytes(size: float) -> str:
    """A number of bytes in GB, or in MB where it is small."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def _measured_minutes(run: Run, path: Path, settings: dict[str, Any]) -> float | None:
    """The median minutes of finished trainings of the same kind: other seeds, shadow models, other sub-models."""
    name = path.relative_to(run.models_dir).with_suffix("")
    alike = str(name) if len(name.parts) == 1 else f"{name.parent}/*"
    profile = run.folder / "final-all-models" / run.profile_name
    return _median_minutes(_seconds_by_settings(profile, run.config.model.name, alike)[_kind_of(settings)])


@functools.cache
def _seconds_by_settings(profile: Path, model: str, alike: str) -> dict[str, list[float]]:
    """The seconds of each finished training of one name under a profile, by its settings."""
    found: dict[str, list[float]] = defaultdict(list)
    for place in ("", "shadows*/*/"):
        for log in profile.glob(f"seed*/{model}/{place}{alike}.log.csv"):
            facts = facts_path(log.with_suffix("").with_suffix(".pt"))
            if facts.is_file():
                settings = read_json(facts, "the training again")["settings"]
                found[_kind_of(settings)].append(float(pd.read_csv(log)["seconds"].sum()))
    return found


def _kind_of(settings: dict[str, Any]) -> str:
    """The settings on which the time of a training depends."""
    train = {key: value for key, value in settings["train"].items() if key != "best_on_test"}
    return json.dumps([settings["data"], settings["model"], train, settings["options"]], sort_keys=True)


def _median_minutes(seconds: Sequence[float]) -> float | None:
    return statistics.median(seconds) / 60 if seconds else None


def _state_bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def _pixels(run: Run) -> int:
    """How many numbers an image of the run has."""
    height, width = DATASETS[run.dataset].image_size(run.config.data.image_size)
    return 3 * height * width
