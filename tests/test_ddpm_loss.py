"""What the diffusion model minimises: the paper's network, Ho et al.'s loss on the asked timesteps, mirroring, clipping."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.config import DDPM
from common.data.partition import Examples
from common.diffence.ddpm import build_unet, ddpm_step

ALPHA_BAR = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))  # of timesteps 0..999


def constant(value: int, count: int = 4) -> Examples:
    return Examples(torch.full((count, 3, 8, 8), value, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))


class Watcher(nn.Module):
    """Predicts the noise of images of one grey, by default white (z = 1), exactly but for `bias`; keeps its arguments."""

    def __init__(self, z: float = 1.0) -> None:
        super().__init__()
        self.z = z
        self.bias = nn.Parameter(torch.zeros(()))
        self.images: list[torch.Tensor] = []
        self.timesteps: list[int] = []

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        self.images.append(x)
        self.timesteps += timesteps.tolist()
        alpha_bar = ALPHA_BAR[timesteps][:, None, None, None]
        return (((x - alpha_bar.sqrt() * self.z) / (1 - alpha_bar).sqrt()).float() + self.bias,)


def step(net: nn.Module, members: Examples, seed: int = 0, done: int = 10, **options: Any) -> torch.Tensor:
    """One step of plain gradient descent."""
    config = DDPM(**{"batch_size": 64, "lr": 1.0, **options})
    return ddpm_step(net, torch.optim.SGD(net.parameters(), 1.0), members, config, seed, done)


def test_the_paper_s_unet_has_its_parameters() -> None:
    with torch.device("meta"):
        unet = build_unet(DDPM())
    assert sum(weight.numel() for weight in unet.parameters()) == 35_746_307
    attention = {name.split(".attentions")[0] for name, _ in unet.named_modules() if ".attentions." in name}
    assert attention == {"down_blocks.1", "mid_block", "up_blocks.2"}  # 16 x 16, and the middle
    assert unet.config.dropout == 0.1
    assert (unet.config.flip_sin_to_cos, unet.config.freq_shift) == (False, 0)  # of the time embedding
    assert unet.mid_block.attentions[0].heads == 1


def test_the_unet_tells_timesteps_apart() -> None:
    torch.manual_seed(0)
    unet, x = build_unet(DDPM(channels=[8, 8], layers=1, attention=[], groups=4)).eval(), torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        outputs = [unet(x, t, return_dict=False)[0] for t in (0, 1, 159)]
    assert outputs[0].shape == x.shape
    assert min((outputs[0] - outputs[1]).abs().max(), (outputs[0] - outputs[2]).abs().max()) > 1e-4


def test_a_perfect_denoiser_has_no_loss() -> None:
    for max_timestep in (1, 3, 160, 1000):
        assert step(Watcher(), constant(255), max_timestep=max_timestep) < 1e-5
    off = Watcher()
    off.bias.data += 0.5
    assert step(off, constant(255)).item() == pytest.approx(0.25, abs=1e-4)
    for value, z in ((0, -1.0), (51, -0.6), (204, 0.6)):
        assert step(Watcher(z), constant(value)) < 1e-5


def test_timesteps_are_all_of_one_to_max() -> None:
    net = Watcher()
    for seed in range(4):
        step(net, constant(255), seed, max_timestep=5)
    assert set(net.timesteps) == {0, 1, 2, 3, 4}
    wide = Watcher()
    for seed in range(4):
        step(wide, constant(255), seed, max_timestep=160)
    assert max(wide.timesteps) <= 159
    assert np.mean(wide.timesteps) == pytest.approx(79.5, abs=4 * 46 / 16)


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_only_where_asked(flip: bool) -> None:
    members, net = constant(0), Watcher()
    members.images[..., :4] = 255
    step(net, members, flip=flip, max_timestep=1)
    left = net.images[0][..., :4].mean((1, 2, 3))
    assert left.abs().min() > 0.9
    assert 16 < (left < 0).sum() < 48 if flip else (left > 0).all()


def test_gradients_are_clipped_and_the_rate_warms_up() -> None:
    for done, warmup, rate in ((0, 4, 0.25), (2, 4, 0.75), (3, 4, 1.0), (400, 4, 1.0), (0, 0, 1.0)):
        net = Watcher()
        net.bias.data += 0.5  # gradient 1, clipped to .01
        step(net, constant(255), done=done, warmup=warmup, grad_clip=0.01)
        assert 0.5 - net.bias.item() == pytest.approx(0.01 * rate, rel=1e-3)
