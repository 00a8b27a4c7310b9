"""Reconstruction: alpha-bar and both forward rules by number, a perfect denoiser, DDIM against diffusers, each row's noise."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from common.config import DDPM
from common.diffence.ddpm import build_unet
from common.diffence.reconstruct import DiffusionReconstructor, alpha_bars, ddim_steps, draw_candidates, forward_noise
from common.errors import UserError

FIRST = torch.zeros(3, dtype=torch.int64)  # candidate 0 of three queries
TINY = DDPM(channels=[8, 8], layers=1, attention=[], groups=4, dropout=0.5)


class FakeUNet(nn.Module):
    """A noise predictor with the call of diffusers' UNet2DModel; keeps the timesteps it was called with."""

    def __init__(self, predict: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.predict = predict
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor, step: int, return_dict: bool = True) -> tuple[torch.Tensor]:
        assert not return_dict
        self.calls.append(step)
        return (self.predict(x),)


def tiny_unet() -> nn.Module:
    torch.manual_seed(0)
    unet: nn.Module = build_unet(TINY)
    return unet


def images(count: int = 3, low: float = 0.0, high: float = 1.0, size: int = 8) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def knowing_the_noise(t: int, k: int, rule: str, x: torch.Tensor) -> DiffusionReconstructor:
    """A reconstructor whose network predicts exactly the noise that `remake` adds to three images x."""
    reconstruct = DiffusionReconstructor(FakeUNet(lambda _: noise), t, k, rule)  # type: ignore[arg-type]
    noise = reconstruct.noise(x.shape[1:], torch.arange(3), FIRST)
    return reconstruct


def remake(reconstruct: DiffusionReconstructor, x: torch.Tensor) -> torch.Tensor:
    """Candidate 0 of queries 0, 1 and 2."""
    return reconstruct(x, torch.arange(3), FIRST)


# Schedule and forward noise


def test_alpha_bar_is_the_product_of_one_minus_beta() -> None:
    expected = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    assert alpha_bars().dtype == torch.float64
    np.testing.assert_allclose(alpha_bars().numpy(), expected, rtol=1e-5)
    assert round(alpha_bars()[160].item(), 4) == 0.7636
    assert alpha_bars()[1].item() == pytest.approx(0.9999, abs=1e-9)


@pytest.mark.parametrize(("rule", "signal", "noise"), [("paper", 0.8739, 0.4862), ("released", 1.1444, 0.5564)])
def test_forward_coefficients_at_160(rule: str, signal: float, noise: float) -> None:
    one, zero, alpha_bar = torch.ones(1), torch.zeros(1), alpha_bars()[160]
    assert round(forward_noise(one, zero, alpha_bar, rule).item(), 4) == signal  # type: ignore[arg-type]
    assert round(forward_noise(zero, one, alpha_bar, rule).item(), 4) == noise  # type: ignore[arg-type]


# A perfect denoiser


@pytest.mark.parametrize(("t", "k"), [(160, 1), (160, 2), (160, 7), (1, 1), (40, 40), (1000, 3)])
def test_a_perfect_denoiser_gives_the_image_back(t: int, k: int) -> None:
    x = images()
    torch.testing.assert_close(remake(knowing_the_noise(t, k, "paper", x), x), x, atol=3e-5, rtol=0)


def test_the_released_rule_amplifies_contrast_even_with_a_perfect_denoiser() -> None:
    """1 / .7636 = 1.3096 of the image about mid-grey, and .0803 of the noise, which one jump leaves."""
    x = images(low=0.4, high=0.6)
    reconstruct = knowing_the_noise(160, 1, "released", x)
    noise = reconstruct.noise(x.shape[1:], torch.arange(3), FIRST)
    torch.testing.assert_close(remake(reconstruct, x), 0.5 + 1.3096 * (x - 0.5) + 0.0803 * noise / 2, atol=2e-4, rtol=0)


# DDIM


@pytest.mark.parametrize(("t", "k"), [(160, 1), (160, 2), (160, 4), (160, 5), (200, 8), (1000, 1)])
def test_ddim_is_that_of_diffusers(t: int, k: int) -> None:
    """Our step s is diffusers' timestep s - 1, and its stride is set to T / k."""
    unet, x = tiny_unet(), images()
    reconstruct = DiffusionReconstructor(unet, t, k)
    scheduler = DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False, set_alpha_to_one=True)
    scheduler.register_to_config(num_train_timesteps=t)  # step() takes the stride from it
    scheduler.num_inference_steps = k
    noise = reconstruct.noise(x.shape[1:], torch.arange(3), FIRST)
    sample = scheduler.add_noise(2 * x - 1, noise, torch.tensor([t - 1]))
    with torch.inference_mode():
        for timestep in range(t - 1, -1, -t // k):
            sample = scheduler.step(unet(sample, timestep).sample, timestep, sample).prev_sample
    expected = ((sample + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(remake(reconstruct, x), expected, atol=1e-5, rtol=0)
    assert (expected - x).abs().max() > 0.05


@pytest.mark.parametrize("t", [1, 2, 7, 100, 160, 333])
def test_ddim_steps_fall_from_t_to_zero(t: int) -> None:
    for k in range(1, t + 1):
        steps = ddim_steps(t, k)
        assert len(steps) == k + 1
        assert (steps[0], steps[-1]) == (t, 0)
        gaps = [before - after for before, after in pairwise(steps)]
        assert min(gaps) > 0
        assert max(gaps) - min(gaps) <= 2
    assert ddim_steps(160, 4) == [160, 120, 80, 40, 0]
    assert ddim_steps(160, 1) == [160, 0]


@pytest.mark.parametrize(("k", "timesteps"), [(1, [159]), (4, [159, 119, 79, 39]), (3, [159, 106, 52])])
def test_the_network_is_called_once_a_step(k: int, timesteps: list[int]) -> None:
    unet = FakeUNet(torch.zeros_like)
    reconstruct = DiffusionReconstructor(unet, 160, k)
    remake(reconstruct, images())
    assert unet.calls == timesteps
    assert reconstruct.evaluations == 3 * k


def test_the_paper_s_setting_is_the_default() -> None:
    unet = FakeUNet(torch.zeros_like)
    x = images(low=0.45, high=0.55)
    reconstruct = DiffusionReconstructor(unet)
    noise = reconstruct.noise(x.shape[1:], torch.arange(3), FIRST)
    expected = (x + 0.4862 / 0.8739 * noise / 2).clamp(0, 1)
    torch.testing.assert_close(remake(reconstruct, x), expected, atol=2e-4, rtol=0)
    assert unet.calls == [159]


# Noise


def test_noise_belongs_to_query_and_number_alone() -> None:
    reconstruct = DiffusionReconstructor(FakeUNet(torch.zeros_like), seed=3)
    shape = images().shape[1:]
    drawn = reconstruct.noise(shape, ids(7, 7, 1, 12, 2, 0, 2**40), ids(0, 1, 23, 3, 1, 7, 0))
    for row, (query, number) in enumerate([(7, 0), (7, 1), (1, 23), (12, 3), (2, 1), (0, 7), (2**40, 0)]):
        torch.testing.assert_close(reconstruct.noise(shape, ids(query), ids(number))[0], drawn[row], atol=0, rtol=0)
    assert len(drawn.flatten(1).unique(dim=0)) == 7
    assert not torch.equal(DiffusionReconstructor(FakeUNet(torch.zeros_like), seed=4).noise(shape, ids(7), ids(0))[0], drawn[0])
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    reconstruct.noise(shape, ids(1), ids(1))
    assert torch.equal(torch.rand(1), before)  # the global generator is left alone


def test_noise_is_standard_normal_and_independent() -> None:
    drawn = DiffusionReconstructor(FakeUNet(torch.zeros_like)).noise(
        torch.Size([3, 32, 32]), torch.arange(64) % 8, torch.arange(64) // 8
    )
    n = drawn.numel()
    assert abs(drawn.mean().item()) < 4 / math.sqrt(n)
    assert abs(drawn.var().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs(drawn.pow(4).mean().item() - 3) < 4 * math.sqrt(96 / n)
    correlation = torch.corrcoef(drawn.flatten(1)) - torch.eye(64)
    assert correlation.abs().max() < 5.5 / math.sqrt(3 * 32 * 32)


# Candidates


def test_candidates_lie_in_the_unit_range() -> None:
    reconstruct = DiffusionReconstructor(FakeUNet(lambda x: 3 * x.roll(1, 3)), 300)
    made = draw_candidates(reconstruct, images(2), ids(0, 1), 4, 8)
    assert made.min() == 0
    assert made.max() == 1
    assert ((made > 0) & (made < 1)).any()


def test_candidates_are_those_of_single_rows_and_fewer_are_a_prefix() -> None:
    reconstruct = DiffusionReconstructor(tiny_unet(), 160, 2)
    x, queries = images(), ids(11, 4, 30)
    made = draw_candidates(reconstruct, x, queries, 8, 7)
    assert made.shape == (3, 8, 3, 8, 8)
    for i in range(3):
        for j in range(8):
            single = reconstruct(x[[i]], queries[[i]], ids(j))[0]
            torch.testing.assert_close(made[i, j], single, atol=1e-5, rtol=0)
    torch.testing.assert_close(draw_candidates(reconstruct, x, queries, 5, 100), made[:, :5], atol=1e-5, rtol=0)
    assert (made[:, 0] - made[:, 1]).abs().max() > 0.1


def test_the_network_is_evaluated_without_dropout_and_gradients() -> None:
    reconstruct = DiffusionReconstructor(tiny_unet().train())
    x = images()
    assert torch.equal(remake(reconstruct, x), remake(reconstruct, x))
    assert not any(weight.requires_grad for weight in reconstruct.parameters())


# Refusals


@pytest.mark.parametrize("t", [0, -1, 1001])
def test_refuses_a_t_out_of_range(t: int) -> None:
    with pytest.raises(UserError, match=rf"1\.\.1000, not {t}\b"):
        DiffusionReconstructor(FakeUNet(torch.zeros_like), t)


@pytest.mark.parametrize("steps", [0, 161])
def test_refuses_a_wrong_count_of_evaluations(steps: int) -> None:
    with pytest.raises(UserError, match=f"T = 160, not {steps}"):
        DiffusionReconstructor(FakeUNet(torch.zeros_like), 160, steps)
