"""Checkpoints that are damaged, something else, or of other settings are refused by name and kept; and the facts beside one."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer, Call, refusal

from common.commands import evaluate_mia, train_defense
from common.errors import UserError
from common.files import load_checkpoint, save_checkpoint
from common.training.loop import checkpoint_facts

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
