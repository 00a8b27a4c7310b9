"""DP-SGD (Abadi et al., CCS 2016) with Opacus (paper Section IV-A): per-sample gradients are clipped, summed, noised.

The paper's noise multipliers (0.1 and 0.05) are not private: epsilon at delta = 1e-5 is around 1e5 to 3e6. It is written
into every result; `target_epsilon` asks for the noise of a budget instead. What matters for a private run:
- BatchNorm mixes the samples of a batch, so GroupNorm replaces it, before the optimiser is built: in the released code
  it comes after, and the new layers' parameters are never trained;
- batches are Poisson samples, possibly empty, and the sum is divided by the expected batch size, as the accountant assumes;
- Opacus's per-sample gradients of convolutions are wrong for channels_last weights (the test against plain SGD finds it);
- all of it is float32: per-sample gradients in bfloat16 would be clipped to a rough norm.
Sampling and noise come from PyTorch's generators, seeded by epoch: they resume exactly, but are not cryptographically safe.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.config import Train, require
from common.data.partition import Examples, Split
from common.errors import UserError
from common.run import Run
from common.training.loop import Objective, Stateful
from common.training.targets import options_of, target_classifier, train_target

PRIVATE = "dpsgd-private"  # the same method under a budget that means something


@dataclass(frozen=True)
class Options:
    """The config section `defenses.dpsgd`. Raises UserError for a value out of range."""

    noise_multiplier: float = 0.1  # standard deviation of the noise in units of max_grad_norm; CIFAR-100 and SVHN: 0.05
    max_grad_norm: float = 1.2  # L2 norm to which the gradient of a sample is clipped
    target_epsilon: float = 0.0  # above 0: the noise multiplier is computed for it and the one above is not used
    delta: float = 1e-5
    groups: int = 0  # of each GroupNorm; 0 = gcd(32, channels). A narrow network wants fewer: see `build`
    physical_batch: int = 256  # samples whose gradients are in memory at a time

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "target_epsilon"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"defenses.dpsgd.{name} must be at least 0 and finite, not {value}.")
        require(self.max_grad_norm > 0, f"defenses.dpsgd.max_grad_norm must be positive, not {self.max_grad_norm}.")
        require(self.groups >= 0, f"defenses.dpsgd.groups must be positive, or 0 for gcd(32, channels), not {self.groups}.")
        require(0 < self.delta < 1, f"defenses.dpsgd.delta must lie between 0 and 1, both excluded, not {self.delta}.")
        require(self.physical_batch > 0, f"defenses.dpsgd.physical_batch must be at least 1, not {self.physical_batch}.")


@dataclass(frozen=True)
class PrivateOptions(Options):
    """The config section `defenses.dpsgd-private`."""

    target_epsilon: float = 8.0


OPTIONS = {"dpsgd": Options, PRIVATE: PrivateOptions}


class DPSGD(Objective):
    """DP-SGD as an objective. `model` must hold no BatchNorm (see `build`).

    Opacus hooks the layers of `model` itself, which therefore keeps its own state dict. Raises UserError where a batch is
    larger than the members or the budget cannot be met.
    """

    def __init__(self, model: nn.Module, members: Examples, config: Train, device: torch.device, options: Options) -> None:
        from opacus.accountants import RDPAccountant  # here and below: 1.5 s that no other defense's command should wait for
        from opacus.grad_sample import GradSampleModule
        from opacus.optimizers import DPOptimizer

        super().__init__(model, members, config, device)
        self.model = self.model.to(memory_format=torch.contiguous_format)  # Opacus 1.6 is wrong on channels_last
        size = config.batch_size
        require(size <= len(members), f"train.batch_size = {size} exceeds the {len(members)} members.")
        self.options = options
        self.sample_rate = size / len(members)
        self.steps = len(members) // size  # of an epoch
        self.noise_multiplier = _noise_multiplier(options, self.sample_rate, self.steps * config.epochs)
        self.hooked = GradSampleModule(self.model)
        self.accountant = RDPAccountant()
        self.private = DPOptimizer(
            self.optimizer,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=options.max_grad_norm,
            expected_batch_size=size,
        )
        self.private.attach_step_hook(self.accountant.get_optimizer_hook_fn(self.sample_rate))
        self.optimizer = self.private

    def batches(self) -> Iterable[torch.Tensor]:
        """Poisson samples: each member is in each batch with probability `sample_rate`."""
        for _ in range(self.steps):
            yield (torch.rand(len(self.members)) < self.sample_rate).nonzero().squeeze(1)

    def step(self, index: torch.Tensor, epoch: int) -> tuple[float, int]:
        """One noised step, the clipped gradients being summed over physical batches; an empty batch adds noise alone."""
        if not len(index):
            self._noise_alone()
            return 0.0, 0
        loss, correct = 0.0, 0
        parts = index.split(self.options.physical_batch)
        for number, part in enumerate(parts, start=1):
            self.private.signal_skip_step(number < len(parts))  # noise and the step itself come with the last part
            with _quiet():
                part_loss, part_correct = super().step(part, epoch)
            loss, correct = loss + part_loss * len(part) / len(index), correct + part_correct
        return loss, correct

    def _noise_alone(self) -> None:
        self.private.zero_grad(set_to_none=True)
        for parameter in self.private.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self.private.step()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [b, C], in float32 throughout."""
        return self.model(images)

    def stateful(self) -> dict[str, Stateful]:
        return {**super().stateful(), "accountant": self.accountant}

    def facts(self) -> dict[str, Any]:
        """The privacy spent so far; an epsilon of None is none at all (no noise)."""
        with _quiet():
            epsilon = self.accountant.get_epsilon(self.options.delta)
        return {
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": self.options.delta,
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.sample_rate,
            "steps": sum(steps for _, _, steps in self.accountant.history),
        }


def build(run: Run, name: str = "dpsgd") -> nn.Module:
    """The run's architecture with BatchNorm replaced by GroupNorm, by default of gcd(32, channels) groups as in Opacus.

    Up to 32 channels that is one group a channel, which erases how strong a channel is in an image: at width 16 the
    accuracy on CPU-sized data halves. UserError for a number of groups that does not divide the channels.
    """
    from opacus.validators import ModuleValidator

    groups = options_of(run, name, OPTIONS[name]).groups
    try:
        return ModuleValidator.fix(target_classifier(run), num_groups=groups or None)
    except ValueError as error:
        raise UserError(f"defenses.dpsgd.groups = {groups} does not divide the channels of every layer.") from error


def train(run: Run, split: Split, name: str = "dpsgd") -> nn.Module:
    """Cross-entropy on the members by DP-SGD."""
    objective = DPSGD(build(run, name), split.members, run.config.train, run.device, options_of(run, name, OPTIONS[name]))
    train_target(run, name, objective, split)
    return objective.hooked.to_standard_module()


def _noise_multiplier(options: Options, sample_rate: float, steps: int) -> float:
    """The given noise multiplier, or the one under which all steps together spend at most `target_epsilon`."""
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
            f"defenses.dpsgd.target_epsilon = {options.target_epsilon} is too small for any noise: raise it."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without two warnings of which nothing follows here."""
    with warnings.catch_warnings():
        # At the paper's noise the best Renyi order lies below Opacus's smallest: its epsilon still is a bound.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        # Of the first layer, whose input is an image.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
