"""Data sets of image files: decoded one at a time, and kept in an array on the disk of which only what is asked for is read.

The memory that a data set needs therefore does not grow with the number of its images. `data_partition.py` decodes the images
that it draws and writes their pixels into one uncompressed .npy file. Training and attacks read the images that they ask for
from it through a memory map, and no epoch decodes them again.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from common.errors import UserError
from common.files import atomic_write

THREADS = 4  # that decode; Pillow lets other threads run meanwhile
T = TypeVar("T")


@dataclass(frozen=True)
class ImageFiles:
    """Image files under the folder `root`, which are decoded when they are asked for.

    names: their paths relative to `root`. `files[index]` are the files at an array of positions.
    """

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: np.ndarray) -> "ImageFiles":
        return ImageFiles(self.root, [self.names[position] for position in index])

    def decode(self, side: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """The images one by one, uint8 [3, H, W], with a progress bar.

        `side` is data.image_size: 0 keeps the size of each image, and another value makes squares of that side (`pixels_of`).
        `size` is the (H, W) that images have then. Raises UserError, which names the file, where an image cannot be read or has
        another size.
        """
        square = (side, side) if side else None
        for name, pixels in zip(self.names, self._each(lambda content: pixels_of(content, square), "images"), strict=True):
            if isinstance(pixels, UserError):
                raise UserError(f"{self.root / name} {pixels}")
            if isinstance(pixels, Exception):
                raise UserError(f"{self.root / name} cannot be read as an image: put the original there, or delete it.")
            if pixels.shape[1:] != size:
                height, width = pixels.shape[1:]
                raise UserError(
                    f"{self.root / name} has {height} x {width} pixels and not {size[0]} x {size[1]}: give all images one "
                    "size, as in --set data.image_size=64."
                )
            yield pixels

    def digests(self) -> list[str]:
        """The md5 of each file's content, hexadecimal, or "" where it cannot be read as an image. Every image is decoded."""

        def digest(content: bytes) -> str:
            pixels_of(content)
            return hashlib.md5(content).hexdigest()

        return ["" if isinstance(found, Exception) else found for found in self._each(digest, "checking images")]

    def _each(self, function: Callable[[bytes], T], title: str) -> Iterator[T | Exception]:
        """`function` of the content of every file, in order, or the exception that it raised; with a progress bar."""

        def attempt(name: str) -> T | Exception:
            try:
                return function((self.root / name).read_bytes())
            except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others, according to the damage
                return error

        with (
            ThreadPoolExecutor(THREADS) as pool,
            tqdm(total=len(self), desc=title, unit="image", smoothing=0.05, disable=None) as progress,
        ):
            for start in range(0, len(self), 64):  # so few at a time that their pixels fit into memory
                for result in pool.map(attempt, self.names[start : start + 64]):
                    progress.update()
                    yield result


def pixels_of(content: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of an encoded image, uint8 [3, H, W], upright and in RGB. Grey values of 16 bits are scaled to 8.

    With a `size` (H, W), an image of another size is resized with its proportions (bilinear, with antialiasing), until it just
    covers (H, W), and its middle is cut out. Raises UserError, without the file's name, for pixels of 32 bits, and an exception
    of Pillow for what is no image.
    """
    with Image.open(io.BytesIO(content)) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode in ("I", "F"):  # Pillow would clip these, and 16 bits, at 255
        raise UserError("has pixels of 32 bits, in which white may be any number: give 8-bit images.")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    image = image.convert("RGB")
    if size is not None and image.size != size[::-1]:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def usable(files: ImageFiles) -> tuple[np.ndarray, dict[str, list[str]], str]:
    """Check every file: the positions int64 of those to keep, the names of the others by reason, and a digest of those kept.

    A file that cannot be read as an image is left out. So is a copy of another file, which could otherwise be a member and a
    non-member at once.
    """
    seen: set[str] = set()
    keep: list[int] = []
    left_out: dict[str, list[str]] = {"unreadable": [], "copy of another file": []}
    for position, (name, digest) in enumerate(zip(files.names, files.digests(), strict=True)):
        if not digest:
            left_out["unreadable"].append(name)
        elif digest in seen:
            left_out["copy of another file"].append(name)
        else:
            seen.add(digest)
            keep.append(position)
    return np.array(keep, dtype=np.int64), left_out, hashlib.md5("".join(sorted(seen)).encode()).hexdigest()


def write_images(path: Path, parts: Sequence[ImageFiles], side: int, size: tuple[int, int]) -> None:
    """Decode the files of all parts, in order, and write their pixels to `path`, a .npy file uint8 [n, 3, H, W].

    The arguments `side` and `size` are those of `ImageFiles.decode`. Few images are in memory at a time.
    """

    def write(file: IO[bytes]) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (sum(map(len, parts)), 3, *size)}
        np.lib.format.write_array_header_1_0(file, header)
        for files in parts:
            for pixels in files.decode(side, size):
                file.write(pixels.tobytes())

    atomic_write(path, write)


class StoredImages:
    """Images in a .npy file, uint8 [n, 3, H, W], from which only those that are asked for are read.

    It stands in for a tensor in `Examples.images`. An index gives further StoredImages; `read` gives the pixels.
    """

    def __init__(self, array: np.ndarray, rows: torch.Tensor, device: torch.device | None = None) -> None:
        """`array` is memory-mapped. The images are its `rows`, int64 [n]. Pixels are read to `device`, by default the CPU."""
        self.array, self.rows, self.device = array, rows, device or torch.device("cpu")

    @classmethod
    def open(cls, path: Path) -> "StoredImages":
        """All images of a file that `write_images` wrote."""
        array = np.load(path, mmap_mode="r")
        return cls(array, torch.arange(len(array)))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.array.shape[1:]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: torch.Tensor | slice) -> "StoredImages":
        index = index.cpu() if isinstance(index, torch.Tensor) else index
        return StoredImages(self.array, self.rows[index], self.device)

    def to(self, device: torch.device) -> "StoredImages":
        """The same images, whose pixels are read to `device`."""
        return StoredImages(self.array, self.rows, device)

    def read(self) -> torch.Tensor:
        """The pixels of all of them, uint8 [n, 3, H, W]."""
        return torch.from_numpy(self.array[self.rows.numpy()]).to(self.device)

    def followed_by(self, other: "StoredImages") -> "StoredImages":
        """These images and then those of `other`, which must be of the same file."""
        assert other.array is self.array
        return StoredImages(self.array, torch.cat([self.rows, other.rows]), self.device)
