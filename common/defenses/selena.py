"""SELENA (Tang et al., USENIX Security 2022): distil the answers of sub-models to members that they were not trained on.

First, Split-AI trains K sub-models. Each member is left out of the training sets of exactly L of them, so that all sub-models
together cost as much as K - L trainings on all members. Then the soft label of each member is computed: the mean answer, in
evaluation mode, of the L sub-models that were not trained on it. No other sub-model takes part, because the answer of a
model that was trained on the member reveals its membership. Finally, a student learns the soft labels without the true labels.
Only the student is released.

The released code differs in three ways: it averages logits instead of probabilities (the option `average`), it does not shuffle
the student's batches, and it creates a new optimiser in every epoch. Sub-models are saved one by one and can be trained as
separate jobs (`train_part`). They are those of the last epoch, not those with the best test accuracy.
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
from common.training import Objective, fit, options_of, predict, target_classifier, train_target
from common.training.targets import load_target, model_path, settings_of


@dataclass(frozen=True)
class Options:
    """The config section `defenses.selena`, with the paper's values. Raises UserError for a value out of range."""

    k: int = 25  # number of sub-models
    l: int = 10  # noqa: E741 - the paper's letter. The number of sub-models that a member is left out of
    average: Literal["probabilities", "logits"] = "probabilities"  # what is averaged; the released code: logits

    def __post_init__(self) -> None:
        require(
            1 <= self.l < self.k,
            f"defenses.selena.l must lie in 1..defenses.selena.k - 1 = {self.k - 1}, not {self.l}.",
        )


class Distillation(Objective):
    """Cross-entropy to the soft labels of the members, `soft` [n, C]. Its minimum is their mean entropy, not 0."""

    def __init__(self, model: nn.Module, members: Examples, config: Train, device: torch.device, soft: torch.Tensor) -> None:
        super().__init__(model, members, config, device)
        self.soft = soft.to(device)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        return F.cross_entropy(logits, self.soft[index])


def left_out(members: int, options: Options, seed: int) -> torch.Tensor:
    """Draw the members that each sub-model leaves out; depends on `seed` alone.

    Returns bool [members, K], true where a member (row) is left out of the training set of a sub-model (column). Each row has
    exactly L true values: with K = 4 and L = 2, the permutation (2, 0, 3, 1) becomes (False, True, False, True).

    Raises UserError where there are so few members that a sub-model would get all of them or none.
    """
    permutations = np.tile(np.arange(options.k), (members, 1))
    np.random.default_rng(derive_seed("selena", seed)).permuted(permutations, axis=1, out=permutations)
    out_mask = torch.from_numpy(permutations < options.l)
    require(
        bool(out_mask.any(0).all() and (~out_mask).any(0).all()),
        f"{members} members are too few for {options.k} sub-models that each leave out {options.l} in {options.k} of them: "
        "raise data.members or lower defenses.selena.k.",
    )
    return out_mask


def soft_labels(
    models: Iterable[nn.Module],
    examples: Examples,
    out_mask: torch.Tensor,
    classes: int,
    average: Literal["probabilities", "logits"],
    device: torch.device,
) -> torch.Tensor:
    """Soft labels, float32 [n, C], whose rows sum to 1: the mean answer of the models that were not trained on an example.

    models: K classifiers. They are used one after the other, so that an iterator need not hold all of them in memory.
    out_mask: bool [n, K], true where an example was left out of the training set of a model (`left_out`).
    average: whether probabilities are averaged, or logits, whose mean is then turned into probabilities.
    """
    total = torch.zeros(len(examples), classes, dtype=torch.float64)
    for model, is_out in zip(models, out_mask.T, strict=True):
        logits = predict(model, examples.take(is_out), device).double()
        total[is_out] += logits.softmax(1) if average == "probabilities" else logits
    mean = total / out_mask.sum(1, keepdim=True)
    return (mean if average == "probabilities" else mean.softmax(1)).float()


def part_path(run: Run, part: int) -> Path:
    """The checkpoint of a sub-model, `part` in 0..K-1."""
    return run.models_dir / "selena" / f"sub{part:02d}.pt"


def parts(run: Run) -> list[tuple[Path, dict[str, Any]]]:
    """The checkpoint of each sub-model, and the settings that its weights depend on."""
    options = options_of(run, "selena", Options)
    return [(part_path(run, part), _part_settings(run, options, part)) for part in range(options.k)]


def train_part(run: Run, split: Split, part: int) -> nn.Module:
    """Train one sub-model, `part` in 0..K-1, on the members that it does not leave out, or load it if it is trained already.

    Raises UserError for a `part` out of range, and for a checkpoint that was made under other settings.
    """
    options = options_of(run, "selena", Options)
    require(0 <= part < options.k, f"SELENA's sub-models are numbered 0..{options.k - 1}; there is no {part}.")
    index = (~left_out(len(split.members), options, run.seed)[:, part]).nonzero()[:, 0]
    seed = derive_seed("selena", run.seed, part)
    model = target_classifier(replace(run, seed=seed))  # each sub-model has other initial weights
    objective = Objective(model, split.members.take(index), run.config.train, run.device)
    remake = run.command("train_defense.py", "--defense selena")
    fit(objective, part_path(run, part), _part_settings(run, options, part), seed, remake)
    return objective.model


def train(run: Run, split: Split) -> nn.Module:
    """Train the sub-models that are missing, one by one, and then the student on their soft labels."""
    if model_path(run, "selena").is_file():  # a trained student is loaded without its sub-models, which may have been deleted
        return load_target(run, "selena", "clean", target_classifier(run))
    options = options_of(run, "selena", Options)
    models = (train_part(run, split, part) for part in range(options.k))
    out_mask = left_out(len(split.members), options, run.seed)
    soft = soft_labels(models, split.members, out_mask, DATASETS[run.dataset].classes, options.average, run.device)
    objective = Distillation(target_classifier(run), split.members, run.config.train, run.device, soft)
    return train_target(run, "selena", objective, split)


def _part_settings(run: Run, options: Options, part: int) -> dict[str, Any]:
    """The settings that the weights of a sub-model depend on.

    `average` and `train.best_on_test` are not among them, so that the same sub-models serve all their values.
    """
    config = replace(
        run.config,
        train=replace(run.config.train, best_on_test=False),
        defenses={"selena": {"k": options.k, "l": options.l}},
    )
    return {**settings_of(replace(run, config=config), "selena"), "part": part}
