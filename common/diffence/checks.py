"""What a protected classifier refuses: images and logits of another shape, type or range."""

from typing import Any

import torch

from common.errors import UserError


def check_images(images: torch.Tensor) -> None:
    """Raise UserError for anything but a floating-point batch [B, 3, H, W] in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise UserError(f"images must have the shape [B, 3, H, W] with B >= 1, not {list(images.shape)}.")
    if not images.is_floating_point():
        raise UserError(f"images must be floating-point numbers in [0, 1], not {images.dtype}: divide bytes by 255.")
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise UserError(
            f"images must lie in [0, 1], not in [{images.min().item():.3g}, {images.max().item():.3g}]: "
            "normalisation belongs inside the classifier."
        )


def check_logits(logits: Any, count: int) -> None:
    """Raise UserError for anything but a tensor [count, C] with C >= 2."""
    if not torch.is_tensor(logits) or logits.ndim != 2 or len(logits) != count:
        returned = f"the shape {list(logits.shape)}" if torch.is_tensor(logits) else f"a {type(logits).__name__}"
        raise UserError(f"the classifier must return logits of the shape [B, C], not {returned}.")
    if logits.shape[1] < 2:
        raise UserError(
            f"the classifier must return at least 2 logits for each image, not {logits.shape[1]}: where it has one logit z of "
            "two classes, return (0, z)."
        )


def check_no_probabilities(logits: torch.Tensor) -> None:
    """Raise UserError for logits [B, C] that are all probabilities, up to the rounding of their type."""
    tolerance = max(1e-5, torch.finfo(logits.dtype).eps)
    if (logits >= 0).all() and ((logits.float().sum(1) - 1).abs() < tolerance).all():
        raise UserError("the classifier returns probabilities, which sum to 1: leave out its softmax, for logits.")
