"""A tiny classifier, diffusion model and images, and what protects the one with the other; shared by tests."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from common.config import DDPM
from common.diffence.ddpm import build_unet
from common.diffence.protect import ProtectedClassifier
from common.protect import protect

TINY = DDPM(channels=[8, 8], layers=1, attention=[], groups=4, dropout=0.0)
SIZE = (10, 12)


def images(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Noise on a colour of the image's own, in steps of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    mixed = (torch.rand(count, 3, 1, 1, generator=generator) + torch.rand(count, 3, *size, generator=generator)) / 2
    return (mixed * 255).round() / 255


def unet() -> Any:
    torch.manual_seed(0)
    return build_unet(TINY)


def classifier() -> nn.Module:
    """A linear one with three classes, whose logits differ from image to image."""
    torch.manual_seed(1)
    linear = nn.Linear(3 * SIZE[0] * SIZE[1], 3)
    with torch.no_grad():
        linear.weight.mul_(6)
    return nn.Sequential(nn.Flatten(), linear).eval()


def protected(**options: Any) -> ProtectedClassifier:
    """Scenario 1, fitted on a few images."""
    given: dict[str, Any] = {
        "members": images(12, 1),
        "non_members": images(12, 2),
        "scenario": "1",
        "n": 4,
        "seed": 0,
        "device": "cpu",
    } | options
    return protect(classifier(), unet(), **given)


def write_images(folder: Path, x: torch.Tensor, name: str = "{:03d}.png") -> Path:
    """The images as PNG files, which keep them exactly."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(x):
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / name.format(i))
    return folder
