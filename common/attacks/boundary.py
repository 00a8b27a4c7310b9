"""The label-only attacks (paper Appendix A-B, Table VI): they ask a model for labels and never see a confidence.

The boundary attack (Choquette-Choo et al., ICML 2021; Li & Zhang, CCS 2021) scores an image by its distance to the nearest
image with another label, which foolbox's HopSkipJump searches. The augmentation attack scores it by how many of its shifted
copies are classified correctly. The gap attack is `common.attacks.metric.correctness`.
"""

from dataclasses import dataclass
from typing import Any

import eagerpy as ep
import numpy as np
import torch
import torch.nn.functional as F
from foolbox import PyTorchModel
from foolbox.attacks import HopSkipJumpAttack
from torch import Tensor, nn

from common.config import require
from common.diffence.protect import check_images
from common.errors import UserError
from common.metrics.privacy import Floats
from common.seeds import derive_seed

NOISE_STARTS = 100  # uniform noise images, offered to the search as places to start from
ASKED_AT_ONCE = 500  # images a call of the model


class LabelOnly(nn.Module):
    """A model of which only labels are seen: images [B, 3, H, W] in [0, 1] -> the predicted class, one-hot float32 [B, C].

    Counts the labels it gives in `asked`. Raises UserError where the model returns NaN or infinite logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.asked = 0
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits = self.model(images)
        if not torch.isfinite(logits).all():
            raise UserError("the classifier returned NaN or infinite logits: check its weights and the images.")
        self.asked += len(images)
        return F.one_hot(logits.argmax(1), logits.shape[1]).float()

    def labels(self, images: Tensor) -> Tensor:
        """The predicted classes int64 [n] of any number of images."""
        return torch.cat([self(part).argmax(1) for part in images.split(ASKED_AT_ONCE)])


@dataclass(frozen=True, eq=False)
class BoundaryResult:
    """Distances of n images, in L2 over all pixels in [0, 1]: the score of the boundary attack.

    `distances` float64 [n]: 0 for a misclassified image, else the least distance found. `failed` bool [n]: no image with
    another label was found; the distance is then the diameter of the pixel box, sqrt(3 H W), beyond which there is no image.
    `asked`: labels the attack has asked for, over all images.
    """

    distances: Floats
    failed: np.ndarray
    asked: int


class HopSkipJump(HopSkipJumpAttack):
    """foolbox's HopSkipJump, which keeps in `best` the least distance [n] seen before its last step."""

    best: ep.Tensor

    def approximate_gradients(self, *arguments: Any) -> ep.Tensor:
        """Directions of length 1 for each image: foolbox 3.3.4 divides by the norm over the whole batch."""
        directions = super().approximate_gradients(*arguments)
        lengths = directions.flatten(start=1).norms.l2(axis=1) + 1e-12
        return directions / lengths.reshape((-1, *[1] * (directions.ndim - 1)))

    def select_delta(self, originals: ep.Tensor, distances: ep.Tensor, step: int) -> ep.Tensor:
        """Sees the distances at the start of each step; a step can end farther away than it began."""
        self.best = distances if step == 0 else ep.minimum(self.best, distances)
        return super().select_delta(originals, distances, step)


def boundary_distances(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    starts: Tensor | None = None,
    batch: int = 50,
) -> BoundaryResult:
    """Distance of each image to the nearest one found that `model` does not give its label.

    `images` [n, 3, H, W] in [0, 1], true `labels` int64 [n], `model` any classifier with its normalisation inside. `starts`
    [m, 3, H, W] are images the attacker has (default: `images`); the search of an image starts from the nearest of them, or
    of some noise images, that has another label. HopSkipJump asks for about 6,600 labels an image in 20 `steps` and 25,000
    in 50; more steps never give a larger distance. The result depends on nothing but the arguments (`batch` among them:
    images that are searched at once share a stream of noise). Raises UserError for steps < 1, shapes that do not fit and
    pixels outside [0, 1].
    """
    require(steps > 0, f"the boundary attack needs at least 1 step, not {steps}.")
    _check(images, labels)
    starts = images if starts is None else starts
    check_images(starts)
    require(starts.shape[1:] == images.shape[1:], f"starts {list(starts.shape)} do not fit images {list(images.shape)}.")
    asked = LabelOnly(model).to(device)
    noise = torch.rand(NOISE_STARTS, *images.shape[1:], generator=torch.Generator().manual_seed(derive_seed("starts", seed)))
    pool = torch.cat([starts.cpu(), noise]).to(device)
    pool_labels = asked.labels(pool)
    images, labels = images.to(device), labels.to(device)
    distances = torch.zeros(len(images), dtype=torch.float64)
    failed = torch.zeros(len(images), dtype=torch.bool)
    correct = (asked.labels(images) == labels).cpu()
    for begin in range(0, len(images), batch):
        where = begin + correct[begin : begin + batch].nonzero()[:, 0]
        other = pool_labels[None] != labels[where][:, None]
        gaps = torch.cdist(images[where].flatten(1), pool.flatten(1)).masked_fill(~other, torch.inf)
        found = other.any(1).cpu()
        failed[where[~found]] = True
        distances[where[~found]] = images[0].numel() ** 0.5
        if found.any():
            reached = where[found]
            near = pool[gaps[found].argmin(1)]
            distances[reached] = _search(asked, images[reached], labels[reached], near, steps, derive_seed("hsj", seed, begin))
    return BoundaryResult(distances.numpy(), failed.numpy(), asked.asked)


def _search(asked: LabelOnly, images: Tensor, labels: Tensor, starts: Tensor, steps: int, seed: int) -> Tensor:
    """The least distances [b] that HopSkipJump finds, float64, on the CPU. foolbox draws from torch's global generator."""
    attack = HopSkipJump(steps=steps)
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        torch.manual_seed(seed)
        last = attack.run(PyTorchModel(asked, bounds=(0, 1), device=images.device), images, labels, starting_points=starts)
    return torch.minimum(attack.best.raw, attack.distance(images, last)).double().cpu()


def shifts(distance: int) -> list[tuple[int, int]]:
    """(0, 0) and every (dx, dy) with |dx| + |dy| = `distance`, in pixels: 4 distance + 1 of them (Choquette-Choo et al.)."""
    require(distance > 0, f"images must be shifted by at least 1 pixel, not {distance}.")
    ring = {(dx, sign * (distance - abs(dx))) for dx in range(-distance, distance + 1) for sign in (-1, 1)}
    return [(0, 0), *sorted(ring)]


def augmentation_scores(model: nn.Module, images: Tensor, labels: Tensor, *, device: torch.device, distance: int = 1) -> Floats:
    """The augmentation attack's score float64 [n], 0..1: how many of an image's shifted copies are classified correctly.

    `images` [n, 3, H, W] in [0, 1], true `labels` int64 [n]. An image asks for 4 `distance` + 1 labels; pixels that a shift
    uncovers repeat the edge. Raises UserError for distance < 1, shapes that do not fit and pixels outside [0, 1].
    """
    _check(images, labels)
    asked = LabelOnly(model).to(device)
    height, width = images.shape[2:]
    wide = F.pad(images, (distance,) * 4, mode="replicate")
    right = [
        asked.labels(wide[:, :, distance + dy :, distance + dx :][:, :, :height, :width].to(device)).cpu() == labels.cpu()
        for dx, dy in shifts(distance)
    ]
    return torch.stack(right).double().mean(0).numpy()


def _check(images: Tensor, labels: Tensor) -> None:
    check_images(images)
    require(labels.shape == images.shape[:1], f"{len(images)} images need as many labels, not {list(labels.shape)}.")
