"""The classifier's answers to the images of a side and to all their candidates, stored so that a killed run continues."""

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.diffence.candidates import query_ids
from common.diffence.protect import ProtectedClassifier
from common.diffence.select import CandidateLogits
from common.files import cached_arrays, read_arrays, sha256, write_arrays
from common.protect.plug import random_image, read_files

SHARD = 16  # images whose logits are one file


@dataclass(frozen=True)
class LabelledFiles:
    """Image files and their classes."""

    files: list[Path]
    labels: np.ndarray


@dataclass(frozen=True)
class Answers:
    """The classifier's logits on images [n, C] and on their candidates [n, N, C], with the labels [n]."""

    original: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray

    def take(self, rows: slice) -> "Answers":
        """Those of some images."""
        return Answers(self.original[rows], self.candidates[rows], self.labels[rows])

    @property
    def logits(self) -> CandidateLogits:
        """Without the labels, as an interval is fitted."""
        return CandidateLogits(self.original, self.candidates)


def collect(
    protected: ProtectedClassifier, side: LabelledFiles, name: str, options: argparse.Namespace, device: torch.device
) -> Answers:
    """The answers of a side. They are stored in files of SHARD images, and those that are stored already are read."""
    reconstruct: Any = protected.reconstruct
    classes = len(protected.classes or ())
    file = Path(options.classifier)
    program = sha256(file) if file.is_file() else None  # its constants are not among the parameters
    process = [reconstruct.prediction, reconstruct.alpha_bar[options.t]]
    settings = {
        "classifier": [options.classifier, fingerprint(protected.classifier), program],
        "unet": [options.unet, fingerprint(reconstruct), *process, options.t, options.seed, list(reconstruct.model.size or ())],
        "answers": digest_of_answers(protected, options.out / "logits" / "one_image.npz", device),
        "n": options.n,
        "size": list(protected.size or ()),
    }

    def arrays(start: int) -> dict[str, np.ndarray]:
        files = side.files[start : start + SHARD]
        states = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]

        def compute() -> dict[str, np.ndarray]:
            positions, images = read_files(files, protected.size)
            labels = side.labels[start : start + SHARD][positions]
            if not positions:
                none = np.zeros((0, protected.n, classes), np.float32)
                return {"original": none[:, 0], "candidates": none, "labels": labels}
            logits = protected.all_logits(images.to(device), query_ids(name, [start + position for position in positions]))
            return {**vars(logits), "labels": labels}

        return cached_arrays(options.out / "logits" / f"{name}_{start:06d}.npz", {**settings, "files": states}, compute)

    def shards() -> Iterator[dict[str, np.ndarray]]:
        with tqdm(total=len(side.files), desc=name.replace("_", "-"), unit="image", smoothing=0.05, disable=None) as progress:
            for start in range(0, len(side.files), SHARD):
                yield arrays(start)
                progress.update(len(side.files[start : start + SHARD]))

    parts = list(shards())
    return Answers(**{key: np.concatenate([part[key] for part in parts]) for key in ("original", "candidates", "labels")})


def fingerprint(module: nn.Module) -> str:
    """A digest of all parameters and buffers, hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()


def digest_of_answers(protected: ProtectedClassifier, path: Path, device: torch.device) -> str:
    """A digest of the classifier's logits on one image, and of one reconstruction of it. It shows where code was edited.

    Answers within 1% of those that are stored at `path` count as equal and have the digest of these, because another number of
    threads rounds otherwise. To round them instead would not do: of so many numbers, some always lie at an edge.
    """
    image, first = random_image(protected.size or (0, 0)).to(device), torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        answers = {"logits": protected.logits(image), "reconstruction": protected.reconstruct(image, first, first)}
    arrays = {name: answer.cpu().numpy() for name, answer in answers.items()}
    stored = read_arrays(path)
    if stored is None or not all(is_near(array, stored[1][name]) for name, array in arrays.items()):
        write_arrays(path, {}, **arrays)
    return sha256(path)


def is_near(array: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays have the same shape and differ by at most 1% of the largest number."""
    return array.shape == other.shape and np.allclose(array, other, rtol=0, atol=0.01 * np.abs(other).max())
