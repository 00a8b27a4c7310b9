"""Data sets of one's own: a folder of images, with a folder for each class (`python -m common.new_dataset`).

Beside the scripts of such a data set lies a file dataset.yaml, which says where its images are and how to read them.
`own_datasets` finds all of these files, so that a data set of one's own is in DATASETS like any other.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from common.data.files import ImageFiles
from common.data.folder import files_in
from common.data.sources import Dataset, Source, is_test_image, source_of_files
from common.errors import UserError

FILE = "dataset.yaml"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SPLITS = ["test", "train"]  # the folders of images that come with a test set
TRAINING = ("train", "training")  # names of a folder that holds folders of classes, in small or large letters


@dataclass(frozen=True)
class Description:
    """The content of a dataset.yaml."""

    images: str  # the folder of the images
    classes: list[str]  # the names of the folders in it, in the order of the labels
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])  # of each channel, for pixels in [0, 1]
    std: list[float] = field(default_factory=lambda: [0.25, 0.25, 0.25])
    size: list[int] = field(default_factory=lambda: [32, 32])  # [H, W] of the images, where they all have one size


@dataclass(frozen=True)
class Damaged:
    """Stands in for a data set whose dataset.yaml is damaged, so that commands about other data sets go on.

    Any use of it raises UserError with this sentence.
    """

    sentence: str

    def __getattr__(self, name: str) -> Any:  # called for what a Damaged has not, such as `load`
        raise UserError(self.sentence)


def own_datasets(root: Path) -> dict[str, Dataset]:
    """The data sets that have a dataset.yaml, by the name of its folder under `root`. One of a damaged file is `Damaged`."""
    return {path.parent.name: _read(path) for path in sorted(root.glob(f"*/{FILE}"))}


def _read(path: Path) -> Any:
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Description), OmegaConf.load(path)))
        assert isinstance(found, Description)
        (r, g, b), (r_std, g_std, b_std), (height, width) = found.mean, found.std, found.size
    except Exception as error:  # of YAML, of OmegaConf, or of a list that is too short
        return Damaged(
            f"{path} is damaged ({type(error).__name__}): delete {path.parent} and run python -m common.new_dataset again."
        )
    load, size, root = partial(image_folder, classes=found.classes), (height, width), Path(found.images)
    return Dataset(load, len(found.classes), (r, g, b), (r_std, g_std, b_std), size, root)


def image_folder(root: Path, classes: list[str]) -> Source:
    """The images root/CLASS/*, whose label is the position of CLASS in `classes`.

    With folders root/train/CLASS/* and root/test/CLASS/* the images come with a test set. Else `is_test_image` makes one of
    half of them. Raises UserError where the classes under `root` are others.
    """
    class_of = list_images(root)
    found = sorted(set(class_of.values()))
    if found != sorted(classes):
        raise UserError(
            f"{root} has the classes {', '.join(found) or 'none'} and not {', '.join(classes)}: put its folders back, or make "
            "the data set again with python -m common.new_dataset."
        )
    names = [name for name in class_of if name.lower().endswith(SUFFIXES)]
    labels = np.array([classes.index(class_of[name]) for name in names], dtype=np.int64)
    has_test_set = _has_test_set(root)
    is_test = np.array([name.startswith("test/") if has_test_set else is_test_image(name) for name in names], dtype=bool)
    source = source_of_files(ImageFiles(root, names), labels, is_test)
    others = [name for name in class_of if not name.lower().endswith(SUFFIXES)]
    source.left_out[f"name does not end in {' '.join(SUFFIXES)}"] = others
    return source


def list_images(root: Path) -> dict[str, str]:
    """The class of every file in the folders of the classes, by its path relative to `root`, in alphabetical order.

    Hidden files are ignored. Raises UserError where `root` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name the folder that has a folder of images for each class.")
    level = 1 if _has_test_set(root) else 0  # of the folders that are classes
    paths = [path.relative_to(root) for path in files_in(root)]
    visible = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    return {path.as_posix(): path.parts[level] for path in visible if len(path.parts) > level + 1}


def _has_test_set(root: Path) -> bool:
    """Whether the folders in `root` are `train` and `test`, with the folders of the classes in each of them.

    Raises UserError where a training set lies beside other folders, as `train` beside `val`: they would be taken for classes.
    """
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    training = [name for name in folders if name.lower() in TRAINING and any(path.is_dir() for path in (root / name).iterdir())]
    if training and folders != SPLITS:
        raise UserError(
            f"{root} has a training set in {training[0]}, and its folders are {', '.join(folders)}: name two folders, `train` "
            f"and `test`, and no other, or name the folder {root / training[0]}, of which half becomes a test set."
        )
    return bool(training)
