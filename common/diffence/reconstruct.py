"""Sample reconstruction (paper Section III-B1): noise an image to step T by Eq. 3, then denoise it back to step 0 by DDIM.

Steps count from 1, as in the paper. The network's time embedding counts from 0, so that step s is its timestep s - 1.
Candidate j of query q has noise of its own, which is drawn on the CPU from (seed, q, j). The noise is therefore the same on
every machine and in every batch, and it does not matter whether candidates are drawn one by one or all at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import UserError, check_name
from common.seeds import derive_seed
from common.training.loop import autocast


class Reconstructor(Protocol):
    """Any generative model that returns one candidate for each image.

    images [M, 3, H, W] in [0, 1], queries and numbers int64 [M] -> candidates [M, 3, H, W] in [0, 1]. Row i is candidate
    `numbers[i]` of query `queries[i]`, whose image is `images[i]`. It does not depend on the other rows.
    """

    def __call__(self, images: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor: ...


@cache
def ho_scheduler() -> Any:
    """The scheduler of Ho et al., whose betas rise linearly over 1000 steps."""
    from diffusers import DDPMScheduler  # not above: this takes seconds and 200 MB, which planning and attacks do not need

    return DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")


def alpha_bars(scheduler: Any = None) -> torch.Tensor:
    """Alpha-bar of the steps 0 to S of a scheduler of diffusers: float64 [S + 1], 1 at step 0. None = that of Ho et al."""
    scheduler = scheduler or ho_scheduler()
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - scheduler.betas.double()).cumprod(0)])


@dataclass(frozen=True, eq=False)
class DiffusionModel:
    """A network that denoises images, and how it was trained.

    unet: called as `unet(x, timestep, return_dict=False)[0]`, as diffusers' UNet2DModel is, for x [M, 3, H, W] around
        [-1, 1]. Of an output with more than 3 channels, such as a learned variance, the first 3 are used.
    scheduler: of diffusers, of which the betas and `prediction_type` (a name in PREDICTIONS) are used.
    size: (H, W) of the images that the network was trained on. None = any size that the network takes.
    """

    unet: nn.Module
    scheduler: Any = field(default_factory=ho_scheduler)
    size: tuple[int, int] | None = None


# The image x_0 and the noise in x = signal * x_0 + sigma * noise, by what the network predicts. `out` is its output.
PREDICTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, float, float], tuple[torch.Tensor, torch.Tensor]]] = {
    "epsilon": lambda x, out, signal, sigma: ((x - sigma * out) / signal, out),
    "sample": lambda x, out, signal, sigma: (out, (x - signal * out) / sigma),
    "v_prediction": lambda x, out, signal, sigma: (signal * x - sigma * out, signal * out + sigma * x),
}


def resize(images: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Images [M, 3, H, W] at another size (H, W): bilinear, with antialiasing. Images of that size are returned as they are."""
    if size is None or images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def forward_noise(
    x0: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, rule: Literal["paper", "released"]
) -> torch.Tensor:
    """The noised image x_T of an image x_0 in [-1, 1].

    Rule `paper` is Eq. 3. Rule `released` has the reciprocal coefficients of the authors' code (docs/differences.md).
    """
    if rule == "released":
        return x0 / alpha_bar.sqrt() + (1 / alpha_bar - 1).sqrt() * noise
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def ddim_steps(t: int, evaluations: int) -> list[int]:
    """The steps of a DDIM pass with that many network evaluations, evenly spaced from T down to 0.

    Example: T = 160 with 4 evaluations has the steps 160, 120, 80, 40, 0.
    """
    return [round(t * (evaluations - i) / evaluations) for i in range(evaluations + 1)]


class DiffusionReconstructor(nn.Module):
    """A `Reconstructor` with a diffusion model.

    model: a bare network counts as one that predicts the noise of Ho et al.'s process, for images of any size.
    t: the diffusion step T, from 1 to the model's last, usually 1000. steps: the number of network evaluations of a DDIM pass,
    1..T. forward: the rule of `forward_noise`. seed: of the noise. bf16: compute in bfloat16 where the device supports it.

    Images of another size than the model's are resized to it before they are noised, and their reconstructions are resized
    back (`resize`). Raises UserError for a `t` or `steps` out of range.
    """

    def __init__(
        self,
        model: DiffusionModel | nn.Module,
        t: int = 160,
        steps: int = 1,
        forward: Literal["paper", "released"] = "paper",
        seed: int = 0,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        model = model if isinstance(model, DiffusionModel) else DiffusionModel(model)
        self.alpha_bar = alpha_bars(model.scheduler).float().tolist()
        last = len(self.alpha_bar) - 1
        if not 1 <= t <= last:
            raise UserError(f"the diffusion step T must lie in 1..{last}, not {t}.")
        if not 1 <= steps <= t:
            raise UserError(f"the number of DDIM evaluations must lie in 1..T = {t}, not {steps}.")
        if self.alpha_bar[t] == 0:
            raise UserError(f"this diffusion model's step {t} is pure noise, of which no image can be made: lower T.")
        self.unet = model.unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.prediction = check_name("prediction type", model.scheduler.config.prediction_type, PREDICTIONS)
        self.model, self.t, self.rule, self.seed, self.bf16 = model, t, forward, seed, bf16
        self.steps = ddim_steps(t, steps)
        self.evaluations = 0  # of the network so far, counted for each image

    @torch.inference_mode()
    def forward(self, images: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """One candidate [M, 3, H, W] for each image; arguments as in `Reconstructor`."""
        size = images.shape[-2], images.shape[-1]
        images = resize(images, self.model.size)
        noise = self.noise(images.shape[1:], queries, numbers).to(images.device)
        x = forward_noise(2 * images - 1, noise, torch.tensor(self.alpha_bar[self.t]), self.rule)
        x = x.contiguous(memory_format=torch.channels_last)
        for step, next_step in pairwise(self.steps):
            alpha_bar, next_alpha_bar = self.alpha_bar[step], self.alpha_bar[next_step]
            with autocast(images.device, self.bf16):
                output = self.unet(x, step - 1, return_dict=False)[0][:, :3].float()
            x0, predicted_noise = PREDICTIONS[self.prediction](x, output, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
            x = next_alpha_bar**0.5 * x0 + (1 - next_alpha_bar) ** 0.5 * predicted_noise
            self.evaluations += len(images)
        return resize(((x + 1) / 2).clamp(0, 1), size)

    def noise(self, shape: torch.Size, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Standard normal noise [M, *shape]. Each row has the seed of its own query and candidate number."""
        noise = torch.empty(len(queries), *shape)
        generator = torch.Generator()
        for row, query, number in zip(noise, queries.tolist(), numbers.tolist(), strict=True):
            torch.randn(shape, generator=generator.manual_seed(derive_seed("noise", self.seed, query, number)), out=row)
        return noise


def draw_candidates(
    reconstruct: Reconstructor, images: torch.Tensor, queries: torch.Tensor, n: int, batch: int
) -> torch.Tensor:
    """All `n` candidates of images [B, 3, H, W] with queries [B]: [B, n, 3, H, W]. `batch` candidates are drawn at a time."""
    numbers = torch.arange(n).repeat(len(images))
    rows = images.repeat_interleave(n, dim=0), queries.repeat_interleave(n), numbers
    batches = zip(*(column.split(batch) for column in rows), strict=True)
    candidates = torch.cat([reconstruct(*arguments) for arguments in batches])
    return candidates.view(len(images), n, *images.shape[1:])
