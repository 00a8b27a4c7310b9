"""`python <data set>/data_partition.py`: the members, reference images and non-members of a run (paper Section IV-A).

Members and reference images are drawn from the official training set, non-members from the official test set. The three parts
are therefore disjoint. A manifest lists the position of every image in its official set. Where the images are files, it also
lists their names, and one file, images.npy, has the pixels of all three parts (common/data/files.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config import PROTOCOLS, Data
from common.data import DATASETS
from common.data.files import ImageFiles, StoredImages, write_images
from common.errors import UserError
from common.files import atomic_write, read_json, refuse_other_config, sha256, write_json
from common.pair import Pair
from common.run import Run
from common.seeds import derive_seed

PARTS = ("members", "reference", "non_members")


@dataclass(frozen=True)
class Examples:
    """Images, uint8 [n, 3, H, W], and their labels, int64 [n].

    The images are a tensor, or stay on the disk as StoredImages. `read` and `pixels` give tensors in both cases.
    """

    images: Any
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: torch.Tensor | slice) -> "Examples":
        """The examples at `index`: positions, a boolean mask or a slice."""
        return Examples(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Examples":
        """The examples on another device."""
        return Examples(self.images.to(device), self.labels.to(device))

    def read(self, index: torch.Tensor | slice) -> torch.Tensor:
        """The images at `index`, uint8 [b, 3, H, W]."""
        images = self.images[index]
        return images.read() if isinstance(images, StoredImages) else images

    def pixels(self, index: torch.Tensor | slice) -> torch.Tensor:
        """The images at `index` as float32 in [0, 1]."""
        return self.read(index).float() / 255

    def followed_by(self, other: "Examples") -> "Examples":
        """These examples, and then those of another part of the same partition."""
        labels = torch.cat([self.labels, other.labels])
        if isinstance(self.images, StoredImages) and isinstance(other.images, StoredImages):
            return Examples(self.images.followed_by(other.images), labels)
        return Examples(torch.cat([self.read(slice(None)), other.read(slice(None))]), labels)


@dataclass(frozen=True)
class Split:
    """The three parts of a partition. The target trains on `members`. Nothing trains on `non_members`.

    unscored: positions int64 of the members that no protocol scores. None = those of `unscored_members`. The members of a
    shadow model lie in another order.
    """

    members: Examples
    reference: Examples
    non_members: Examples
    unscored: torch.Tensor | None = field(default=None, kw_only=True)

    @property
    def evaluated(self) -> Pair[Examples]:
        """The two parts whose membership is inferred."""
        return Pair(self.members, self.non_members)


@dataclass(frozen=True)
class Pools:
    """Three pools of images of an evaluation, as positions. The same positions hold for `members` and for `non_members`.

    fit: the defender's points, on which scenarios 1 and 2 of Diffence fit their interval.
    known: the attacker's points, whose membership it knows.
    scored: the points on which attacks are measured.
    """

    fit: range
    known: range
    scored: range

    @property
    def used(self) -> range:
        """The positions of all three pools together, which begin at 0 and leave no gap."""
        return range(max(self.fit.stop, self.known.stop, self.scored.stop))


def evaluation_pools(data: Data, protocol: str) -> Pools:
    """The pools of a protocol. A range of positions is a random sample, because the images of a part are in random order.

    Under `clean`, the three pools are disjoint. Under `released`, which the paper's numbers come from, the fit points are the
    known points, and they are scored as well. With data.fit = 2, data.known = 3 and data.scored = 4, the pools are

        clean:     fit 0..1,  known 2..4,  scored 5..8
        released:  fit 0..2,  known 0..2,  scored 0..3
    """
    if protocol == "clean":
        known = range(data.fit, data.fit + data.known)
        return Pools(range(data.fit), known, range(known.stop, known.stop + data.scored))
    known = range(data.known)
    return Pools(known, known, range(data.scored))


def unscored_members(data: Data) -> torch.Tensor:
    """Positions int64 of the members that are not scored under any protocol."""
    unscored = torch.ones(data.members, dtype=torch.bool)
    for protocol in PROTOCOLS:
        unscored[list(evaluation_pools(data, protocol).scored)] = False
    return unscored.nonzero().squeeze(1)


def draw_indices(data: Data, train_size: int, test_size: int) -> dict[str, np.ndarray]:
    """Draw the images of each part at random, seeded by `data.seed`.

    Members and reference images are positions in the official training set of `train_size` images, non-members in the official
    test set of `test_size` images. Raises UserError where a set has too few images.
    """
    if data.members + data.reference > train_size:
        raise UserError(
            f"data.members + data.reference = {data.members + data.reference} exceed the {train_size} official training images."
        )
    if data.non_members > test_size:
        raise UserError(f"data.non_members = {data.non_members} exceed the {test_size} official test images.")
    train = np.random.default_rng(derive_seed("train", data.seed)).permutation(train_size)
    test = np.random.default_rng(derive_seed("test", data.seed)).permutation(test_size)
    return {
        "members": train[: data.members],
        "reference": train[data.members : data.members + data.reference],
        "non_members": test[: data.non_members],
    }


def write_partition(
    run: Run, root: Path, draw: Callable[[Data, int, int], dict[str, np.ndarray]] = draw_indices
) -> dict[str, int]:
    """Write the three parts and then the manifest that makes them valid; returns how many images each part has.

    `root` is the folder of the official files. Those of some data sets are downloaded where they are missing. `draw` chooses
    the images.
    """
    source = DATASETS[run.dataset].load(root)
    data = run.config.data
    indices = draw(data, len(source.train_labels), len(source.test_labels))
    train, test = (source.train_images, source.train_labels), (source.test_images, source.test_labels)
    official = {part: test if part == "non_members" else train for part in PARTS}
    images = {part: official[part][0][index] for part, index in indices.items()}
    labels = {part: official[part][1][index] for part, index in indices.items()}
    counts = {part: len(index) for part, index in indices.items()}
    manifest = {
        "dataset": run.dataset,
        "settings": partition_settings(run),
        "source_md5": source.md5,
        "counts": counts,
        "sha256": _write_parts(run, images, labels),
        "pools": {
            protocol: {name: [pool.start, pool.stop] for name, pool in vars(evaluation_pools(data, protocol)).items()}
            for protocol in PROTOCOLS
        },
        "index": {part: index.tolist() for part, index in indices.items()},
    }
    if isinstance(source.train_images, ImageFiles):
        manifest["files"] = {part: files.names for part, files in images.items() if isinstance(files, ImageFiles)}
        manifest["left_out"] = source.left_out
    write_json(run.partition_dir / "manifest.json", manifest)
    return counts


def load_split(run: Run) -> Split:
    """Read the partition of a run.

    Raises UserError where a file is missing or differs from its digest in the manifest, and where the partition was made under
    other settings.
    """
    remake = run.command("data_partition.py")
    manifest = read_json(run.partition_dir / "manifest.json", remake)
    refuse_other_config(run.partition_dir, manifest.get("settings"), partition_settings(run), f"delete it and run: {remake}")
    for name, digest in manifest["sha256"].items():
        path = _stack_path(run) if name == _stack_path(run).stem else _part_path(run, name)
        if not path.is_file() or sha256(path) != digest:
            raise UserError(f"{path} is missing or damaged. Delete {run.partition_dir} and run: {remake}")
    stack = StoredImages.open(_stack_path(run)) if "files" in manifest else None
    parts, start = {}, 0
    for part in PARTS:
        with np.load(_part_path(run, part)) as arrays:
            labels = torch.from_numpy(arrays["labels"])
            images = torch.from_numpy(arrays["images"]) if stack is None else stack[start : start + len(labels)]
        parts[part] = Examples(images, labels)
        start += len(labels)
    return Split(*(parts[part] for part in PARTS))


def partition_settings(run: Run) -> dict[str, Any]:
    """The settings that a partition depends on, beside the official images. Canaries change labels of shadow models alone."""
    return {name: value for name, value in run.config.as_dict()["data"].items() if name != "canaries"}


def _part_path(run: Run, part: str) -> Path:
    return run.partition_dir / f"{part}.npz"


def _stack_path(run: Run) -> Path:
    return run.partition_dir / "images.npy"


def _write_parts(run: Run, images: Mapping[str, np.ndarray | ImageFiles], labels: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write the images and labels of every part; returns the sha256 of each file, by its name without ending."""
    side, paths = run.config.data.image_size, [_part_path(run, part) for part in PARTS]
    files = [part for part in images.values() if isinstance(part, ImageFiles)]
    if files:
        write_images(_stack_path(run), files, side, DATASETS[run.dataset].image_size(side))
        paths.append(_stack_path(run))
    elif side:
        raise UserError(f"data.image_size is for data sets of image files: leave it out for {run.dataset}.")
    for part in PARTS:
        arrays = {"labels": labels[part]} if files else {"images": images[part], "labels": labels[part]}
        atomic_write(_part_path(run, part), partial(np.savez, **arrays))
    return {path.stem: sha256(path) for path in paths}
