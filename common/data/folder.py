"""Folders of image files, read one by one, so that memory does not grow with their number."""

from pathlib import Path

import torch
from PIL import Image

from common.data.files import pixels_of
from common.errors import UserError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def files_in(folder: Path) -> list[Path]:
    """The files in a folder and in the folders inside it, in the order of their paths.

    Raises UserError for a link to a folder: it is not followed, and its class would seem to be empty.
    """
    paths = sorted(folder.rglob("*"))
    link = next((path for path in paths if path.is_symlink() and path.is_dir()), None)
    if link:
        raise UserError(
            f"{link} is a link to a folder, which is not followed: put the folder itself there, or a folder of links to files."
        )
    return [path for path in paths if path.is_file()]


def list_images(folder: Path) -> list[Path]:
    """The image files of `files_in`. Raises UserError without any."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one that holds image files.")
    files = [path for path in files_in(folder) if path.suffix.lower() in SUFFIXES]
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

    `size` is (H, W), see `pixels_of`. Raises UserError for a file that is damaged or no image, or has pixels of 32 bits.
    """
    try:
        pixels = pixels_of(path.read_bytes(), size)
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is damaged, or is no image.") from error
    return torch.from_numpy(pixels).float() / 255
