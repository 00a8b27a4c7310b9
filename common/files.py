"""Writing so that a kill loses nothing, and reading so that a damaged file is a sentence and not a traceback."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
import torch

from common.errors import UserError


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary file beside `path`, then put it in place: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """A folder to write results into; UserError where there can be none, before anything long is begun."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be a folder for results ({error.strerror}): name another one.") from error


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, atomically; NaN is refused, since no reader agrees on it."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: Path, remake: str) -> dict[str, Any]:
    """The content of a JSON file; UserError says `remake` where it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing. Make it with: {remake}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged. Delete it and run: {remake}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged. Delete it and run: {remake}")
    return content


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """A plain dict of tensors, numbers and strings, so that it loads with weights_only=True."""
    atomic_write(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, remake: str) -> dict[str, Any]:
    """Load what save_checkpoint wrote, on the CPU; UserError says `remake` where the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing. Make it with: {remake}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and storage errors, according to where the file is cut
        raise UserError(f"{path} is damaged or no checkpoint of this project. Delete it and run: {remake}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of this project. Delete it and run: {remake}")
    return content


def write_arrays(path: Path, settings: Any, **arrays: Any) -> None:
    """Arrays and the plain settings they were made under, as a .npz, atomically."""
    atomic_write(path, lambda file: np.savez(file, settings=json.dumps(settings), **arrays))


def read_arrays(path: Path) -> tuple[Any, dict[str, np.ndarray]] | None:
    """The settings and the arrays that `write_arrays` wrote; None where there is no such file or it is torn."""
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
            return json.loads(str(arrays.pop("settings"))), arrays
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from integers and words: distinct parts give independent streams, on every machine the same."""
    text = struct.pack("<q", len(parts)) + b"\0".join(str(part).encode() for part in parts)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def image_keys(images: torch.Tensor, key: bytes = b"") -> torch.Tensor:
    """A hash of each of images [n, 3, H, W] in [0, 1], int64 [n] and never negative: equal images have equal keys everywhere.

    Images are rounded to 8 bits first: a change below half a grey level is no new image, and neither is the rounding of
    another machine. `key`, up to 64 bytes, makes the hash one that nobody can compute, or look for collisions in, without it.
    """
    rows = (images * 255).round().to(torch.uint8).flatten(1).cpu().numpy()
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in rows)
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=torch.int64)


def differences(made: Any, wanted: Any, key: str = "") -> list[str]:
    """`key: made -> wanted` for every setting in which two nested dicts differ."""
    if isinstance(made, dict) and isinstance(wanted, dict):
        return [
            line
            for name in sorted({*made, *wanted})
            for line in differences(made.get(name), wanted.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if made == wanted else [f"{key}: {made} -> {wanted}"]


def refuse_other_config(what: Path, made: Any, wanted: Any, remedy: str) -> None:
    """Refuse to use or overwrite `what` where it was made under settings other than the present ones."""
    found = differences(made, wanted)
    if found:
        shown = "; ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        raise UserError(f"{what} was made under other settings ({shown}): {remedy}")
