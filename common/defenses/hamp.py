"""HAMP (Chen and Pattabiraman, NDSS 2024): high-entropy soft labels, and a penalty on confident predictions.

The paper trains with it and leaves its output modification out (Section IV-A); here that is the option `test_time`, off.
The released code divides the divergence by classes as well as by images but the entropy by images alone: at C classes its
`alpha` weighs C times as much as in a loss that is a mean over images. `scaling` says which one is meant.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import nn

from common.config import Train, require
from common.data import DATASETS
from common.data.partition import Examples, Split
from common.models import Classifier
from common.run import Run
from common.seeds import derive_seed
from common.training.loop import Objective
from common.training.targets import options_of, target_classifier, train_target


@dataclass(frozen=True)
class Options:
    """The config section `defenses.hamp`; the defaults are the paper's for CIFAR-10."""

    gamma: float = 0.8  # entropy of the soft labels, as a fraction of log C, below 1
    alpha: float = 0.001  # weight of the predictions' entropy
    scaling: Literal["released", "per_sample"] = "released"  # divergence over B * C, or over B
    search: Literal["released", "exact"] = "released"  # soft labels in steps of 0.01, or solved for gamma
    test_time: bool = False  # answer with another image's logits in this image's order

    def __post_init__(self) -> None:
        require(0 <= self.gamma < 1, f"defenses.hamp.gamma must lie in 0..1, 1 excluded, not {self.gamma}.")
        require(self.alpha >= 0, f"defenses.hamp.alpha must not be negative, not {self.alpha}.")


def top_probability(classes: int, gamma: float, search: Literal["released", "exact"] = "released") -> float:
    """The true class's share of a soft label whose entropy is at least gamma * log(classes) (`exact`: equal to it).

    The released search moves 0.01 of mass at a time off the true class, at least once, until the entropy (in nats) suffices.
    Raises UserError where gamma is so close to 1 that the true class would lose its lead.
    """

    def excess(top: float) -> float:
        rest = (1 - top) / (classes - 1)
        return -sum(p * math.log(p) for p in (top, *[rest] * (classes - 1)) if p > 0) - gamma * math.log(classes)

    if search == "exact":
        top = brentq(excess, 1 / classes, 1, xtol=1e-15)
    else:
        top = next((k / 100 for k in range(99, 0, -1) if excess(k / 100) >= 0), 0.0)
    require(
        top > 1 / classes + 1e-9,
        f"defenses.hamp.gamma = {gamma} leaves no lead to the true class among {classes} classes: lower it.",
    )
    return top


def soft_labels(classes: int, gamma: float, search: Literal["released", "exact"] = "released") -> torch.Tensor:
    """[C, C] float32: row y is the soft label of class y, its highest entry at y and the others equal; rows sum to 1."""
    top = top_probability(classes, gamma, search)
    return torch.full((classes, classes), (1 - top) / (classes - 1)).fill_diagonal_(top)


class Hamp(Objective):
    """KL(soft label || prediction) - alpha * entropy of the prediction; `soft` [C, C] holds the soft label of each class."""

    def __init__(
        self,
        model: nn.Module,
        members: Examples,
        config: Train,
        device: torch.device,
        options: Options,
        soft: torch.Tensor,
    ) -> None:
        super().__init__(model, members, config, device)
        self.options, self.soft = options, soft.to(device)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        log_p = F.log_softmax(logits, dim=1)
        divergence = F.kl_div(log_p, self.soft[labels], reduction="batchmean")
        if self.options.scaling == "released":  # what kl_div's "mean" means until a torch release changes it, as announced
            divergence = divergence / logits.shape[1]
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        return divergence - self.options.alpha * entropy


class OutputModification(Classifier):
    """A classifier that answers with the logits of a uniformly random image, reordered to the ranks of the true logits.

    Labels and ranks stay, confidences tell nothing. The random image is drawn from `seed` and the query's pixels (rounded
    to 8 bits, so that a query has one answer on every device): asking again gives the same answer. It holds the
    classifier's own parts under their own names, so it loads the classifier's checkpoint.
    """

    def __init__(self, classifier: Classifier, seed: int) -> None:
        super().__init__(classifier.net, classifier.mean.flatten().tolist(), classifier.std.flatten().tolist())
        self.seed = seed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] -> logits [B, C]; equal logits keep the order of their classes."""
        ranks = super().forward(images).argsort(dim=1, stable=True).argsort(1)
        return super().forward(self.random_images(images)).sort(1).values.gather(1, ranks)

    def random_images(self, images: torch.Tensor) -> torch.Tensor:
        """One uniformly random 8-bit image for each image, like `images` in shape, range and device."""
        pixels = images.mul(255).round().to(torch.uint8).cpu()
        drawn = torch.empty_like(pixels)
        for query, image in zip(pixels, drawn, strict=True):
            digest = hashlib.blake2b(query.numpy().tobytes()).hexdigest()
            image.random_(0, 256, generator=torch.Generator().manual_seed(derive_seed("hamp", self.seed, digest)))
        return drawn.to(images.device, images.dtype) / 255


def train(run: Run, split: Split) -> nn.Module:
    """HAMP's loss on the members."""
    options = options_of(run, "hamp", Options)
    soft = soft_labels(DATASETS[run.dataset].classes, options.gamma, options.search)
    objective = Hamp(target_classifier(run), split.members, run.config.train, run.device, options, soft)
    return train_target(run, "hamp", objective, split)


def build(run: Run) -> nn.Module:
    """The module that answers queries: the classifier, behind the output modification where `test_time` asks for it."""
    model = target_classifier(run)
    if not options_of(run, "hamp", Options).test_time:
        return model
    assert isinstance(model, Classifier)
    return OutputModification(model, run.seed)
