"""A classifier that is protected by Diffence, as one module (paper Fig. 2): any PyTorch classifier, reconstructor, selector."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.diffence.checks import check_images, check_logits, check_no_probabilities
from common.diffence.classifiers import in_its_type
from common.diffence.ddpm import load_reconstructor
from common.diffence.reconstruct import Reconstructor
from common.diffence.saved import read_parts, write_parts
from common.diffence.select import CandidateLogits, Selector, reorder
from common.errors import UserError
from common.run import Run, pick_device
from common.seeds import derive_seed, image_keys

NUMBERING = threading.Lock()  # not an attribute, because a module with a lock cannot be copied


class ProtectedClassifier(nn.Module):
    """A classifier behind Diffence: images [B, 3, H, W] in [0, 1] -> logits [B, C].

    It works with any batch size from 1, needs no labels, and runs on the CPU and on a GPU. The classifier gets images of the
    type of its weights. The released logits are float32.

    n: the most candidates that are drawn for an image.
    draws: how many candidates are drawn at a time. An image gets no further candidates once one of them qualifies. For example,
        with n = 30 and draws = 4 an image whose first qualifying candidate is number 5 gets numbers 0 to 3, then 4 to 7. The
        answer is the same for every `draws`: candidate 5, which drawing all 30 and then selecting would release too.
    batch: the most candidates that are reconstructed and classified together.
    key: 1 to 64 bytes for stable answers (`diffence.stable` of a config); None for new noise at every query.
    size: (H, W) of the images, others being refused; None = any.
    classes: the names of the classes, if they have any.

    Threads may share a module: no two queries get the same number.

    Without a key each image is a new query with new noise, unless the caller passes `queries`. The noise comes from the query
    and the seed of the reconstructor. With a key the noise comes from a keyed hash of the image. An image then has the same
    answer, up to rounding, in any batch, at any time and after a restart. The distribution of the answer is the same as without
    a key. The hash compares images at 8 bits a channel: a change below half a grey level gets the same noise, and a change of
    one grey level in one pixel gets fresh noise. A service must keep its key secret, or its seed if it has no key, because
    whoever knows it can compute the noise.

    The time of an answer shows how many candidates were drawn, and members need other numbers of candidates than non-members
    (common/experiments/repeated_queries.py measures this). A service whose time can be measured draws all candidates at once,
    with `draws` = `n`.

    Raises UserError for an `n`, `draws` or `batch` below 1 and for a key of another length.
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
        size: tuple[int, int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("n", n), ("draws", draws), ("batch", batch)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        if key is not None and not isinstance(key, bytes):
            raise UserError(f"the key must be bytes, as secrets.token_bytes(32) makes them, not of type {type(key).__name__}.")
        if key is not None and not 1 <= len(key) <= 64:
            raise UserError(f"the key of a stable ProtectedClassifier must have 1 to 64 bytes, not {len(key)}.")
        self.classifier, self.reconstruct, self.selector = classifier, reconstruct, selector
        self.n, self.draws, self.batch, self.key = n, draws, batch, key
        self.size, self.classes = size, None if classes is None else list(classes)
        self.called = False  # only the logits of the first call are checked for being probabilities
        self.served = 0  # queries that were numbered so far; the next query has this number
        self.drawn = torch.zeros(0, dtype=torch.int64)  # [B], candidates drawn for each image of the last call
        self.eval()
        self.layers = [module for module in self.modules() if not module.training]  # a list, as walking the tree is slow

    def train(self, mode: bool = True) -> "ProtectedClassifier":
        """Stay in evaluation mode. Training mode would turn on dropout and let queries change BatchNorm's statistics.

        Where the classifier itself, or a layer of it, was switched to training mode, the next call switches it back.
        """
        return super().train(False)

    @torch.inference_mode()
    def forward(self, images: torch.Tensor, queries: torch.Tensor | None = None) -> torch.Tensor:
        """The released logits [B, C]. `queries` int64 [B] name the noise of each image; by default they are numbered.

        Raises UserError for other images than [B, 3, H, W] in [0, 1], for another number of queries than images, and where the
        classifier returns NaN or infinite logits or, at the first call, probabilities.
        """
        self._prepare(images)
        if queries is None and self.key is not None:
            queries = image_keys(images, self.key)
        elif queries is None:
            with NUMBERING:
                queries = torch.arange(self.served, self.served + len(images))
                self.served += len(images)
        elif len(queries) != len(images):
            raise UserError(f"{len(images)} images need as many queries, not {len(queries)}.")
        original = self.logits(images)
        release = self._release_average if self.selector.scenario == "average" else self._release_first
        return release(images, queries, original)

    @torch.inference_mode()
    def all_logits(self, images: torch.Tensor, queries: torch.Tensor) -> CandidateLogits:
        """The classifier's logits on images [B, 3, H, W] and on all n candidates of each, on which an interval is fitted."""
        self._prepare(images)
        return CandidateLogits(self.logits(images).cpu().numpy(), self._all_candidates(images, queries))

    def save_pretrained(self, folder: str | Path, with_classifier: bool = True) -> None:
        """Write everything but the key into a folder, from which `from_pretrained` gives the same answers after a restart.

        Without `with_classifier`, the classifier is left out, for one that torch.export cannot follow. Raises UserError for a
        module whose `size` is not set, because a program is exported for images of one size.
        """
        if self.size is None and with_classifier:
            raise UserError("a classifier is saved for images of one size: pass size=(H, W) when you protect it.")
        settings = {"n": self.n, "draws": self.draws, "batch": self.batch, "size": self.size, "classes": self.classes}
        classifier = self.classifier if with_classifier else None
        settings["stable"] = self.key is not None
        write_parts(Path(folder), classifier, self.reconstruct, self.selector, settings)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        key: bytes | None = None,
        classifier: str | Path | nn.Module | None = None,
        unet: Any = None,
        device: str = "auto",
    ) -> "ProtectedClassifier":
        """What `save_pretrained` wrote.

        key: the one that the saved module had. Without it a module that had one is refused. classifier, unet: in place of what
        is stored, or for what was left out. device: auto, cpu or cuda.
        """
        parts = read_parts(Path(folder), classifier, unet, pick_device(device))
        settings = dict(parts[-1])
        if settings.pop("stable") != (key is not None):
            wanted = "pass the same one as key" if key is None else "leave it out"
            raise UserError(f"{folder} was saved with{'' if key is None else 'out'} a key for stable answers: {wanted}.")
        size = settings.pop("size")
        return cls(*parts[:3], **settings, key=key, size=None if size is None else tuple(size))

    def _prepare(self, images: torch.Tensor) -> None:
        """Raise UserError for other images than [B, 3, H, W] in [0, 1], and for those of another size than the module's.

        Then see to it that all layers are in evaluation mode.
        """
        check_images(images)
        if self.size is not None and images.shape[-2:] != self.size:
            raise UserError(f"images must be {self.size[0]} x {self.size[1]}, not {images.shape[-2]} x {images.shape[-1]}.")
        if any(layer.training for layer in self.layers):
            self.eval()

    def _release_average(self, images: torch.Tensor, queries: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """The average over all n candidates."""
        released = self.selector.release(self._all_candidates(images, queries), original.cpu().numpy())
        self.drawn = torch.full((len(images),), self.n)
        return torch.from_numpy(released).to(original)

    def _all_candidates(self, images: torch.Tensor, queries: torch.Tensor) -> np.ndarray:
        """The logits of all n candidates of each image, float32 [B, n, C]."""
        rows = torch.arange(len(images)).repeat_interleave(self.n)
        numbers = torch.arange(self.n).repeat(len(images))
        return self._candidate_logits(images, queries, rows, numbers).view(len(images), self.n, -1).cpu().numpy()

    def _release_first(self, images: torch.Tensor, queries: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """The first candidate that qualifies, else the nearest that keeps the label, else the selector's fallback.

        Each round draws the next `draws` candidates of every image that waits, which is one without a qualifying candidate.
        """
        labels = original.argmax(1)
        released = original.clone()
        best = np.full(len(images), np.inf)  # the smallest distance among an image's candidates so far; 0 qualifies
        nearest = np.full(len(images), np.inf)  # the same among those that lose the label, for the fallback
        spare = original.clone()  # the nearest of these
        drawn = torch.zeros(len(images), dtype=torch.int64)
        reorders = self.selector.fallback == "reorder"
        for start in range(0, self.n, self.draws):
            waiting = torch.from_numpy(np.flatnonzero(best > 0))
            if not len(waiting):
                break
            numbers = torch.arange(start, min(start + self.draws, self.n))
            rows = waiting.repeat_interleave(len(numbers))
            logits = self._candidate_logits(images, queries, rows, numbers.repeat(len(waiting)))
            array = logits.cpu().numpy()
            distances = self.selector.distance(array, labels[rows.to(labels.device)].cpu().numpy())
            outside = self.selector.outside(array) if reorders else np.full(len(array), np.inf)
            for row, distance, any_label, candidate in zip(rows.tolist(), distances, outside, logits, strict=True):
                if distance < best[row]:
                    best[row], released[row] = distance, candidate
                if any_label < nearest[row]:
                    nearest[row], spare[row] = any_label, candidate
            drawn[waiting] += len(numbers)
        self.drawn = drawn
        unmatched = torch.from_numpy(np.isinf(best)).to(original.device)
        if reorders and unmatched.any():
            reordered = reorder(spare[unmatched].cpu().numpy(), original[unmatched].cpu().numpy())
            released[unmatched] = torch.from_numpy(reordered).to(original)
        return released

    def _candidate_logits(
        self, images: torch.Tensor, queries: torch.Tensor, rows: torch.Tensor, numbers: torch.Tensor
    ) -> torch.Tensor:
        """Logits [M, C] of M candidates, in batches: candidate `numbers[i]` of the image at `rows[i]`. Both int64 [M], CPU."""
        parts = []
        for row, number in zip(rows.split(self.batch), numbers.split(self.batch), strict=True):
            candidates = self.reconstruct(images[row.to(images.device)], queries[row], number)
            parts.append(self.logits(candidates))
        return torch.cat(parts)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The classifier's own logits float32 [B, C] on images [B, 3, H, W], checked to be finite."""
        logits = self.classifier(in_its_type(images, self.classifier))
        check_logits(logits, len(images))
        if not self.called:
            check_no_probabilities(logits)
            self.called = True
        logits = logits.float()
        if not torch.isfinite(logits).all():
            raise UserError("the classifier returned NaN or infinite logits: check its weights and the images.")
        return logits


def load_protected(run: Run, classifier: nn.Module, selector: Selector, draws: int = 1) -> ProtectedClassifier:
    """Put the run's diffusion model before `classifier`, with the settings of `config.diffence`.

    With `diffence.stable` the key comes from the run's seed, so that experiments can be repeated. Everybody can compute this
    key. A service therefore passes random bytes of its own to ProtectedClassifier.
    """
    config = run.config.diffence
    key = derive_seed("stable", run.seed).to_bytes(8, "little") if config.stable else None
    return ProtectedClassifier(classifier, load_reconstructor(run), selector, config.n, draws, config.batch, key)
