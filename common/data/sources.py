"""What a data set is, and the official images of CIFAR-10, CIFAR-100 and SVHN, read and downloaded by torchvision."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.data.files import ImageFiles, usable
from common.errors import UserError
from common.seeds import derive_seed


@dataclass(frozen=True)
class Source:
    """The official images of a data set: uint8 [n, 3, H, W] or image files, with labels int64 [n].

    md5: the digests of the files that the images were read from, by file name.
    left_out: the names of image files that are no part of the data set, by reason.
    """

    train_images: Any  # an array, or ImageFiles
    train_labels: np.ndarray
    test_images: Any
    test_labels: np.ndarray
    md5: dict[str, str]
    left_out: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A data set of RGB images.

    load: reads the official files under the folder that it is called with. Some loaders download them where they are missing.
    classes: the number of classes.
    mean, std: of each channel, for pixels in [0, 1].
    size: (H, W) of the official images.
    root: the folder of the images, where the data set knows it.
    """

    load: Callable[[Path], Source]
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int] = (32, 32)
    root: Path | None = None

    def image_size(self, side: int) -> tuple[int, int]:
        """(H, W) of the images of a partition with data.image_size = `side`, which is 0 for their official size."""
        return (side, side) if side else self.size


def cifar10(root: Path) -> Source:
    """CIFAR-10: 50,000 + 10,000 images, 10 classes."""
    return _cifar("CIFAR10", root)


def cifar100(root: Path) -> Source:
    """CIFAR-100: 50,000 + 10,000 images, 100 classes."""
    return _cifar("CIFAR100", root)


def svhn(root: Path) -> Source:
    """SVHN: 73,257 + 26,032 images, 10 classes. The files have label 10 for the digit 0, which torchvision changes to 0."""
    from torchvision.datasets import SVHN

    def load(folder: Path, download: bool) -> Source:
        train, test = (SVHN(str(folder), split=split, download=download) for split in ("train", "test"))
        md5 = {entry[1]: entry[2] for entry in (SVHN.split_list["train"], SVHN.split_list["test"])}
        return Source(train.data, train.labels.astype(np.int64), test.data, test.labels.astype(np.int64), md5)

    return _load_or_download("SVHN", ["train_32x32.mat", "test_32x32.mat"], root, load)


def _cifar(name: str, root: Path) -> Source:
    import torchvision.datasets

    dataset: Any = getattr(torchvision.datasets, name)

    def load(folder: Path, download: bool) -> Source:
        train, test = (dataset(str(folder), train=train, download=download) for train in (True, False))
        images = [np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)) for part in (train, test)]
        labels = [np.asarray(part.targets, dtype=np.int64) for part in (train, test)]
        return Source(images[0], labels[0], images[1], labels[1], dict(dataset.train_list + dataset.test_list))

    return _load_or_download(name, [dataset.base_folder], root, load, archive=dataset.filename)


def _load_or_download(
    name: str, entries: list[str], root: Path, load: Callable[[Path, bool], Source], archive: str | None = None
) -> Source:
    """Load the official files under `root`. If there are none, download them and move them to `root`.

    load: reads the files of a folder; with its second argument True, it downloads them into that folder first.
    entries: the names of the official files, or of the folder that holds them.
    archive: the name of the official archive. If it lies under `root`, it is used instead of a download.

    The download goes to a temporary folder, so that an interrupted one leaves nothing under `root`. Raises UserError where only
    some of the files are there, where one is damaged, or where the download fails.
    """
    present = [entry for entry in entries if (root / entry).exists()]
    if present:
        try:
            return load(root, False)
        except Exception as error:  # torchvision: RuntimeError for a wrong md5, OSError or ValueError for a damaged file
            raise UserError(
                f"the {name} files under {root} ({', '.join(present)}) are incomplete or damaged: replace them with the "
                "official ones, or delete them and run this again to download them."
            ) from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            if archive and (root / archive).is_file():
                shutil.copy(root / archive, folder)
            source = load(Path(folder), True)
            for entry in entries:
                os.replace(Path(folder) / entry, root / entry)
    except Exception as error:  # urllib and torchvision raise many types; a folder without permission raises OSError
        raise UserError(
            f"{name} is not under {root} and could not be downloaded ({type(error).__name__}): put the official files "
            f"({', '.join(entries)}) there, or name their folder with --root DIR or DIFFENCE_DATA."
        ) from error
    return source


def source_of_files(files: ImageFiles, labels: np.ndarray, is_test: np.ndarray) -> Source:
    """The source of image files with labels int64 [n], of which `is_test` bool [n] are test images.

    Every file is decoded once, to leave out those that are unusable (`usable`).
    """
    keep, left_out, digest = usable(files)
    train, test = keep[~is_test[keep]], keep[is_test[keep]]
    return Source(files[train], labels[train], files[test], labels[test], {"images": digest}, left_out)


def is_test_image(name: str) -> bool:
    """Whether an image file is a test image where there is no official test set. Half of all names are, at random.

    It depends on the name alone, so that adding files does not move others from one set to the other.
    """
    return derive_seed("test image", name) % 2 == 1


def array_md5(array: np.ndarray) -> str:
    """The md5 of an array's bytes, hexadecimal. It stands for the digest of a file where images are generated."""
    return hashlib.md5(np.ascontiguousarray(array).tobytes()).hexdigest()
