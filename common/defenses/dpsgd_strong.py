"""DP-SGD tuned for accuracy: the baseline that Aerni, Zhang and Tramer (CCS 2024) ask every defense to be compared with.

The recipe is that of De et al. ("Unlocking High-Accuracy Differentially Private Image Classification through Scale", 2022):

- Large batches, so that the noise is small beside the sum of the gradients.
- Augmentation multiplicity: the gradient of an example is the mean over several augmented views of it, and then it is clipped.
- The weights of convolutions are standardised, and GroupNorm replaces BatchNorm.
- Predictions use an exponential moving average of the weights.

The noise is as small as accuracy wants. Every row states its epsilon, which may be very large. The optimizer is Adam, as in all
trainings here; the recipe has SGD.
"""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from common.config import Train, require
from common.data.partition import Examples, Split
from common.defenses import dpsgd
from common.ranges import BELOW_1, POSITIVE, at_least, check_range
from common.run import Run
from common.training import Stateful, options_of, target_classifier, train_target

NAME = "dpsgd-strong"


@dataclass(frozen=True)
class Options(dpsgd.Options):
    """The config section `defenses.dpsgd-strong`. Raises UserError for a value out of range.

    `batch_size`, `epochs` and `lr` replace those of `train`. An image and its views count once in `batch_size`.
    """

    section: ClassVar[str] = f"defenses.{NAME}"

    noise_multiplier: float = 0.2
    max_grad_norm: float = 1.0
    groups: int = 16
    batch_size: int = 2048
    epochs: int = 200
    lr: float = 2e-3
    views: int = 8  # augmented views of an example in each step
    shift: int = 4  # a view is shifted by at most this many pixels on each axis; its edges are filled by reflection
    flip: bool = True  # half of the views are mirrored; wrong for digits, as ddpm.flip
    ema_decay: float = 0.999  # of the weights that predict; see `StrongDPSGD.average`

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, self.section, at_least(1), "epochs", "views")
        check_range(self, self.section, at_least(2), "batch_size")
        check_range(self, self.section, POSITIVE, "lr")
        check_range(self, self.section, at_least(0), "shift")
        check_range(self, self.section, BELOW_1, "ema_decay")


class StandardisedConv2d(nn.Conv2d):
    """A convolution with `standardised` weights. It has one group and no dilation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, standardised(self.weight), self.bias, self.stride, self.padding)


def standardised(weight: torch.Tensor) -> torch.Tensor:
    """Weights [O, I, h, w] with mean 0 and variance 1 / (I h w) in each of the O filters."""
    return _unit_and_scale(weight)[0]


def _unit_and_scale(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The standardised weights [O, I, h, w], which are unit vectors, and the factor [O, 1, 1, 1] that scaled them."""
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    scale = (centred.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
    return centred * scale, scale


class StrongDPSGD(dpsgd.DPSGD):
    """The recipe as an objective. `model` must come from `build`.

    `trained` are the weights that steps change. `model` are their moving average, which predicts and is saved. Raises UserError
    where a batch is larger than the number of members, and where no noise multiplier meets `target_epsilon`.
    """

    options: Options

    def __init__(self, model: nn.Module, members: Examples, config: Train, device: torch.device, options: Options) -> None:
        size = options.batch_size
        require(size <= len(members), f"defenses.{NAME}.batch_size = {size} exceeds the {len(members)} members: lower it.")
        _teach_opacus()
        average = copy.deepcopy(model)  # before Opacus adds its hooks
        config = replace(config, batch_size=size, epochs=options.epochs, lr=options.lr)
        super().__init__(model, members, config, device, options)
        self.trained, self.model = self.model.train(), average.to(device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [b, C], averaged over the views of each image.

        Their negative log-likelihood is the mean of the views' cross-entropies. Opacus adds up the gradients that a sample has
        in several passes, so that it clips the gradient of this mean.
        """
        options = self.options
        views = (augmented(images, options.shift, options.flip) for _ in range(options.views))
        return torch.stack([self.trained(view).log_softmax(1) for view in views]).mean(0)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        return F.nll_loss(logits, labels)

    def step(self, index: torch.Tensor, epoch: int) -> tuple[float, float]:
        """Train on one batch, then update the moving average."""
        done = super().step(index, epoch)
        self.average()
        return done

    @torch.no_grad()
    def average(self) -> None:
        """Move the average towards the weights. After step s it keeps min(ema_decay, (1 + s) / (10 + s)) of what it was."""
        decay = min(self.options.ema_decay, (1 + self.steps) / (10 + self.steps))
        for mean, weight in zip(self.model.parameters(), self.trained.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)

    def stateful(self) -> dict[str, Stateful]:
        return {**super().stateful(), "trained": self.trained}


def augmented(images: torch.Tensor, shift: int, flip: bool) -> torch.Tensor:
    """One view of each image [b, 3, H, W]: shifted by up to `shift` pixels on each axis and, with `flip`, mirrored or not."""
    count, _, height, width = images.shape
    if flip:
        mirrored = (torch.rand(count) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if shift:
        corners = torch.randint(0, 2 * shift + 1, (2, count, 1), device="cpu").to(images.device)
        rows, columns = (
            corner + torch.arange(side, device=images.device) for corner, side in zip(corners, (height, width), strict=True)
        )
        padded = F.pad(images, [shift] * 4, mode="reflect").permute(0, 2, 3, 1)
        image = torch.arange(count, device=images.device)[:, None, None]
        images = padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return images.contiguous()  # not channels_last, with which Opacus computes wrong gradients (see dpsgd.py)


def build(run: Run) -> nn.Module:
    """The run's architecture with GroupNorm in place of BatchNorm, and standardised convolutions.

    Raises UserError where `groups` does not divide the number of channels of every layer.
    """
    model = dpsgd.with_group_norm(target_classifier(run), options_of(run, NAME, Options))
    for parent in [*model.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, _standardised_like(child))
    return model


def train(run: Run, split: Split) -> nn.Module:
    """Train a classifier on the members with cross-entropy by the recipe."""
    objective = StrongDPSGD(build(run), split.members, run.config.train, run.device, options_of(run, NAME, Options))
    return train_target(run, NAME, objective, split)


def _standardised_like(layer: nn.Conv2d) -> StandardisedConv2d:
    made = StandardisedConv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        bias=layer.bias is not None,
    )
    made.load_state_dict(layer.state_dict())
    return made


def _teach_opacus() -> None:
    """Register how the gradients of the samples of a StandardisedConv2d are computed."""
    from opacus.grad_sample import register_grad_sampler

    register_grad_sampler(StandardisedConv2d)(_grad_samples)


def _grad_samples(
    layer: StandardisedConv2d, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[torch.Tensor, torch.Tensor]:
    """The gradient of every sample: [b, *shape] for each parameter of the layer.

    With unit vectors u for the standardised weights of a filter and s for the factor that scaled them, a gradient g there is
    s (g - mean(g) - u (u g)) at the weights.
    """
    unit, scale = (part.detach().flatten(1) for part in _unit_and_scale(layer.weight))  # [O, I h w], [O, 1]
    columns = F.unfold(activations[0], layer.kernel_size, padding=layer.padding, stride=layer.stride)  # type: ignore[arg-type]
    products = (scale * backprops.flatten(2)) @ columns.transpose(1, 2)  # s g, [b, O, I h w]
    products -= products.mean(2, keepdim=True)
    products.addcmul_(unit, torch.einsum("bop,op->bo", products, unit)[:, :, None], value=-1)
    samples: dict[torch.Tensor, torch.Tensor] = {layer.weight: products.view(-1, *layer.weight.shape)}
    if layer.bias is not None:
        samples[layer.bias] = backprops.sum((2, 3))
    return samples
