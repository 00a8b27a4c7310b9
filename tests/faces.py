"""Small generated JPEG trees in the official layouts of CelebA and UTKFace, and as a folder for each class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

ATTRIBUTE_NAMES = ["Bald", "Heavy_Makeup", "Mouth_Slightly_Open", "Male", "Smiling"]  # five of the forty
SPLIT_OF = {"train": 0, "valid": 1, "test": 2}
COUNTS = {"train": 40, "valid": 3, "test": 24}  # images of a small CelebA


def colour(label: int) -> np.ndarray:
    """The colour of a class, by the bits of its label, in grey levels of 0..255."""
    return np.array([200 if label >> bit & 1 else 60 for bit in range(3)])


def label_in_pixels(pixels: np.ndarray) -> int:
    """The class whose colour an image [3, H, W] has."""
    return sum(1 << bit for bit in range(3) if pixels[bit].mean() > 130)


def save_image(path: Path, label: int, seed: int, size: tuple[int, int] = (64, 64)) -> None:
    """A JPEG file of H x W = `size` pixels in the colour of its class, with smooth noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 25, (8, 8, 3))
    small = np.clip(colour(label) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(small).resize(size[::-1], Image.Resampling.BILINEAR).save(path, quality=90)


def make_celeba(root: Path, monkeypatch: pytest.MonkeyPatch, counts: dict[str, int], size: tuple[int, int]) -> Path:
    """root/celeba with so many images of each split, whose .txt files torchvision expects. Image i has class i % 8."""
    folder = root / "celeba"
    splits = [split for split, count in counts.items() for _ in range(count)]
    names = [f"{number + 1:06d}.jpg" for number in range(len(splits))]
    for number, name in enumerate(names):
        save_image(folder / "img_align_celeba" / name, number % 8, number, size)

    def attributes(number: int) -> str:
        bits = {"Heavy_Makeup": 1, "Mouth_Slightly_Open": 2, "Smiling": 4}
        return " ".join(f"{1 if number % 8 & bits.get(name, number) else -1:2d}" for name in ATTRIBUTE_NAMES)

    def table(header: str, row: str) -> str:
        return f"{len(names)}\n{header}\n" + "".join(f"{name} {row}\n" for name in names)

    texts = {
        "list_attr_celeba.txt": f"{len(names)}\n{' '.join(ATTRIBUTE_NAMES)}\n"
        + "".join(f"{name} {attributes(number)}\n" for number, name in enumerate(names)),
        "list_eval_partition.txt": "".join(f"{name} {SPLIT_OF[split]}\n" for name, split in zip(names, splits, strict=True)),
        "identity_CelebA.txt": "".join(f"{name} 1\n" for name in names),
        "list_bbox_celeba.txt": table("image_id x_1 y_1 width height", "1 2 3 4"),
        "list_landmarks_align_celeba.txt": table("lefteye_x lefteye_y", "1 2"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    expect(folder, monkeypatch)
    return root


def expect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell torchvision that the .txt files in `folder` are the official ones."""
    dataset: Any = torchvision.datasets.CelebA
    texts = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.txt"))}
    monkeypatch.setattr(dataset, "file_list", [("", md5, name) for name, md5 in texts.items()])


def make_utkface(root: Path, count: int, size: tuple[int, int] = (64, 64)) -> Path:
    """root/UTKFace with `count` images; image i has race i % 5."""
    for number in range(count):
        race = number % 5
        name = f"{1 + number % 90}_{number % 2}_{race}_2017{number:013d}.jpg.chip.jpg"
        save_image(root / "UTKFace" / name, race, number, size)
    return root


def make_folders(root: Path, classes: Sequence[str], count: int, size: tuple[int, int] = (64, 64)) -> Path:
    """root/CLASS/i.jpg, `count` images of each class."""
    for label, name in enumerate(classes):
        for number in range(count):
            save_image(root / name / f"{number:04d}.jpg", label, 1000 * label + number, size)
    return root
