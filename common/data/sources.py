"""Official train and test images through torchvision's data sets: what is already there is used, what is missing is fetched."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError


@dataclass(frozen=True)
class Source:
    """Official images uint8 [n, 3, 32, 32] and labels int64 [n] of both splits, and the md5 of the files they came from."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    md5: dict[str, str]


def cifar10(root: Path) -> Source:
    """CIFAR-10: 50,000 + 10,000 images, 10 classes."""
    return _cifar("CIFAR10", root)


def cifar100(root: Path) -> Source:
    """CIFAR-100: 50,000 + 10,000 images, 100 classes."""
    return _cifar("CIFAR100", root)


def svhn(root: Path) -> Source:
    """SVHN: 73,257 + 26,032 crops; torchvision turns the files' label 10 into digit 0."""
    from torchvision.datasets import SVHN

    def load(place: Path, download: bool) -> Source:
        train, test = (SVHN(str(place), split=split, download=download) for split in ("train", "test"))
        md5 = {entry[1]: entry[2] for entry in (SVHN.split_list["train"], SVHN.split_list["test"])}
        return Source(train.data, train.labels.astype(np.int64), test.data, test.labels.astype(np.int64), md5)

    return _find_or_fetch("SVHN", ["train_32x32.mat", "test_32x32.mat"], root, load)


def _cifar(name: str, root: Path) -> Source:
    import torchvision.datasets

    dataset: Any = getattr(torchvision.datasets, name)

    def load(place: Path, download: bool) -> Source:
        train, test = (dataset(str(place), train=train, download=download) for train in (True, False))
        images = [np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)) for part in (train, test)]
        labels = [np.asarray(part.targets, dtype=np.int64) for part in (train, test)]
        return Source(images[0], labels[0], images[1], labels[1], dict(dataset.train_list + dataset.test_list))

    return _find_or_fetch(name, [dataset.base_folder], root, load, archive=dataset.filename)


def _find_or_fetch(
    name: str, entries: list[str], root: Path, load: Callable[[Path, bool], Source], archive: str | None = None
) -> Source:
    """Load what lies under `root`; where nothing of it does, download beside it and move it in place when complete.

    The official archive counts as downloaded where it lies under `root`.
    """
    present = [entry for entry in entries if (root / entry).exists()]
    if present:
        try:
            return load(root, False)
        except Exception as error:  # torchvision: RuntimeError on a wrong md5, OSError or ValueError on a torn file
            raise UserError(
                f"the {name} files under {root} ({', '.join(present)}) are incomplete or damaged: replace them with the "
                "official ones, or delete them and run this again to download them."
            ) from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as place:
            if archive and (root / archive).is_file():
                shutil.copy(root / archive, place)
            loaded = load(Path(place), True)
            for entry in entries:
                os.replace(Path(place) / entry, root / entry)
    except Exception as error:  # urllib and torchvision raise many kinds, a folder that is not ours an OSError
        raise UserError(
            f"{name} is not under {root} and could not be downloaded ({type(error).__name__}): put the official files "
            f"({', '.join(entries)}) there, or name their folder with --root DIR or DIFFENCE_DATA."
        ) from error
    return loaded


def array_md5(array: np.ndarray) -> str:
    """The md5 of an array's bytes, for sources that are generated and have no official file."""
    return hashlib.md5(np.ascontiguousarray(array).tobytes()).hexdigest()
