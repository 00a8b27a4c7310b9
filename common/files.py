"""Reading and writing files.

A file is written whole or not at all, so that a killed process loses nothing. A file that is missing, damaged or made under
other settings is refused with one sentence that says what to do.
"""

import fcntl
import functools
import glob
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
import torch

from common.errors import UserError


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary file beside `path`, then rename that file to `path`.

    A reader sees the old content or the new content, never a part of it. Folders are made where they are missing. Temporary
    files that killed processes left for the same `path` are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    # The machine is named, because others may write to the same disk, and only it knows whether its process is alive.
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of `path` whose process, on this machine, is dead."""
    name, host = glob.escape(path.name), glob.escape(socket.gethostname())
    for partial in path.parent.glob(f".{name}.{host}-*-*.partial"):
        process = int(partial.name.split("-")[-2])
        if process != os.getpid() and not Path(f"/proc/{process}").exists():
            partial.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[int]:
    """Hold the lock of a folder, which is made where it is missing, and give its file descriptor. Other processes wait for it.

    The lock is released when the block ends or the process dies. It is for files that belong together; one file alone needs no
    lock. A process must not ask for a lock that it holds. Without `wait`, raises BlockingIOError where another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file.fileno()


def make_folder(path: Path) -> None:
    """Make a folder for results; raises UserError where that is not possible. Call it before long work begins."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be a folder for results ({error.strerror}): name another one.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    atomic_write(path, lambda file: file.write(text.encode()))


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file, atomically."""
    content = source.read_bytes()
    atomic_write(target, lambda file: file.write(content))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one array as a .npy file, atomically."""
    atomic_write(path, lambda file: np.save(file, array))


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, atomically. NaN is refused, because readers of JSON disagree on it."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, remake: str) -> dict[str, Any]:
    """The content of a JSON file. UserError says to run `remake` where the file is missing or damaged."""
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
    """Write a plain dict of tensors, numbers and strings, so that it loads with weights_only=True."""
    atomic_write(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, remake: str) -> dict[str, Any]:
    """Load on the CPU what save_checkpoint wrote. UserError says to run `remake` where the file is missing or damaged."""
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
    """Write arrays, and the settings under which they were computed, as a .npz file, atomically."""
    atomic_write(path, lambda file: np.savez(file, settings=json.dumps(settings), **arrays))


def read_arrays(path: Path) -> tuple[Any, dict[str, np.ndarray]] | None:
    """The settings and the arrays that `write_arrays` wrote. None where there is no such file or it is damaged."""
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
            return json.loads(str(arrays.pop("settings"))), arrays
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def cached_arrays(path: Path, settings: Any, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays stored at `path`, or those of `compute()` where nothing is stored there under the same `settings`.

    What `compute` returns is stored. Use it for what costs minutes; what costs hours is refused instead of recomputed
    (`refuse_other_config`).
    """
    stored = read_arrays(path)
    if stored and stored[0] == settings:
        return stored[1]
    arrays = compute()
    write_arrays(path, settings, **arrays)
    return arrays


def sha256(path: Path) -> str:
    """Hex digest of a file's content. A file that has not changed since is not read again."""
    state = path.stat()
    return _sha256(path, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, *_state: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def differences(stored: Any, wanted: Any, key: str = "") -> list[str]:
    """`key: stored -> wanted` for every setting in which two nested dicts differ."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            line
            for name in sorted({*stored, *wanted})
            for line in differences(stored.get(name), wanted.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if stored == wanted else [f"{key}: {stored} -> {wanted}"]


def refuse_other_config(path: Path, stored: Any, wanted: Any, remedy: str) -> None:
    """Raise UserError where the file at `path` was made under settings other than `wanted`."""
    lines = differences(stored, wanted)
    if lines:
        listed = "; ".join(lines[:4]) + (f" and {len(lines) - 4} more" if len(lines) > 4 else "")
        raise UserError(f"{path} was made under other settings ({listed}): {remedy}")
