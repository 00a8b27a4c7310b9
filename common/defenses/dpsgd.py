"""DP-SGD (Abadi et al., CCS 2016) with Opacus (paper Section IV-A).

The gradient of each sample is clipped, the clipped gradients of a batch are summed, and Gaussian noise is added to the sum.

The paper's noise multipliers (0.1 and 0.05) give no meaningful privacy: epsilon at delta = 1e-5 is about 1e5 to 3e6. Every row
states its epsilon. With `target_epsilon`, the noise is computed from a budget instead. These points matter for a private run:

- BatchNorm mixes the samples of a batch, so that GroupNorm replaces it. This happens before the optimiser is built. In the
  released code it happens afterwards, and the parameters of the new layers are never trained.
- Batches are Poisson samples, which may be empty, and the sum is divided by the expected batch size, as the accountant assumes.
- The weights are not in channels_last format, because Opacus then computes wrong per-sample gradients of convolutions. A test
  against plain SGD detects this.
- Everything is computed in float32, because the norms of gradients in bfloat16 are too inaccurate for clipping.

Samples and noise come from PyTorch's generators, which are seeded in every epoch. A training therefore resumes exactly, but its
noise is not cryptographically secure.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from common.config import Train, require
from common.data.partition import Examples, Split
from common.errors import UserError
from common.ranges import BETWEEN_0_AND_1, NOT_NEGATIVE, POSITIVE, at_least, check_range
from common.run import Run
from common.training import Objective, Stateful, options_of, target_classifier, train_target

PRIVATE = "dpsgd-private"  # the name of the same method with a small epsilon


@dataclass(frozen=True)
class Options:
    """The config section `defenses.dpsgd`. Raises UserError for a value out of range."""

    section: ClassVar[str] = "defenses.dpsgd"  # of the config, for messages

    noise_multiplier: float = 0.1  # standard deviation of the noise in units of max_grad_norm; CIFAR-100 and SVHN: 0.05
    max_grad_norm: float = 1.2  # L2 norm to which the gradient of a sample is clipped
    target_epsilon: float = 0.0  # if above 0, the noise multiplier is computed from it and `noise_multiplier` is ignored
    delta: float = 1e-5
    groups: int = 0  # of each GroupNorm; 0 = gcd(32, channels), which is too many for a narrow network (see `with_group_norm`)
    physical_batch: int = 256  # the largest number of samples whose gradients are in memory at the same time

    def __post_init__(self) -> None:
        check_range(self, self.section, NOT_NEGATIVE, "noise_multiplier", "target_epsilon")
        check_range(self, self.section, POSITIVE, "max_grad_norm")
        check_range(self, self.section, BETWEEN_0_AND_1, "delta")
        check_range(self, self.section, at_least(1), "physical_batch")
        require(self.groups >= 0, f"{self.section}.groups must be positive, or 0 for gcd(32, channels), not {self.groups}.")


@dataclass(frozen=True)
class PrivateOptions(Options):
    """The config section `defenses.dpsgd-private`."""

    section: ClassVar[str] = f"defenses.{PRIVATE}"

    target_epsilon: float = 8.0


OPTIONS = {"dpsgd": Options, PRIVATE: PrivateOptions}


class DPSGD(Objective):
    """DP-SGD as an objective. `model` must have no BatchNorm (see `build`).

    Opacus adds hooks to the layers of `model` without copying it, so that the keys of its state dict stay the same. Raises
    UserError where a batch is larger than the number of members, and where no noise multiplier meets `target_epsilon`.
    """

    shares_batches = False  # noise and clipping belong to the whole batch

    def __init__(self, model: nn.Module, members: Examples, config: Train, device: torch.device, options: Options) -> None:
        # Opacus is imported where it is used, because this takes 1.5 s, which no other defense needs.
        from opacus.accountants import RDPAccountant
        from opacus.grad_sample import GradSampleModule
        from opacus.optimizers import DPOptimizer

        super().__init__(model, members, config, device)
        self.model = self.model.to(memory_format=torch.contiguous_format)  # for Opacus 1.6, see above
        size = config.batch_size
        require(size <= len(members), f"train.batch_size = {size} exceeds the {len(members)} members.")
        self.options = options
        self.sample_rate = size / len(members)
        self.steps_per_epoch = len(members) // size
        self.noise_multiplier = _noise_multiplier(options, self.sample_rate, self.steps_per_epoch * config.epochs)
        self.grad_sample_module = GradSampleModule(self.model)
        self.accountant = RDPAccountant()
        self.dp_optimizer = DPOptimizer(
            self.optimizer,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=options.max_grad_norm,
            expected_batch_size=size,
        )
        self.dp_optimizer.attach_step_hook(self.accountant.get_optimizer_hook_fn(self.sample_rate))
        self.optimizer = self.dp_optimizer

    def batches(self) -> Iterable[torch.Tensor]:
        """Poisson samples: each member is in each batch with probability `sample_rate`."""
        for _ in range(self.steps_per_epoch):
            yield (torch.rand(len(self.members)) < self.sample_rate).nonzero().squeeze(1)

    def step(self, index: torch.Tensor, epoch: int) -> tuple[float, float]:
        """Train on one batch, in physical batches whose clipped gradients are summed before the noise is added."""
        if not len(index):
            self._step_on_empty_batch()
            return 0.0, 0.0
        loss, correct = 0.0, 0.0
        physical_batches = index.split(self.options.physical_batch)
        for number, physical_batch in enumerate(physical_batches, start=1):
            # Until the last physical batch, Opacus only sums. Then it adds the noise and changes the weights.
            self.dp_optimizer.signal_skip_step(number < len(physical_batches))
            with _quiet():
                batch_loss, batch_correct = super().step(physical_batch, epoch)
            loss += batch_loss * len(physical_batch) / len(index)
            correct += batch_correct
        return loss, correct

    def _step_on_empty_batch(self) -> None:
        """Add noise to a gradient of 0, and step. Opacus reads the gradients of 0 samples from `grad_sample`."""
        self.dp_optimizer.zero_grad(set_to_none=True)
        for parameter in self.dp_optimizer.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self.dp_optimizer.step()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [b, C]. They are computed in float32 whatever `train.bf16` says."""
        return self.model(images)

    def stateful(self) -> dict[str, Stateful]:
        return {**super().stateful(), "accountant": self.accountant}

    def facts(self) -> dict[str, Any]:
        """The privacy spent so far. Without noise, epsilon is infinite, which is written as None."""
        with _quiet():
            epsilon = self.accountant.get_epsilon(self.options.delta)
        return {
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": self.options.delta,
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.sample_rate,
            "steps": self.steps,
        }

    @property
    def steps(self) -> int:
        """How many steps have been made, those on empty batches included."""
        return sum(steps for _, _, steps in self.accountant.history)


def build(run: Run, name: str = "dpsgd") -> nn.Module:
    """The run's architecture, with GroupNorm in place of BatchNorm; see `with_group_norm`."""
    return with_group_norm(target_classifier(run), options_of(run, name, OPTIONS[name]))


def with_group_norm(model: nn.Module, options: Options) -> nn.Module:
    """A copy of `model` with GroupNorm in place of BatchNorm.

    By default a layer has gcd(32, channels) groups, as in Opacus. A layer of 8, 16 or 32 channels then has one group for each
    channel, which makes all channels of an image equally strong. With a network of width 16, the accuracy on CPU-sized data
    falls by half. Raises UserError where `options.groups` does not divide the number of channels of every layer.
    """
    from opacus.validators import ModuleValidator

    try:
        return ModuleValidator.fix(model, num_groups=options.groups or None)
    except ValueError as error:
        raise UserError(f"{options.section}.groups = {options.groups} does not divide the channels of every layer.") from error


def train(run: Run, split: Split, name: str = "dpsgd") -> nn.Module:
    """Train a classifier on the members with cross-entropy by DP-SGD."""
    objective = DPSGD(build(run, name), split.members, run.config.train, run.device, options_of(run, name, OPTIONS[name]))
    train_target(run, name, objective, split)
    return objective.grad_sample_module.to_standard_module()


def _noise_multiplier(options: Options, sample_rate: float, steps: int) -> float:
    """`noise_multiplier` or, with a `target_epsilon`, the one with which all steps together spend at most this epsilon."""
    if not options.target_epsilon:
        return options.noise_multiplier
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with _quiet():
            return get_noise_multiplier(
                target_epsilon=options.target_epsilon,
                target_delta=options.delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=options.target_epsilon / 1000,
            )
    except ValueError as error:
        raise UserError(
            f"{options.section}.target_epsilon = {options.target_epsilon} is too small for any noise: raise it."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence two warnings that have no consequence here."""
    with warnings.catch_warnings():
        # With the paper's noise, the best Renyi order is below the smallest that Opacus tries. Its epsilon is still a bound.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        # This warning is about the first layer: its inputs are images, which have no gradient.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
