"""Files that outlive a run: written whole or not at all; refused by name where they are damaged or something else."""

import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from conftest import Answer, Call, refusal

from common.commands import evaluate_mia, train_defense
from common.errors import UserError
from common.files import (
    atomic_write,
    cached_arrays,
    differences,
    load_checkpoint,
    read_json,
    refuse_other_config,
    save_checkpoint,
    sha256,
    write_json,
)
from common.seeds import derive_seed
from common.training.loop import checkpoint_facts

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


def test_seeds_are_distinct_and_the_same_everywhere() -> None:
    assert derive_seed("epoch", 0, 0) == 2047052173440320259
    parts: list[tuple[int | str, ...]] = [(), (0,), (0, 0), (1, 12), (11, 2), ("112",), (-1,), ("epoch", 1), ("epoc", "h1")]
    parts += [("noise", seed, query, number) for seed in range(3) for query in range(30) for number in range(30)]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = torch.tensor(sorted(seeds))[:, None].bitwise_right_shift(torch.arange(63)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.05


def test_differences_are_named() -> None:
    made = {"a": {"b": 1, "c": [1, 2]}, "d": None, "same": {"x": 0}}
    wanted = {"a": {"b": 2, "c": [1, 3]}, "e": 5, "d": None, "same": {"x": 0}}
    assert differences(made, wanted) == ["a.b: 1 -> 2", "a.c: [1, 2] -> [1, 3]", "e: None -> 5"]
    refuse_other_config(Path("it"), made, dict(made), "move it.")
    with pytest.raises(UserError, match=r"^it was made under other settings \(a\.b: 1 -> 2; .*; e: None -> 5\): move it\.$"):
        refuse_other_config(Path("it"), made, wanted, "move it.")
    with pytest.raises(UserError, match=r"; 3: None -> 0 and 6 more\)"):
        refuse_other_config(Path("it"), {}, {str(i): 0 for i in range(10)}, "")


# Reading


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def damage_of(kind: str, path: Path) -> None:
    """Overwrite a checkpoint."""
    whole = path.read_bytes() if path.exists() else b""
    stored = torch.load(path, weights_only=True) if path.exists() else {}
    if kind == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "cut at the end":
        path.write_bytes(whole[:-1])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "bomb":
        torch.save({**stored, "more": Bomb(path.with_name("exploded"))}, path)
    elif kind == "bare bomb":
        path.write_bytes(pickle.dumps(Bomb(path.with_name("exploded")), protocol=2))
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "other architecture":
        torch.save({**stored, "model": {"weight": torch.zeros(3)}}, path)
    elif kind == "no weights":
        torch.save({key: value for key, value in stored.items() if key != "model"}, path)


KINDS = ["cut", "cut at the end", "empty", "text", "bomb", "bare bomb", "tensor"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_checkpoints(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, {"model": {"weight": torch.ones(1000)}, "settings": {"a": 1}, "history": []})
    assert torch.equal(load_checkpoint(path, "")["model"]["weight"], torch.ones(1000))
    damage_of(kind, path)
    with pytest.raises(
        UserError, match=r"model\.pt is .*(damaged|no checkpoint).*Delete it and run: python train\.py"
    ) as caught:
        load_checkpoint(path, "python train.py")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_the_bomb_is_one(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / "exploded").exists()


# Through the scripts' commands


def undefended(folder: Path, suffix: str = ".pt") -> Path:
    return folder / f"final-all-models/tiny/seed0/resnet18/undefended{suffix}"


def train(call: Call, folder: Path, profile: Path, *arguments: str) -> Answer:
    return call(train_defense, folder, "--defense", "undefended", "--profile", profile, "--device", "cpu", *arguments)


@pytest.mark.parametrize("suffix", [".pt", ".resume.pt"])
@pytest.mark.parametrize("kind", ["cut", "bomb", "other architecture", "no weights"])
def test_training_refuses_and_keeps_a_strange_checkpoint(copied: Path, tiny: Path, call: Call, kind: str, suffix: str) -> None:
    path = undefended(copied, suffix)
    if suffix != ".pt":
        stored = torch.load(undefended(copied), weights_only=True)
        save_checkpoint(path, {**stored, "history": stored["history"][:3], "optimizer": {}})
        undefended(copied).unlink()
    damage_of(kind, path)
    before = path.read_bytes()
    sentence = refusal(train(call, copied, tiny))
    assert str(path) in sentence
    assert "Delete it and run: python synthetic/train_defense.py --defense undefended --profile" in sentence
    assert ("another architecture" in sentence) == (kind in ("other architecture", "no weights"))
    assert path.read_bytes() == before
    assert not path.with_name("exploded").exists()


def test_training_refuses_other_settings_and_names_them(copied: Path, tiny: Path, call: Call) -> None:
    before = undefended(copied).read_bytes()
    sentence = refusal(train(call, copied, tiny, "--set", "train.epochs=9", "--set", "model.width=5"))
    assert f"{undefended(copied)} was made under other settings (model.width: 4 -> 5; train.epochs: 8 -> 9)" in sentence
    assert "move it away, then run: python synthetic/train_defense.py --defense undefended" in sentence
    assert undefended(copied).read_bytes() == before


def test_training_finds_what_is_finished(copied: Path, tiny: Path, call: Call) -> None:
    before = undefended(copied).stat().st_mtime_ns
    answer = train(call, copied, tiny)
    assert (answer.code, answer.err) == (0, "")
    assert "accuracy 0." in answer.out
    assert undefended(copied).stat().st_mtime_ns == before
    assert not undefended(copied, ".resume.pt").exists()


@pytest.mark.parametrize("protocol", ["clean", "released"])
@pytest.mark.parametrize("kind", ["missing", "cut", "bomb", "other architecture"])
def test_evaluation_refuses_a_strange_checkpoint(copied: Path, tiny: Path, call: Call, kind: str, protocol: str) -> None:
    path = undefended(copied, ".best.pt" if protocol == "released" else ".pt")
    damage_of(kind, path)
    if kind == "missing":
        path.unlink()
    answer = call(evaluate_mia, copied, "--defense", "undefended", "--profile", tiny, "--protocol", protocol, "--device", "cpu")
    sentence = refusal(answer)
    assert str(path) in sentence
    assert ("is missing" in sentence) == (kind == "missing")
    assert ("another architecture" in sentence) == (kind == "other architecture")
    assert "python synthetic/train_defense.py --defense undefended --profile" in sentence
    assert not (copied / "evaluate_MIAs" / "results").exists()


def test_evaluation_refuses_other_settings(copied: Path, tiny: Path, call: Call) -> None:
    """A checkpoint of another model under the name of this one: its settings tell."""
    other = copied / "final-all-models/tiny/seed0/vgg16"
    other.mkdir()
    (other / "undefended.pt").write_bytes(undefended(copied).read_bytes())
    arguments = ["--defense", "undefended", "--profile", tiny, "--set", "model.name=vgg16"]
    sentence = refusal(call(evaluate_mia, copied, *arguments, "--device", "cpu"))
    assert f"{other / 'undefended.pt'} was made under other settings (model.name: resnet18 -> vgg16)" in sentence


def test_nan_weights_are_refused(copied: Path, tiny: Path, call: Call) -> None:
    stored = torch.load(undefended(copied), weights_only=True)
    name = list(stored["model"])[-1]
    stored["model"][name].fill_(float("nan"))
    torch.save(stored, undefended(copied))
    answer = call(evaluate_mia, copied, "--defense", "undefended", "--profile", tiny, "--device", "cpu")
    assert "NaN or infinite logits" in refusal(answer)
    assert not (copied / "evaluate_MIAs" / "results").exists()


# The JSON file beside a checkpoint


def checkpoint_of(seed: int) -> dict[str, Any]:
    """A finished checkpoint that was made under `seed`."""
    return {"model": {}, "settings": {"seed": seed}, "facts": {"epsilon": 8.0}, "history": [{"epoch": 1}, {"epoch": 2}]}


def test_the_facts_of_a_checkpoint_are_read_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made from a checkpoint of version 0.1, which has none beside it, and stored for the next time."""
    path = tmp_path / "hamp.pt"
    save_checkpoint(path, checkpoint_of(3))
    facts = checkpoint_facts(path, "train it")
    assert facts == {"settings": {"seed": 3}, "facts": {"epsilon": 8.0}, "last_epoch": {"epoch": 2}}
    monkeypatch.setattr("common.training.loop.load_checkpoint", None)
    assert checkpoint_facts(path, "train it") == facts


def test_facts_that_are_older_than_their_checkpoint_are_made_again(tmp_path: Path) -> None:
    """A kill between the two files leaves the facts of other weights."""
    path = tmp_path / "hamp.pt"
    save_checkpoint(path, checkpoint_of(3))
    checkpoint_facts(path, "train it")
    save_checkpoint(path, checkpoint_of(4))
    os.utime(path, ns=(2**62, 2**62))
    assert checkpoint_facts(path, "train it")["settings"] == {"seed": 4}


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
