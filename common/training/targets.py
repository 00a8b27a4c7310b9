"""The target classifiers of a run: made, trained under a defense's objective, saved with their settings, loaded again."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.data import DATASETS
from common.data.partition import Split
from common.errors import UserError
from common.files import load_checkpoint, refuse_other_config
from common.models import build_classifier
from common.profiles import Options, read_options
from common.run import Run
from common.seeds import derive_seed
from common.training.loop import Objective, checkpoint_facts, fit

# Options that change a defense's answers but not its weights, at their defaults. Checkpoints record these defaults, so that
# one checkpoint serves all values.
ANSWER_OPTIONS: dict[str, dict[str, Any]] = {"hamp": {"test_time": False}, "memguard": {"epsilon": 1.0, "steps": 300}}

# The settings of the partition that weights depend on. `image_size` is not there where images have their official size.
DATA_SETTINGS = ("members", "reference", "non_members", "image_size", "seed")

# Those that say which points are scored. MemGuard's guard trains on no scored member. The reference images of a shadow model
# have no scored point, and canaries are scored points.
POOL_SETTINGS = ("fit", "known", "scored")


class PostInference(nn.Module):
    """A defense that changes answers, not weights. Behind Diffence it is applied to the prediction that Diffence releases."""

    classifier: nn.Module  # images [B, 3, H, W] in [0, 1] -> logits [B, C]

    def release(self, logits: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Logits [n, C] -> released log-probabilities [n, C]; equal `keys` int64 [n] get equal answers."""
        raise NotImplementedError


def target_classifier(run: Run) -> nn.Module:
    """The run's architecture, with initial weights drawn from its seed: images [B, 3, H, W] in [0, 1] -> logits [B, C]."""
    data, model = DATASETS[run.dataset], run.config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("initial weights", run.seed))
        size = data.image_size(run.config.data.image_size)
        return build_classifier(model.name, data.classes, model.width, model.depth, mean=data.mean, std=data.std, size=size)


def options_of(run: Run, name: str, kind: type[Options]) -> Options:
    """The config section `defenses.<name>`, checked against `kind`, the options dataclass of that defense."""
    return read_options(kind, run.config.defenses.get(name, {}), name)


def settings_of(run: Run, name: str) -> dict[str, Any]:
    """Everything that the weights of a defense depend on.

    It is written into the checkpoint, and compared before the checkpoint is used or overwritten.
    """
    config = run.config.as_dict()
    return {
        "dataset": run.dataset,
        "defense": name,
        "seed": run.seed,
        "data": {key: config["data"][key] for key in DATA_SETTINGS if key in config["data"]},
        "model": config["model"],
        "train": config["train"],
        "options": config["defenses"].get(name, {}) | ANSWER_OPTIONS.get(name, {}),
        **({"pools": {key: config["data"][key] for key in POOL_SETTINGS}} if run.shadow or name == "memguard" else {}),
        **({"shadow": list(run.shadow)} if run.shadow else {}),
        **({"canaries": run.config.data.canaries} if run.shadow and run.config.data.canaries else {}),
    }


def model_path(run: Run, name: str) -> Path:
    """The checkpoint of a defense's last epoch. The epoch with the best test accuracy is beside it, `<name>.best.pt`."""
    return run.models_dir / f"{name}.pt"


def weights_path(run: Run, name: str, protocol: str) -> Path:
    """The checkpoint that a protocol evaluates: the last epoch (clean) or the best on the test set (released)."""
    path = model_path(run, name)
    return path.with_suffix(".best.pt") if protocol == "released" else path


def train_target(run: Run, name: str, objective: Objective, split: Split) -> nn.Module:
    """Train the classifier of a defense to its end, or load it where it is trained already."""
    test = split.non_members if run.config.train.best_on_test else None
    fit(objective, model_path(run, name), settings_of(run, name), run.seed, _remake(run, name), test)
    return objective.model


def load_target(run: Run, name: str, protocol: str, model: nn.Module) -> nn.Module:
    """Load the weights that `protocol` evaluates into `model`, and put it into evaluation mode on the run's device.

    Raises UserError where the checkpoint is missing, damaged, or made under other settings.
    """
    path, remake = _checkpoint(run, name, protocol)
    checkpoint = load_checkpoint(path, remake)
    refuse_other_config(path, checkpoint.get("settings"), settings_of(run, name), f"move it away, then run: {remake}")
    try:
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{path} holds another architecture than {run.config.model.name}. Delete it and run: {remake}"
        ) from error
    return model.to(run.device).to(memory_format=torch.channels_last).eval()


def training_facts(run: Run, name: str, protocol: str) -> dict[str, Any]:
    """What a row says of the training of a defense: `Objective.facts` and the last line of the log."""
    stored = checkpoint_facts(*_checkpoint(run, name, protocol))
    return {**stored["facts"], **stored["last_epoch"]}


def _remake(run: Run, name: str) -> str:
    return run.command("train_defense.py", f"--defense {name}")


def _checkpoint(run: Run, name: str, protocol: str) -> tuple[Path, str]:
    """The checkpoint that a protocol evaluates, and the command that makes it."""
    path, last, remake = weights_path(run, name, protocol), model_path(run, name), _remake(run, name)
    if not path.is_file() and last.is_file():
        raise UserError(f"{path} is missing. Move {last} away, set train.best_on_test, and run: {remake}")
    return path, remake
