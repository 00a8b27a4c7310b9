"""Diffusion models off the shelf: converted checkpoints against plain networks, schedulers by formula, EDM in closed form."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from layouts import GuidedDiffusion, PytorchDDPM, save_model
from safetensors.torch import save_file
from torch import nn

from common.config import DDPM
from common.diffence.ddpm import build_unet
from common.diffence.reconstruct import DiffusionModel, DiffusionReconstructor, alpha_bars, forward_noise, ho_scheduler, resize
from common.diffence.sources import edm_model, load_diffusion_model
from common.errors import UserError

QUERIES = torch.arange(3)


def images(count: int = 3, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def remake(model: Any, x: torch.Tensor, t: int = 160, steps: int = 1, **options: Any) -> torch.Tensor:
    """A reconstruction of each of the images x."""
    return DiffusionReconstructor(model, t, steps, **options)(x, torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64))


def lively(network: nn.Module) -> nn.Module:
    """The network with every tensor of random numbers, so that no part of it is without effect. A time table stays.

    The first layer's are small, so that the epsilon of the norms behind it counts.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                scale = 1.0 if parameter.ndim == 1 else 1.5 / math.sqrt(parameter[0].numel())
                scale *= 0.01 if name.startswith(("head", "input_blocks.0.")) else 1
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def ddpm_network() -> nn.Module:
    return lively(PytorchDDPM(1000, 32, [1, 2, 2], attention=[1], layers=2))


@pytest.fixture(scope="module")
def guided_network() -> nn.Module:
    return lively(GuidedDiffusion(64, [1, 2, 2], attention=[1, 2], layers=1))


# Checkpoints of other codebases


@pytest.mark.parametrize("timestep", [0, 1, 159, 999])
def test_a_checkpoint_of_pytorch_ddpm_gives_the_same_network(ddpm_network: nn.Module, tmp_path: Path, timestep: int) -> None:
    state = {f"module.{name}": value for name, value in ddpm_network.state_dict().items()}
    wrong = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"net_model": wrong, "ema_model": state, "step": 3, "x_T": torch.zeros(1)}, tmp_path / "half.pt")
    model = load_diffusion_model(tmp_path / "half.pt")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = ddpm_network(x, torch.tensor([timestep] * 2))
        found = model.unet(x, timestep, return_dict=False)[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert model.size == (32, 32)
    torch.testing.assert_close(alpha_bars(model.scheduler), alpha_bars())


def test_the_paper_s_network_has_328_tensors_of_pytorch_ddpm(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = PytorchDDPM(1000, 128, [1, 2, 2, 2], attention=[1], layers=2)
    state = {name: torch.zeros(value.shape) for name, value in network.state_dict().items()}
    assert len(state) == 328 + 1  # and the table of the time embedding
    torch.save(state, tmp_path / "bare.pt")
    unet: Any = load_diffusion_model(tmp_path / "bare.pt").unet
    assert len(unet.state_dict()) == 328
    assert {name: value.shape for name, value in unet.state_dict().items()} == {
        name: value.shape for name, value in build_unet(DDPM()).state_dict().items()
    }


@pytest.mark.parametrize("timestep", [0, 159, 999])
def test_a_checkpoint_of_guided_diffusion_gives_the_same_network(
    guided_network: nn.Module, tmp_path: Path, timestep: int
) -> None:
    save_file(guided_network.state_dict(), tmp_path / "uncond.safetensors")
    model = load_diffusion_model(tmp_path / "uncond.safetensors", size=32)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = guided_network(x, torch.tensor([timestep] * 2))
        found = model.unet(x, timestep, return_dict=False)[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_the_imagenet_network_is_recognised_by_its_shapes(tmp_path: Path) -> None:
    """As published, at a quarter of its width: it takes 256 x 256 images. In half precision, as it was published."""
    with torch.device("meta"):
        network = GuidedDiffusion(64, [1, 1, 2, 2, 4, 4], attention=[3, 4, 5], layers=2)
    torch.save({name: torch.zeros(value.shape).half() for name, value in network.state_dict().items()}, tmp_path / "a.pt")
    model = load_diffusion_model(tmp_path / "a.pt")
    assert model.size == (256, 256)
    assert len(network.state_dict()) == 566
    assert len(model.unet.state_dict()) == 630
    assert {value.dtype for value in model.unet.state_dict().values()} == {torch.float32}


def test_a_learned_variance_is_left_out(guided_network: nn.Module, tmp_path: Path) -> None:
    torch.save(guided_network.state_dict(), tmp_path / "a.pt")
    x = images(2, 32)
    reconstruct = DiffusionReconstructor(load_diffusion_model(tmp_path / "a.pt", 32), 160)
    noise = reconstruct.noise(x.shape[1:], torch.arange(2), torch.zeros(2, dtype=torch.int64))
    with torch.inference_mode():
        alpha_bar = alpha_bars()[160].float()
        noisy = forward_noise(2 * x - 1, noise, alpha_bar, "paper")
        predicted = guided_network(noisy, torch.tensor([159, 159]))[:, :3]
        expected = (((noisy - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt() + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(reconstruct(x, torch.arange(2), torch.zeros(2, dtype=torch.int64)), expected, atol=1e-4, rtol=0)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.1


# Schedulers


SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda i: 1e-4 + (0.02 - 1e-4) * i / 499,
    "scaled_linear": lambda i: (1e-4**0.5 + (0.02**0.5 - 1e-4**0.5) * i / 499) ** 2,
    "squaredcos_cap_v2": lambda i: np.minimum(
        1 - np.cos(((i + 1) / 500 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos((i / 500 + 0.008) / 1.008 * np.pi / 2) ** 2, 0.999
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alpha_bar_is_that_of_the_model(tmp_path: Path, schedule: str) -> None:
    save_model(tmp_path, num_train_timesteps=500, beta_schedule=schedule)
    model = load_diffusion_model(tmp_path)
    expected = np.concatenate([[1.0], np.cumprod(1 - SCHEDULES[schedule](np.arange(500)))])
    np.testing.assert_allclose(alpha_bars(model.scheduler).numpy(), expected, rtol=2e-4, atol=1e-9)
    with pytest.raises(UserError, match=r"lie in 1\.\.500, not 501"):
        DiffusionReconstructor(model, 501)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_jump_is_that_of_diffusers(tmp_path: Path, schedule: str, prediction: str) -> None:
    """Its add_noise and one step of its DDIM, from timestep 159 to below 0."""
    unet = save_model(tmp_path, beta_schedule=schedule, prediction_type=prediction)
    scheduler = DDIMScheduler(beta_schedule=schedule, prediction_type=prediction, clip_sample=False, set_alpha_to_one=True)
    scheduler.register_to_config(num_train_timesteps=160)
    scheduler.num_inference_steps = 1
    x = images()
    reconstruct = DiffusionReconstructor(load_diffusion_model(str(tmp_path)), 160)
    noisy = scheduler.add_noise(2 * x - 1, reconstruct.noise(x.shape[1:], QUERIES, 0 * QUERIES), torch.tensor([159]))
    with torch.inference_mode():
        image = scheduler.step(unet(noisy, 159).sample, 159, noisy).prev_sample
    expected = ((image + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(reconstruct(x, QUERIES, 0 * QUERIES), expected, atol=2e-5, rtol=0)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.3


def test_a_folder_without_a_scheduler_counts_as_ho_et_al(tmp_path: Path) -> None:
    unet = save_model(tmp_path, beta_schedule="scaled_linear")
    for source in (tmp_path, tmp_path / "unet"):  # the scheduler beside the network counts in both cases
        assert load_diffusion_model(source).scheduler.config.beta_schedule == "scaled_linear"
    unet.save_pretrained(tmp_path / "alone")
    model = load_diffusion_model(tmp_path / "alone")
    torch.testing.assert_close(alpha_bars(model.scheduler), alpha_bars())
    torch.testing.assert_close(remake(model, images()), remake(unet, images()))


def test_pure_noise_at_step_t_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    with pytest.raises(UserError, match="step 1000 is pure noise"):
        DiffusionReconstructor(load_diffusion_model(tmp_path), 1000)


# EDM, and one Gaussian in every form

MEAN, SPREAD = 0.2, 0.3  # of every pixel of the data, in [-1, 1]


class Best(nn.Module):
    """What a perfectly trained network returns for pixels N(MEAN, SPREAD^2), by Bayes' rule."""

    def __init__(self, prediction: str) -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, x: torch.Tensor, timestep: int, return_dict: bool = True) -> tuple[torch.Tensor]:
        alpha_bar = float(alpha_bars()[timestep + 1])
        a, b = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        image = (a * SPREAD**2 * x + b**2 * MEAN) / (a**2 * SPREAD**2 + b**2)
        noise = (x - a * image) / b
        return ({"epsilon": noise, "sample": image, "v_prediction": a * noise - b * image}[self.prediction],)


def best_edm(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The same in EDM's form: the image behind x = image + sigma * noise."""
    variance = sigma[:, None, None, None] ** 2
    return (SPREAD**2 * x + variance * MEAN) / (SPREAD**2 + variance)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("t", [40, 160, 700])
def test_all_forms_of_one_model_give_one_reconstruction(t: int, steps: int) -> None:
    """And that is the posterior mean where there is one step."""
    x = images()
    expected = remake(Best("epsilon"), x, t, steps)
    for prediction in ("sample", "v_prediction"):
        model = DiffusionModel(Best(prediction), DDPMScheduler.from_config(ho_scheduler().config, prediction_type=prediction))
        torch.testing.assert_close(remake(model, x, t, steps), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(remake(edm_model(best_edm, 8), x, t, steps), expected, atol=1e-5, rtol=0)
    if steps == 1:
        noise = DiffusionReconstructor(Best("epsilon"), t).noise(x.shape[1:], QUERIES, 0 * QUERIES)
        level = float(1 / alpha_bars()[t] - 1)  # sigma^2
        noisy = 2 * x - 1 + level**0.5 * noise
        mean = (SPREAD**2 * noisy + level * MEAN) / (SPREAD**2 + level)
        torch.testing.assert_close(expected, ((mean + 1) / 2).clamp(0, 1), atol=1e-5, rtol=0)


def test_an_edm_denoiser_is_asked_at_the_noise_level_of_step_t() -> None:
    asked: list[torch.Tensor] = []

    def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        asked.append(sigma)
        return x

    remake(edm_model(denoiser, 8), images())
    torch.testing.assert_close(asked[0], torch.full((3,), 0.5564), atol=1e-4, rtol=0)


# Sizes


def test_images_of_another_size_are_resized_there_and_back() -> None:
    """A perfect denoiser leaves what survives the resizing; a gradient does."""
    seen: list[torch.Size] = []

    class Knowing(nn.Module):
        def forward(self, x: torch.Tensor, timestep: int, return_dict: bool = True) -> tuple[torch.Tensor]:
            seen.append(x.shape)
            return (2 * resize(flat, (32, 32)) - 1,)

    flat = torch.linspace(0.2, 0.8, 64).expand(3, 3, 48, 64)
    model = DiffusionModel(Knowing(), DDPMScheduler.from_config(ho_scheduler().config, prediction_type="sample"), (32, 32))
    made = remake(model, flat)
    assert seen == [(3, 3, 32, 32)]
    assert made.shape == flat.shape
    torch.testing.assert_close(made[..., 2:-2], flat[..., 2:-2], atol=2e-3, rtol=0)


def test_images_of_the_model_s_size_are_not_touched() -> None:
    x = images()
    assert resize(x, (8, 8)) is x
    assert resize(x, None) is x
