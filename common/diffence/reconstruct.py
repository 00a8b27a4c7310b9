"""Sample reconstruction (paper Section III-B1): noise an image to step T by Eq. 3, denoise it back to 0 by DDIM.

Steps count from 1 to 1000 as in the paper; step s is index s - 1 of the scheduler's alpha-bar and of the network's time
embedding. Candidate j of query q has a noise of its own, drawn on the CPU from the seed (seed, q, j): the same on every
machine, in every batch, and whether the candidates are drawn one by one or all at once.
"""

from typing import Literal, Protocol

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import nn

from common.errors import UserError
from common.seeds import derive_seed
from common.training.loop import autocast


class Reconstructor(Protocol):
    """Any generative model: one candidate for each row of `images`.

    images [M, 3, H, W] in [0, 1], queries and numbers int64 [M] -> candidates [M, 3, H, W] in [0, 1]. Row i is candidate
    `numbers[i]` of query `queries[i]` and depends on nothing else in the batch.
    """

    def __call__(self, images: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor: ...


def alpha_bars() -> torch.Tensor:
    """Alpha-bar of the steps 0..1000, float64 [1001], with alpha-bar_0 = 1; betas linear from 1e-4 to 0.02 (Ho et al.)."""
    scheduler = DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - scheduler.betas.double()).cumprod(0)])


def forward_noise(
    x0: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, rule: Literal["paper", "released"]
) -> torch.Tensor:
    """x_T from x_0 in [-1, 1]. `paper`: Eq. 3. `released`: the reciprocal coefficients of the authors' code (see README)."""
    if rule == "released":
        return x0 / alpha_bar.sqrt() + (1 / alpha_bar - 1).sqrt() * noise
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def ddim_steps(t: int, evaluations: int) -> list[int]:
    """The steps T = s_0 > s_1 > ... > s_k = 0 of a k-evaluation DDIM pass, evenly spaced."""
    return [round(t * (evaluations - i) / evaluations) for i in range(evaluations + 1)]


class DiffusionReconstructor(nn.Module):
    """Reconstructs with a noise-predicting UNet; a `Reconstructor`."""

    def __init__(
        self,
        unet: UNet2DModel,
        t: int = 160,
        steps: int = 1,
        forward: Literal["paper", "released"] = "paper",
        seed: int = 0,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= t <= 1000:
            raise UserError(f"the diffusion step T must lie in 1..1000, not {t}.")
        if not 1 <= steps <= t:
            raise UserError(f"the number of DDIM evaluations must lie in 1..T = {t}, not {steps}.")
        self.unet = unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.t, self.rule, self.seed, self.bf16 = t, forward, seed, bf16
        self.steps = ddim_steps(t, steps)
        self.alpha_bar = alpha_bars().float().tolist()
        self.evaluations = 0  # image-evaluations of the network so far

    @torch.inference_mode()
    def forward(self, images: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """See `Reconstructor`."""
        noise = self.noise(images.shape[1:], queries, numbers).to(images.device)
        x = forward_noise(2 * images - 1, noise, torch.tensor(self.alpha_bar[self.t]), self.rule)
        x = x.contiguous(memory_format=torch.channels_last)
        for step, following in zip(self.steps, self.steps[1:], strict=False):
            now, then = self.alpha_bar[step], self.alpha_bar[following]
            with autocast(images.device, self.bf16):
                predicted_noise = self.unet(x, step - 1, return_dict=False)[0].float()
            x0 = (x - (1 - now) ** 0.5 * predicted_noise) / now**0.5
            x = then**0.5 * x0 + (1 - then) ** 0.5 * predicted_noise
            self.evaluations += len(images)
        return ((x + 1) / 2).clamp(0, 1)

    def noise(self, shape: torch.Size, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Standard normal noise [M, *shape], each row from the seed of its own query and candidate number."""
        drawn = torch.empty(len(queries), *shape)
        generator = torch.Generator()
        for row, query, number in zip(drawn, queries.tolist(), numbers.tolist(), strict=True):
            torch.randn(shape, generator=generator.manual_seed(derive_seed("noise", self.seed, query, number)), out=row)
        return drawn


def draw_candidates(
    reconstruct: Reconstructor, images: torch.Tensor, queries: torch.Tensor, n: int, batch: int
) -> torch.Tensor:
    """All N candidates of images [B, 3, H, W]: [B, N, 3, H, W], from N x B rows in batches of `batch`."""
    rows = images.repeat_interleave(n, dim=0)
    numbers = torch.arange(n).repeat(len(images))
    parts = [
        reconstruct(rows[i : i + batch], queries.repeat_interleave(n)[i : i + batch], numbers[i : i + batch])
        for i in range(0, len(rows), batch)
    ]
    return torch.cat(parts).view(len(images), n, *images.shape[1:])
