"""Target classifiers of a run: made, trained under a defense's objective, saved with their settings, loaded back."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config import Options, read_options
from common.data import DATASETS
from common.data.partition import Split
from common.errors import UserError
from common.files import derive_seed, load_checkpoint, refuse_other_config
from common.models import build_classifier
from common.run import Run
from common.training import Objective, fit


class PostInference(nn.Module):
    """A defense that changes answers: behind Diffence it is applied to the prediction that Diffence selects."""

    classifier: nn.Module  # images [B, 3, 32, 32] in [0, 1] -> logits [B, C]

    def release(self, logits: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Logits [n, C] -> released log-probabilities [n, C]; the same `keys` int64 [n] get the same answer."""
        raise NotImplementedError


def target_classifier(run: Run) -> nn.Module:
    """The run's architecture with initial weights drawn from its seed: images [B, 3, 32, 32] in [0, 1] -> logits [B, C]."""
    data, model = DATASETS[run.dataset], run.config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("initial weights", run.seed))
        return build_classifier(model.name, data.classes, model.width, model.depth, mean=data.mean, std=data.std)


def options_of(run: Run, name: str, kind: type[Options]) -> Options:
    """The config section `defenses.<name>`, checked against that defense's options dataclass."""
    return read_options(kind, run.config.defenses.get(name, {}), name)


# Options that act on answers and not on weights, at their defaults, which stand in every checkpoint: it serves all values.
ANSWERING: dict[str, dict[str, Any]] = {"hamp": {"test_time": False}, "memguard": {"epsilon": 1.0, "steps": 300}}


def settings_of(run: Run, name: str) -> dict[str, Any]:
    """What the weights of a defense depend on: written into its checkpoint, compared before it is used or overwritten."""
    config = run.config.as_dict()
    return {
        "dataset": run.dataset,
        "defense": name,
        "seed": run.seed,
        "data": {key: config["data"][key] for key in ("members", "reference", "non_members", "seed")},
        "model": config["model"],
        "train": config["train"],
        "options": config["defenses"].get(name, {}) | ANSWERING.get(name, {}),
        **({"shadow": list(run.shadow)} if run.shadow else {}),
    }


def model_path(run: Run, name: str) -> Path:
    """Where a defense's last epoch lies; the epoch best on the test set lies beside it as `<name>.best.pt`."""
    return run.models_dir / f"{name}.pt"


def weights_path(run: Run, name: str, protocol: str) -> Path:
    """The weights that a protocol evaluates: the last epoch (clean) or the one best on the test set (released)."""
    path = model_path(run, name)
    return path.with_suffix(".best.pt") if protocol == "released" else path


def train_target(run: Run, name: str, objective: Objective, split: Split) -> nn.Module:
    """Train a defense's released classifier to its end, or find it trained; returns it."""
    test = split.non_members if run.config.train.best_on_test else None
    remake = run.command("train_defense.py", f"--defense {name}")
    fit(objective, model_path(run, name), settings_of(run, name), run.seed, remake, test)
    return objective.model


def load_target(run: Run, name: str, protocol: str, model: nn.Module) -> nn.Module:
    """Load a defense's weights into `model`: the last epoch (clean) or the one best on the test set (released)."""
    path, checkpoint, remake = _read_target(run, name, protocol)
    try:
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{path} holds another architecture than {run.config.model.name}. Delete it and run: {remake}"
        ) from error
    return model.to(run.device).to(memory_format=torch.channels_last).eval()


def training_facts(run: Run, name: str, protocol: str) -> dict[str, Any]:
    """What the training of a defense has to say beside its weights: Objective.facts and the last line of its log."""
    _, checkpoint, _ = _read_target(run, name, protocol)
    return {**checkpoint["facts"], **checkpoint["history"][-1]}


def _read_target(run: Run, name: str, protocol: str) -> tuple[Path, dict[str, Any], str]:
    remake = run.command("train_defense.py", f"--defense {name}")
    path, last = weights_path(run, name, protocol), model_path(run, name)
    if not path.is_file() and last.is_file():
        raise UserError(f"{path} is missing. Move {last} away, set train.best_on_test, and run: {remake}")
    checkpoint = load_checkpoint(path, remake)
    refuse_other_config(path, checkpoint.get("settings"), settings_of(run, name), f"move it away, then run: {remake}")
    return path, checkpoint, remake
