"""The label-only attacks (paper Appendix A-B, Table VI), which query a model for labels and see no confidences.

The boundary attack (Choquette-Choo et al., ICML 2021; Li & Zhang, CCS 2021) scores an image by its distance to the nearest
image with another label, for which foolbox's HopSkipJump searches. The augmentation attack scores an image by the share of its
shifted copies that are classified correctly. The gap attack is `common.attacks.metric.correctness`.
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
from common.diffence.checks import check_images
from common.errors import UserError
from common.metrics.privacy import Floats
from common.seeds import derive_seed

NOISE_STARTS = 100  # images of uniform noise among the starting images
QUERY_BATCH = 500  # images in a call of the model


class LabelOnly(nn.Module):
    """A model that releases labels only: images [B, 3, H, W] in [0, 1] -> predicted classes, one-hot float32 [B, C].

    It counts the images that were passed to it in `queries`. Raises UserError if the model returns NaN or infinite logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.queries = 0
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """One-hot labels [B, C] of images [B, 3, H, W]."""
        logits = self.model(images)
        if not torch.isfinite(logits).all():
            raise UserError("the classifier returned NaN or infinite logits: check its weights and the images.")
        self.queries += len(images)
        return F.one_hot(logits.argmax(1), logits.shape[1]).float()

    def labels(self, images: Tensor) -> Tensor:
        """The predicted classes int64 [n] of any number of images."""
        return torch.cat([self(part).argmax(1) for part in images.split(QUERY_BATCH)])


@dataclass(frozen=True, eq=False)
class BoundaryResult:
    """The scores of the boundary attack: distances of n images, in L2 over all pixels in [0, 1].

    distances: float64 [n], 0 for a misclassified image, else the smallest distance to an image with another label.
    failed: bool [n], True where no starting image has another label. The distance is then sqrt(3 H W), the largest that two
    images can have.
    queries: number of labels that the attack queried, over all images.
    """

    distances: Floats
    failed: np.ndarray
    queries: int


class HopSkipJump(HopSkipJumpAttack):
    """foolbox's HopSkipJump with directions of norm 1 for each image. It records the smallest distances in `best` [n].

    `best` is the minimum over the starts of all steps, because a step can end at a larger distance than it started from.
    """

    best: ep.Tensor

    def approximate_gradients(self, *arguments: Any) -> ep.Tensor:
        """Directions of norm 1 for each image. foolbox 3.3.4 divides them by the norm over the whole batch."""
        directions = super().approximate_gradients(*arguments)
        lengths = directions.flatten(start=1).norms.l2(axis=1) + 1e-12
        return directions / lengths.reshape((-1, *[1] * (directions.ndim - 1)))

    def select_delta(self, originals: ep.Tensor, distances: ep.Tensor, step: int) -> ep.Tensor:
        """The size of foolbox's random perturbations in this step. `distances` are those at the start of the step."""
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
    """The distance from each image to the nearest image with another label that HopSkipJump finds.

    `images` [n, 3, H, W] in [0, 1], true `labels` int64 [n], and `model` any classifier with its normalisation inside. `starts`
    [m, 3, H, W] are images that the attacker has (default: `images`). The search for an image starts from the nearest image
    with another label among `starts` and noise images.

    HopSkipJump makes about 6,600 queries for each image in 20 `steps` and 25,000 in 50. More steps never give a larger
    distance. `batch` images are searched at once and share a stream of noise, so that the result depends on `batch` too. It
    does not depend on PyTorch's global generator. Raises UserError for steps < 1, for shapes that do not fit, and for pixels
    outside [0, 1].
    """
    require(steps > 0, f"the boundary attack needs at least 1 step, not {steps}.")
    _check(images, labels)
    starts = images if starts is None else starts
    check_images(starts)
    require(starts.shape[1:] == images.shape[1:], f"starts {list(starts.shape)} do not fit images {list(images.shape)}.")
    label_only = LabelOnly(model).to(device)
    noise = torch.rand(NOISE_STARTS, *images.shape[1:], generator=torch.Generator().manual_seed(derive_seed("starts", seed)))
    pool = torch.cat([starts.cpu(), noise]).to(device)
    pool_labels = label_only.labels(pool)
    images, labels = images.to(device), labels.to(device)
    correct = (label_only.labels(images) == labels).cpu()
    distances = torch.zeros(len(images), dtype=torch.float64)
    failed = torch.zeros(len(images), dtype=torch.bool)
    for start in range(0, len(images), batch):
        index = start + correct[start : start + batch].nonzero()[:, 0]
        nearest, reachable = nearest_starts(images[index], labels[index], pool, pool_labels)
        failed[index[~reachable]] = True
        distances[index[~reachable]] = images[0].numel() ** 0.5
        if reachable.any():
            searched, search_starts, search_seed = index[reachable], nearest[reachable], derive_seed("hsj", seed, start)
            distances[searched] = _search(label_only, images[searched], labels[searched], search_starts, steps, search_seed)
    return BoundaryResult(distances.numpy(), failed.numpy(), label_only.queries)


def nearest_starts(images: Tensor, labels: Tensor, pool: Tensor, pool_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The image with another label in the pool that is nearest to each image, in L2. The search for that image starts there.

    `images` [b, 3, H, W], `labels` [b], `pool` [m, 3, H, W], `pool_labels` [m]. Returns the starting images [b, 3, H, W], and
    bool [b] on the CPU: False where the pool has no image with another label. The starting image is arbitrary there.
    """
    other_label = pool_labels[None] != labels[:, None]
    distances = torch.cdist(images.flatten(1), pool.flatten(1)).masked_fill(~other_label, torch.inf)
    return pool[distances.argmin(1)], other_label.any(1).cpu()


def _search(model: LabelOnly, images: Tensor, labels: Tensor, starts: Tensor, steps: int, seed: int) -> Tensor:
    """The smallest distances that HopSkipJump reaches, float64 [b] on the CPU.

    foolbox draws from PyTorch's global generator, whose state is restored afterwards.
    """
    attack = HopSkipJump(steps=steps)
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        torch.manual_seed(seed)
        last = attack.run(PyTorchModel(model, bounds=(0, 1), device=images.device), images, labels, starting_points=starts)
    return torch.minimum(attack.best.raw, attack.distance(images, last)).double().cpu()


def shifts(distance: int) -> list[tuple[int, int]]:
    """The shifts (dx, dy) in pixels: (0, 0) and all 4 * `distance` with |dx| + |dy| = `distance` (Choquette-Choo et al.).

    `shifts(1)` is [(0, 0), (-1, 0), (0, -1), (0, 1), (1, 0)]. Raises UserError for distance < 1.
    """
    require(distance > 0, f"images must be shifted by at least 1 pixel, not {distance}.")
    ring = {(dx, sign * (distance - abs(dx))) for dx in range(-distance, distance + 1) for sign in (-1, 1)}
    return [(0, 0), *sorted(ring)]


def augmentation_scores(model: nn.Module, images: Tensor, labels: Tensor, *, device: torch.device, distance: int = 1) -> Floats:
    """Scores of the augmentation attack, float64 [n], 0..1: the share of an image's shifted copies with the correct label.

    `images` [n, 3, H, W] in [0, 1], true `labels` int64 [n]. An image takes 4 * `distance` + 1 queries. Pixels that a shift
    uncovers repeat the edge of the image. Raises UserError for distance < 1, for shapes that do not fit, and for pixels outside
    [0, 1].
    """
    _check(images, labels)
    label_only = LabelOnly(model).to(device)
    height, width = images.shape[2:]
    padded = F.pad(images, (distance,) * 4, mode="replicate")
    correct = []
    for dx, dy in shifts(distance):
        top, left = distance + dy, distance + dx
        shifted = padded[:, :, top : top + height, left : left + width]
        correct.append(label_only.labels(shifted.to(device)).cpu() == labels.cpu())
    return torch.stack(correct).double().mean(0).numpy()


def _check(images: Tensor, labels: Tensor) -> None:
    """Raise UserError for images that are not [n, 3, H, W] in [0, 1], and unless each has a label."""
    check_images(images)
    require(labels.shape == images.shape[:1], f"{len(images)} images need as many labels, not {list(labels.shape)}.")
