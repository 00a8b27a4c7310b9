"""RelaxLoss (Chen, Yu and Fritz, ICLR 2022): keep the training loss near `alpha` instead of reducing it to zero.

A batch whose cross-entropy is above alpha is trained by gradient descent. Below alpha, an epoch with an even number, counted
from 0, ascends, and one with an odd number flattens the posteriors. The training loss is meant to stay near alpha, so that it
must not be used for early stopping.

The authors' code has one flattening loss for CIFAR and another for its non-image data. The released code of Diffence uses the
first. The method treats the flattened target as a constant, but neither loss detaches it. The option `detach` does.
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
from common.ranges import NOT_NEGATIVE, check_range
from common.run import Run
from common.training import Objective, options_of, target_classifier, train_target


@dataclass(frozen=True)
class Options:
    """The config section `defenses.relaxloss`. Raises UserError for a value out of range.

    The defaults are the paper's for CIFAR-10.
    """

    alpha: float = 0.05  # the cross-entropy near which training stays, at least 0 and below log(number of classes)
    upper: float = 1.0  # largest probability of the true class in a flattened target, in 0..1, 0 excluded
    flattening: Literal["cifar", "non_image"] = "cifar"
    detach: bool = False  # whether no gradient flows through the flattened target

    def __post_init__(self) -> None:
        check_range(self, "defenses.relaxloss", NOT_NEGATIVE, "alpha")
        require(0 < self.upper <= 1, f"defenses.relaxloss.upper must lie in 0..1, 0 excluded, not {self.upper}.")


class RelaxLoss(Objective):
    """The loss of RelaxLoss, which depends on the batch's cross-entropy and on whether the epoch is even or odd."""

    shares_batches = False  # the loss turns at the whole batch's cross-entropy

    def __init__(self, model: nn.Module, members: Examples, config: Train, device: torch.device, options: Options) -> None:
        super().__init__(model, members, config, device)
        self.options = options

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        """Cross-entropy or, below alpha, alpha minus cross-entropy (even epochs) or posterior flattening (odd epochs).

        The gradient of the distance |cross-entropy - alpha| is that of descent above alpha and that of ascent below.
        """
        alpha = self.options.alpha
        cross_entropy = F.cross_entropy(logits, labels)
        if epoch % 2 == 0:
            return (cross_entropy - alpha).abs()
        return cross_entropy if cross_entropy > alpha else self.flattening(logits, labels)

    def flattening(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The flattening loss, a scalar.

        non_image: the mean cross-entropy to the flattened targets.
        cifar: the same mean, with 0 for images that are classified correctly, minus the mean cross-entropy to the labels.
        """
        log_p = F.log_softmax(logits, dim=1)
        target_cross_entropy = -(self.flat_targets(logits, labels) * log_p).sum(1)
        if self.options.flattening == "non_image":
            return target_cross_entropy.mean()
        misclassified = logits.argmax(1) != labels
        return (misclassified * target_cross_entropy + log_p.gather(1, labels[:, None])[:, 0]).mean()

    def flat_targets(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Flattened targets [B, C], whose rows sum to 1.

        The true class has its predicted probability, but at most `upper`. The other classes share the rest equally. For
        example, the prediction (0.2, 0.5, 0.3) with the label 1 becomes (0.25, 0.5, 0.25).
        """
        true_class = F.softmax(logits, dim=1).gather(1, labels[:, None]).clamp(max=self.options.upper)
        if self.options.detach:
            true_class = true_class.detach()
        other_classes = ((1 - true_class) / (logits.shape[1] - 1)).expand_as(logits)
        return other_classes.scatter(1, labels[:, None], true_class)


def train(run: Run, split: Split) -> nn.Module:
    """Train a classifier on the members with RelaxLoss. Raises UserError where alpha is not below the loss of guessing."""
    options = options_of(run, "relaxloss", Options)
    classes = DATASETS[run.dataset].classes
    require(
        options.alpha < math.log(classes),
        f"defenses.relaxloss.alpha = {options.alpha} is no less than log {classes} = {math.log(classes):.3f}, "
        "the loss of guessing, so nothing would be learned: lower it.",
    )
    objective = RelaxLoss(target_classifier(run), split.members, run.config.train, run.device, options)
    return train_target(run, "relaxloss", objective, split)
