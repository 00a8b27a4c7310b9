"""Folders of image files, read one by one, so that memory does not grow with their number."""

from pathlib import Path

import torch
from PIL import Image

from common.data.files import pixels_of
from common.errors import UserError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder and in the folders inside it, in the order of their paths. Raises UserError without any."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one that holds image files.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise UserError(f"{folder} holds no image files ({', '.join(sorted(SUFFIXES))}).")
    return files


def class_names(folder: Path) -> list[str]:
    """The names of the folders in a folder, in alphabetical order. Class i has the images of folder i.

    A class without images has an empty folder. Raises UserError where there is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one that holds a folder of images for each class.")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{folder} holds no folders: put the images of each class into a folder of its own.")
    return names


def read_image(path: Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """An image file as float32 [3, H, W] in [0, 1].

    `size` is (H, W), see `pixels_of`. Raises UserError for a file that is damaged or no image.
    """
    try:
        pixels = pixels_of(path.read_bytes(), size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is damaged, or is no image.") from error
    return torch.from_numpy(pixels).float() / 255
