"""The defended classifier as one module (paper Fig. 2): any PyTorch classifier, a reconstructor and a selector."""

import numpy as np
import torch
from torch import nn

from common.diffence.ddpm import load_reconstructor
from common.diffence.reconstruct import Reconstructor, draw_candidates
from common.diffence.select import Selector
from common.errors import UserError
from common.run import Run
from common.seeds import derive_seed, image_keys


class ProtectedClassifier(nn.Module):
    """Classifies re-generated images and keeps the label: images [B, 3, H, W] in [0, 1] -> logits [B, C].

    Any batch size from 1, no labels needed, CPU or GPU. `n` candidates at most are drawn for an image, lazily: `draws`
    at a time, and only until one qualifies (the same one that drawing all N would release). Each image served is a new
    query with new noise, unless the caller names its queries.

    With a `key` (1 to 64 bytes; the config's `diffence.stable`) the noise comes from a keyed hash of the image instead: an
    image has one answer, up to rounding, in any batch, however often it is asked, and after a restart. The law of that
    answer is the same as without. Images are compared at 8 bits a channel: jitter below half a grey level meets the same
    noise, one grey level in one pixel fresh noise. A service keeps its key secret: with it, noise is known beforehand.

    How many candidates an image took shows in the time of its answer, and members take other numbers than non-members
    (common/experiments/repeated_queries.py measures it): a service whose time can be taken draws all at once, `draws` = `n`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        reconstruct: Reconstructor,
        selector: Selector,
        n: int = 30,
        draws: int = 1,
        batch: int = 256,
        key: bytes | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("n", n), ("draws", draws), ("batch", batch)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        if key is not None and not 1 <= len(key) <= 64:
            raise UserError(f"the key of a stable ProtectedClassifier must have 1 to 64 bytes, not {len(key)}.")
        self.classifier, self.reconstruct, self.selector = classifier, reconstruct, selector
        self.n, self.draws, self.batch, self.key = n, draws, batch, key
        self.served = 0  # queries answered without a key so far: names the next one
        self.drawn = torch.zeros(0, dtype=torch.int64)  # candidates drawn for each image of the last call
        self.eval()

    def train(self, mode: bool = True) -> "ProtectedClassifier":
        """Serving never trains: `train()` would turn on dropout and move BatchNorm's statistics with every query."""
        return super().train(False)

    @torch.inference_mode()
    def forward(self, images: torch.Tensor, queries: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B, C] of the released candidates; `queries` int64 [B] names the noise of each image."""
        check_images(images)
        if queries is None and self.key is not None:
            queries = image_keys(images, self.key)
        elif queries is None:
            queries = torch.arange(self.served, self.served + len(images))
            self.served += len(images)
        elif len(queries) != len(images):
            raise UserError(f"{len(images)} images need as many queries, not {len(queries)}.")
        original = self._logits(images)
        if self.selector.scenario == "average":
            return self._all(images, queries, original)
        return self._first(images, queries, original)

    def _all(self, images: torch.Tensor, queries: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Average over all N candidates."""
        drawn = draw_candidates(self.reconstruct, images, queries, self.n, self.batch).flatten(0, 1)
        self.drawn = torch.full((len(images),), self.n)
        logits = torch.cat([self._logits(part) for part in drawn.split(self.batch)])
        released = self.selector.release(logits.view(len(images), self.n, -1).cpu().numpy(), original.cpu().numpy())
        return torch.from_numpy(released).to(original)

    def _first(self, images: torch.Tensor, queries: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """The first candidate that qualifies, else the nearest that keeps the label, else the original prediction."""
        labels = original.argmax(1)
        released = original.clone()
        best = np.full(len(images), np.inf)
        self.drawn = torch.zeros(len(images), dtype=torch.int64)
        for start in range(0, self.n, self.draws):
            waiting = torch.from_numpy(np.flatnonzero(best > 0))
            if not len(waiting):
                break
            numbers = torch.arange(start, min(start + self.draws, self.n))
            rows = waiting.repeat_interleave(len(numbers))
            where = rows.to(images.device)
            logits = torch.cat(
                [
                    self._logits(self.reconstruct(images[i], queries[j], k))
                    for i, j, k in zip(
                        where.split(self.batch),
                        rows.split(self.batch),
                        numbers.repeat(len(waiting)).split(self.batch),
                        strict=True,
                    )
                ]
            )
            self.drawn[waiting] += len(numbers)
            ranks = self.selector.rank(logits.cpu().numpy(), labels[where].cpu().numpy())
            for row, rank, candidate in zip(rows.tolist(), ranks, logits, strict=True):
                if rank < best[row]:
                    best[row], released[row] = rank, candidate
        return released

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.classifier(images).float()
        if not torch.isfinite(logits).all():
            raise UserError("the classifier returned NaN or infinite logits: check its weights and the images.")
        return logits


def load_protected(run: Run, classifier: nn.Module, selector: Selector, draws: int = 1) -> ProtectedClassifier:
    """The run's diffusion model before `classifier`, as `config.diffence` says.

    With `diffence.stable` the key comes from the run's seed, so that experiments can be repeated; everybody can compute
    it, so a service passes random bytes of its own to ProtectedClassifier.
    """
    chosen = run.config.diffence
    key = derive_seed("stable", run.seed).to_bytes(8, "little") if chosen.stable else None
    return ProtectedClassifier(classifier, load_reconstructor(run), selector, chosen.n, draws, chosen.batch, key)


def check_images(images: torch.Tensor) -> None:
    """Refuse anything but a floating-point batch [B, 3, H, W] in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise UserError(f"images must have the shape [B, 3, H, W] with B >= 1, not {list(images.shape)}.")
    if not images.is_floating_point():
        raise UserError(f"images must be floating-point numbers in [0, 1], not {images.dtype}: divide bytes by 255.")
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise UserError(
            f"images must lie in [0, 1], not in [{images.min().item():.3g}, {images.max().item():.3g}]: "
            "normalisation belongs inside the classifier."
        )
