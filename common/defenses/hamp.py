"""HAMP (Chen and Pattabiraman, NDSS 2024): soft labels of high entropy, and a penalty on confident predictions.

The paper (Section IV-A) uses the training of HAMP without its output modification, which is the option `test_time` here, off by
default. The released code divides the divergence by the numbers of images and of classes, C, but the entropy by the number of
images alone. Its `alpha` therefore has C times the weight that it has in a loss that is a mean over images. The option
`scaling` selects one of the two losses.
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
from common.ranges import NOT_NEGATIVE, check_range
from common.run import Run
from common.seeds import derive_seed
from common.training import Objective, options_of, target_classifier, train_target


@dataclass(frozen=True)
class Options:
    """The config section `defenses.hamp`. Raises UserError for a value out of range.

    The defaults are the paper's for CIFAR-10. B is the number of images of a batch and C the number of classes.
    """

    gamma: float = 0.8  # entropy of the soft labels as a fraction of log C, in 0..1, 1 excluded
    alpha: float = 0.001  # weight of the predictions' entropy
    scaling: Literal["released", "per_sample"] = "released"  # the divergence is divided by B * C, or by B
    search: Literal["released", "exact"] = "released"  # of the soft label: in steps of 0.01, or for an entropy of gamma * log C
    test_time: bool = False  # whether answers are changed by the output modification (`OutputModification`)

    def __post_init__(self) -> None:
        require(0 <= self.gamma < 1, f"defenses.hamp.gamma must lie in 0..1, 1 excluded, not {self.gamma}.")
        check_range(self, "defenses.hamp", NOT_NEGATIVE, "alpha")


def top_probability(classes: int, gamma: float, search: Literal["released", "exact"] = "released") -> float:
    """The true class's probability in a soft label whose entropy is at least gamma * log(classes), in nats.

    The other classes have equal probabilities. The `released` search tries 0.99, 0.98 and so on until the entropy suffices. The
    `exact` search solves for an entropy of gamma * log(classes). With 10 classes and gamma = 0.8, they return 0.47 and 0.4766.

    Raises UserError where gamma is so close to 1 that the true class would not be the most probable one.
    """

    def excess_entropy(top: float) -> float:
        rest = (1 - top) / (classes - 1)
        return -sum(p * math.log(p) for p in (top, *[rest] * (classes - 1)) if p > 0) - gamma * math.log(classes)

    if search == "exact":
        top = brentq(excess_entropy, 1 / classes, 1, xtol=1e-15)
    else:
        top = next((percent / 100 for percent in range(99, 0, -1) if excess_entropy(percent / 100) >= 0), 0.0)
    require(
        top > 1 / classes + 1e-9,
        f"defenses.hamp.gamma = {gamma} leaves no lead to the true class among {classes} classes: lower it.",
    )
    return top


def soft_labels(classes: int, gamma: float, search: Literal["released", "exact"] = "released") -> torch.Tensor:
    """The soft labels, float32 [C, C]: row y, which sums to 1, is that of class y. See `top_probability` for the arguments."""
    top = top_probability(classes, gamma, search)
    return torch.full((classes, classes), (1 - top) / (classes - 1)).fill_diagonal_(top)


class Hamp(Objective):
    """The loss KL(soft label || prediction) - alpha * entropy(prediction). `soft` [C, C] has one soft label for each class."""

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
        if self.options.scaling == "released":
            # This is kl_div's reduction "mean", which is not used here because PyTorch has announced that it will change.
            divergence = divergence / logits.shape[1]
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        return divergence - self.options.alpha * entropy


class OutputModification(Classifier):
    """A classifier that answers with the logits of a random image, put in the order of the true logits.

    Labels and ranks are those of the classifier, and confidences carry no information. For example, with the true logits
    (2, 5, 1) and the random image's logits (0.3, 0.1, 4), the answer is (0.3, 4, 0.1).

    The random image is drawn from `seed` and from the pixels of the query, so that a repeated query has the same answer. The
    pixels are rounded to 8 bits, so that the answer is the same on every device. The module has the state dict of `classifier`
    and loads its checkpoint.
    """

    def __init__(self, classifier: Classifier, seed: int) -> None:
        super().__init__(classifier.net, classifier.mean.flatten().tolist(), classifier.std.flatten().tolist())
        self.seed = seed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] -> logits [B, C]. Of two equal true logits, the first has the lower rank."""
        ranks = super().forward(images).argsort(dim=1, stable=True).argsort(1)
        return super().forward(self.random_images(images)).sort(1).values.gather(1, ranks)

    def random_images(self, images: torch.Tensor) -> torch.Tensor:
        """For each image one image of uniformly random 8-bit pixels, with the shape, range and device of `images`."""
        queries = images.mul(255).round().to(torch.uint8).cpu()
        random_images = torch.empty_like(queries)
        for query, random_image in zip(queries, random_images, strict=True):
            digest = hashlib.blake2b(query.numpy().tobytes()).hexdigest()
            random_image.random_(0, 256, generator=torch.Generator().manual_seed(derive_seed("hamp", self.seed, digest)))
        return random_images.to(images.device, images.dtype) / 255


def train(run: Run, split: Split) -> nn.Module:
    """Train a classifier on the members with HAMP's loss."""
    options = options_of(run, "hamp", Options)
    soft = soft_labels(DATASETS[run.dataset].classes, options.gamma, options.search)
    objective = Hamp(target_classifier(run), split.members, run.config.train, run.device, options, soft)
    return train_target(run, "hamp", objective, split)


def build(run: Run) -> nn.Module:
    """The run's architecture, with the output modification where the option `test_time` is set."""
    model = target_classifier(run)
    if not options_of(run, "hamp", Options).test_time:
        return model
    assert isinstance(model, Classifier)
    return OutputModification(model, run.seed)
