"""SELENA (Tang et al., USENIX Security 2022): distil what sub-models say about members that they were not trained on.

Split-AI trains K sub-models, each member left out of exactly L of them, on K * (K - L) / K plain trainings' work. A member's
soft label is the mean answer of its L non-models, in evaluation mode: one model that knows the member gives it away. The
student learns the soft labels alone and is all that is released. The released code averages logits where the method averages
probabilities, does not shuffle the student's batches and makes its optimiser anew each epoch; only the first is an option.
Sub-models are saved one by one and can be trained as separate jobs (`train_part`); none is chosen by its test accuracy.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.config import Train, require
from common.data import DATASETS
from common.data.partition import Examples, Split
from common.run import Run
from common.seeds import derive_seed
from common.training.loop import Objective, fit, predict
from common.training.targets import load_target, model_path, options_of, settings_of, target_classifier, train_target


@dataclass(frozen=True)
class Options:
    """The config section `defenses.selena`; the defaults are the paper's."""

    k: int = 25  # sub-models
    l: int = 10  # noqa: E741 - the method's letter: how many sub-models leave a member out
    average: Literal["probabilities", "logits"] = "probabilities"  # of the non-models; the released code's: logits

    def __post_init__(self) -> None:
        require(
            1 <= self.l < self.k,
            f"defenses.selena.l must lie in 1..defenses.selena.k - 1 = {self.k - 1}, not {self.l}.",
        )


class Distillation(Objective):
    """Cross-entropy to a soft label for each member, `soft` [n, C]; its minimum is their mean entropy, not 0."""

    def __init__(self, model: nn.Module, members: Examples, config: Train, device: torch.device, soft: torch.Tensor) -> None:
        super().__init__(model, members, config, device)
        self.soft = soft.to(device)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        return F.cross_entropy(logits, self.soft[index])


def left_out(members: int, options: Options, seed: int) -> torch.Tensor:
    """[n, K] bool: whether a sub-model leaves a member out, true L times a row, drawn from `seed` alone.

    Raises UserError where there are so few members that a sub-model gets all of them or none.
    """
    order = np.tile(np.arange(options.k), (members, 1))
    np.random.default_rng(derive_seed("selena", seed)).permuted(order, axis=1, out=order)
    out = torch.from_numpy(order < options.l)
    require(
        bool(out.any(0).all() and (~out).any(0).all()),
        f"{members} members are too few for {options.k} sub-models that each leave out {options.l} in {options.k} of them: "
        "raise data.members or lower defenses.selena.k.",
    )
    return out


def soft_labels(
    models: Iterable[nn.Module],
    examples: Examples,
    out: torch.Tensor,
    classes: int,
    average: Literal["probabilities", "logits"],
    device: torch.device,
) -> torch.Tensor:
    """[n, C] float32, rows sum to 1: the mean answer to each example of the models whose column in `out` [n, K] is true.

    `models` yields K classifiers, one after the other: it need not hold them all at once.
    """
    total = torch.zeros(len(examples), classes, dtype=torch.float64)
    for model, asked in zip(models, out.T, strict=True):
        logits = predict(model, examples.take(asked), device).double()
        total[asked] += logits.softmax(1) if average == "probabilities" else logits
    mean = total / out.sum(1, keepdim=True)
    return (mean if average == "probabilities" else mean.softmax(1)).float()


def part_path(run: Run, part: int) -> Path:
    """Where a sub-model lies."""
    return run.models_dir / "selena" / f"sub{part:02d}.pt"


def parts(run: Run) -> list[tuple[Path, dict[str, Any]]]:
    """Where each sub-model lies, and the settings it is made under."""
    options = options_of(run, "selena", Options)
    return [(part_path(run, part), _part_settings(run, options, part)) for part in range(options.k)]


def train_part(run: Run, split: Split, part: int) -> nn.Module:
    """Train one sub-model, `part` in 0..K-1, on the members that it does not leave out, or find it trained; returns it."""
    options = options_of(run, "selena", Options)
    require(0 <= part < options.k, f"SELENA's sub-models are numbered 0..{options.k - 1}; there is no {part}.")
    seen = (~left_out(len(split.members), options, run.seed)[:, part]).nonzero()[:, 0]
    seed = derive_seed("selena", run.seed, part)
    model = target_classifier(replace(run, seed=seed))  # initial weights of its own
    objective = Objective(model, split.members.take(seen), run.config.train, run.device)
    remake = run.command("train_defense.py", "--defense selena")
    fit(objective, part_path(run, part), _part_settings(run, options, part), seed, remake)
    return objective.model


def train(run: Run, split: Split) -> nn.Module:
    """Train the sub-models that are missing, one by one, and distil the student from their soft labels."""
    if model_path(run, "selena").is_file():  # the sub-models may be deleted by now
        return load_target(run, "selena", "clean", target_classifier(run))
    options = options_of(run, "selena", Options)
    models = (train_part(run, split, part) for part in range(options.k))
    out = left_out(len(split.members), options, run.seed)
    soft = soft_labels(models, split.members, out, DATASETS[run.dataset].classes, options.average, run.device)
    objective = Distillation(target_classifier(run), split.members, run.config.train, run.device, soft)
    return train_target(run, "selena", objective, split)


def _part_settings(run: Run, options: Options, part: int) -> dict[str, Any]:
    """A sub-model's settings without what it does not depend on: another average needs no new sub-models."""
    config = replace(
        run.config,
        train=replace(run.config.train, best_on_test=False),
        defenses={"selena": {"k": options.k, "l": options.l}},
    )
    return {**settings_of(replace(run, config=config), "selena"), "part": part}
