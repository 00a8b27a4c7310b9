"""RelaxLoss (Chen, Yu and Fritz, ICLR 2022): hold the training loss near `alpha` instead of driving it to zero.

Even epochs (from 0) descend above alpha and ascend below; odd epochs descend above and flatten the posteriors below. The
branch is taken for each batch. The training loss stays near alpha by design: to stop early on it would be a mistake.
The authors' code has two flattening losses, for CIFAR and for its non-image data; Diffence uses the first. Neither
detaches the flattened target, although the method treats it as a constant: `detach` chooses.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from common.config import Train, require
from common.data import DATASETS
from common.data.partition import Examples, Split
from common.run import Run
from common.training.loop import Objective
from common.training.targets import options_of, target_classifier, train_target


@dataclass(frozen=True)
class Options:
    """The config section `defenses.relaxloss`; the defaults are the paper's for CIFAR-10."""

    alpha: float = 0.05  # where the cross-entropy is held, below log C
    upper: float = 1.0  # largest share of the true class in a flattened target
    flattening: Literal["cifar", "non_image"] = "cifar"
    detach: bool = False  # take the flattened target as a constant

    def __post_init__(self) -> None:
        require(self.alpha >= 0, f"defenses.relaxloss.alpha must not be negative, not {self.alpha}.")
        require(0 < self.upper <= 1, f"defenses.relaxloss.upper must lie in 0..1, 0 excluded, not {self.upper}.")


class RelaxLoss(Objective):
    """Cross-entropy, its distance to alpha, or posterior flattening, as the epoch and the batch ask for."""

    def __init__(self, model: nn.Module, members: Examples, config: Train, device: torch.device, options: Options) -> None:
        super().__init__(model, members, config, device)
        self.options = options

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        alpha = self.options.alpha
        cross_entropy = F.cross_entropy(logits, labels)
        if epoch % 2 == 0:
            return (cross_entropy - alpha).abs()
        return cross_entropy if cross_entropy > alpha else self.flattening(logits, labels)

    def flattening(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy to the flattened targets; `cifar`: of wrong answers only, and ascent on every label."""
        log_p = F.log_softmax(logits, dim=1)
        to_flat = -(self.flat_targets(logits, labels) * log_p).sum(1)
        if self.options.flattening == "non_image":
            return to_flat.mean()
        wrong = logits.argmax(1) != labels
        return (wrong * to_flat + log_p.gather(1, labels[:, None])[:, 0]).mean()

    def flat_targets(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[B, C], rows sum to 1: the true class keeps its probability, at most `upper`; the others share the rest."""
        own = F.softmax(logits, dim=1).gather(1, labels[:, None]).clamp(max=self.options.upper)
        own = own.detach() if self.options.detach else own
        others = ((1 - own) / (logits.shape[1] - 1)).expand_as(logits)
        return others.scatter(1, labels[:, None], own)


def train(run: Run, split: Split) -> nn.Module:
    """RelaxLoss on the members."""
    options = options_of(run, "relaxloss", Options)
    classes = DATASETS[run.dataset].classes
    require(
        options.alpha < math.log(classes),
        f"defenses.relaxloss.alpha = {options.alpha} is no less than log {classes} = {math.log(classes):.3f}, "
        "the loss of guessing, so nothing would be learned: lower it.",
    )
    objective = RelaxLoss(target_classifier(run), split.members, run.config.train, run.device, options)
    return train_target(run, "relaxloss", objective, split)
