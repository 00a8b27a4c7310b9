"""Files: written whole or not at all, JSON, settings that differ, stored arrays, digests."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from common.errors import UserError
from common.files import atomic_write, cached_arrays, differences, read_json, refuse_other_config, sha256, write_json

# Writing


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of the new")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    atomic_write(path, lambda file: file.write(b"old"))

    def slowly(file: IO[bytes]) -> None:
        file.write(b"ne")
        file.flush()
        assert path.read_bytes() == b"old"
        file.write(b"w")

    atomic_write(path, slowly)
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """And leaves alone what a living process is writing, and what belongs to another file."""
    path = tmp_path / "file"

    def in_another_process(write: Callable[[IO[bytes]], object]) -> "multiprocessing.process.BaseProcess":
        writer = multiprocessing.get_context("fork").Process(target=atomic_write, args=(path, write))
        writer.start()
        return writer

    killed = in_another_process(lambda file: os.kill(os.getpid(), signal.SIGKILL))
    killed.join()
    other = tmp_path / f".other{next(tmp_path.iterdir()).name.removeprefix('.file')}"
    other.touch()
    living = in_another_process(lambda file: time.sleep(600))
    while not list(tmp_path.glob(f".file*-{living.pid}-*")):
        time.sleep(0.01)
    try:
        atomic_write(path, lambda file: file.write(b"new"))
        (partial,) = tmp_path.glob(".file*")
        assert f"-{living.pid}-" in partial.name
        assert path.read_bytes() == b"new" and other.exists()
    finally:
        living.kill()
        living.join()
    atomic_write(path, lambda file: file.write(b"newer"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", other.name}


def test_json_without_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "row.json", {"auc": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "row.json", {"auc": float("nan")})
    assert json.loads((tmp_path / "row.json").read_text()) == {"auc": 0.5}
    for damage in ("{", "", "[1]"):
        (tmp_path / "row.json").write_text(damage)
        with pytest.raises(UserError, match=r"row\.json is damaged\. Delete it and run: make it"):
            read_json(tmp_path / "row.json", "make it")


def test_differences_are_named() -> None:
    made = {"a": {"b": 1, "c": [1, 2]}, "d": None, "same": {"x": 0}}
    wanted = {"a": {"b": 2, "c": [1, 3]}, "e": 5, "d": None, "same": {"x": 0}}
    assert differences(made, wanted) == ["a.b: 1 -> 2", "a.c: [1, 2] -> [1, 3]", "e: None -> 5"]
    refuse_other_config(Path("it"), made, dict(made), "move it.")
    with pytest.raises(UserError, match=r"^it was made under other settings \(a\.b: 1 -> 2; .*; e: None -> 5\): move it\.$"):
        refuse_other_config(Path("it"), made, wanted, "move it.")
    with pytest.raises(UserError, match=r"; 3: None -> 0 and 6 more\)"):
        refuse_other_config(Path("it"), {}, {str(i): 0 for i in range(10)}, "")


# Stored arrays


def test_cached_arrays_are_computed_once_for_each_settings(tmp_path: Path) -> None:
    computed: list[int] = []

    def compute() -> dict[str, np.ndarray]:
        computed.append(len(computed))
        return {"phi": np.full(3, len(computed))}

    path = tmp_path / "phi.npz"
    for settings, value in (({"n": 1}, 1), ({"n": 1}, 1), ({"n": 2}, 2), ({"n": 1}, 3)):
        assert cached_arrays(path, settings, compute)["phi"].tolist() == [value] * 3
    path.write_bytes(path.read_bytes()[:-30])
    assert cached_arrays(path, {"n": 1}, compute)["phi"].tolist() == [4] * 3


def test_a_digest_is_that_of_the_content_and_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    assert sha256(path) == sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"abcd")
    assert sha256(path) == "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"
