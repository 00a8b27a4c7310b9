"""`python <data set>/data_partition.py`: members, reference and non-members (paper Section IV-A), drawn from a seed.

Members and reference images come from the official training set, non-members from the official test set, so the three are
disjoint by construction. A manifest names every image of every part by its position in the official set.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config import PROTOCOLS, Data
from common.data import DATASETS
from common.errors import UserError
from common.files import atomic_write, read_json, refuse_other_config, sha256, write_json
from common.pair import Pair
from common.run import Run
from common.seeds import derive_seed

PARTS = ("members", "reference", "non_members")


@dataclass(frozen=True)
class Examples:
    """Images uint8 [n, 3, 32, 32] and labels int64 [n] as tensors."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: torch.Tensor | slice) -> "Examples":
        return Examples(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Examples":
        return Examples(self.images.to(device), self.labels.to(device))

    def pixels(self, index: torch.Tensor | slice) -> torch.Tensor:
        """The images at `index` as float32 in [0, 1]."""
        return self.images[index].float() / 255


@dataclass(frozen=True)
class Split:
    """One partition: the target trains on `members`; nothing trains on `non_members`, the official test images."""

    members: Examples
    reference: Examples
    non_members: Examples

    @property
    def evaluated(self) -> Pair[Examples]:
        """The two parts whose membership is attacked."""
        return Pair(self.members, self.non_members)


@dataclass(frozen=True)
class Pools:
    """Which images play which part in an evaluation: positions in `members` and, alike, in `non_members`.

    clean:    the defender's interval-fit points, the attacker's known points and the scored points are disjoint.
    released: fit and known are the same points, and they are scored as well (what the paper's numbers come from).
    """

    fit: range
    known: range
    scored: range

    @property
    def used(self) -> range:
        """All of them: they lie side by side at the front of each part."""
        return range(max(self.fit.stop, self.known.stop, self.scored.stop))


def evaluation_pools(data: Data, protocol: str) -> Pools:
    """The evaluation pools of a protocol; the parts are in random order already, so ranges are random draws."""
    if protocol == "clean":
        known = range(data.fit, data.fit + data.known)
        return Pools(range(data.fit), known, range(known.stop, known.stop + data.scored))
    known = range(data.known)
    return Pools(known, known, range(data.scored))


def draw(data: Data, train_size: int, test_size: int) -> dict[str, np.ndarray]:
    """Positions in the official training set (members, reference) and test set (non-members)."""
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


def write_partition(run: Run, root: Path) -> dict[str, int]:
    """Find or fetch the data, write the three parts and, last, the manifest that makes them valid; returns counts."""
    source = DATASETS[run.dataset].load(root)
    data = run.config.data
    index = draw(data, len(source.train_labels), len(source.test_labels))
    digests = {}
    for part in PARTS:
        images, labels = (
            (source.test_images, source.test_labels) if part == "non_members" else (source.train_images, source.train_labels)
        )
        content = {"images": images[index[part]], "labels": labels[index[part]]}
        path = run.partition_dir / f"{part}.npz"
        atomic_write(path, lambda file, content=content: np.savez(file, **content))  # type: ignore[misc]
        digests[part] = sha256(path)
    counts = {part: len(index[part]) for part in PARTS}
    manifest = {
        "dataset": run.dataset,
        "settings": partition_settings(run),
        "source_md5": source.md5,
        "counts": counts,
        "sha256": digests,
        "pools": {
            protocol: {name: [pool.start, pool.stop] for name, pool in vars(evaluation_pools(data, protocol)).items()}
            for protocol in PROTOCOLS
        },
        "index": {part: index[part].tolist() for part in PARTS},
    }
    write_json(run.partition_dir / "manifest.json", manifest)
    return counts


def load_split(run: Run) -> Split:
    """Read the partition of a run, checked against its manifest and the run's settings; UserError says what to do."""
    remake = run.command("data_partition.py")
    manifest = read_json(run.partition_dir / "manifest.json", remake)
    refuse_other_config(run.partition_dir, manifest.get("settings"), partition_settings(run), f"delete it and run: {remake}")
    parts = {}
    for part in PARTS:
        path = run.partition_dir / f"{part}.npz"
        if not path.is_file() or sha256(path) != manifest["sha256"][part]:
            raise UserError(f"{path} is missing or damaged. Delete {run.partition_dir} and run: {remake}")
        with np.load(path) as arrays:
            parts[part] = Examples(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))
    return Split(**parts)


def partition_settings(run: Run) -> dict[str, Any]:
    """What a partition depends on, beside the source."""
    return dict(vars(run.config.data))
