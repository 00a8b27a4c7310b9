"""What a classifier answers on images and candidates: computed once, kept, and made again where it no longer holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_run

from common.data.partition import Split, load_split
from common.diffence.candidates import shards
from common.outputs import collect
from common.run import Run
from common.targets import load_target, target_classifier


@pytest.fixture
def run(copied_drawn: Path, tiny: Path) -> Run:
    return tiny_run(copied_drawn, tiny)


@pytest.fixture
def split(run: Run) -> Split:
    return load_split(run)


def test_answers_are_kept_until_the_weights_change(run: Run, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_target(run, "undefended", "clean", target_classifier(run))
    first = collect(run, "undefended", "clean", model, split)
    for side, examples in (("members", split.members), ("non_members", split.non_members)):
        assert first[side].candidates.shape == (200, 4, 10)
        assert first[side].labels.tolist() == examples.labels[:200].tolist()
        with torch.no_grad():
            np.testing.assert_allclose(first[side].original[:50], model(examples.pixels(slice(50))).numpy(), atol=1e-4)
            drawn = model(list(shards(run, side, 200))[1][37]).numpy()
        np.testing.assert_allclose(first[side].candidates[137], drawn, atol=1e-4)

    paths = sorted(run.outputs_dir.glob("*.npz"))
    times = [path.stat().st_mtime_ns for path in paths]
    monkeypatch.setattr(type(model), "forward", None)
    again = collect(run, "undefended", "clean", model, split)
    np.testing.assert_array_equal(again["members"].candidates, first["members"].candidates)
    assert times == [path.stat().st_mtime_ns for path in paths]
    monkeypatch.undo()

    weights = run.models_dir / "undefended.pt"
    weights.write_bytes((run.models_dir / "undefended.best.pt").read_bytes() + b"\0")
    collect(run, "undefended", "clean", model, split)
    assert all(path.stat().st_mtime_ns != time for path, time in zip(paths, times, strict=True))


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_torn_answers_are_made_again(run: Run, split: Split, damage: str) -> None:
    model = load_target(run, "undefended", "clean", target_classifier(run))
    first = collect(run, "undefended", "clean", model, split)
    path = run.outputs_dir / "undefended-clean-members.npz"
    path.write_bytes({"cut": path.read_bytes()[:-40], "empty": b"", "text": b"not an archive"}[damage])
    again = collect(run, "undefended", "clean", model, split)
    np.testing.assert_array_equal(again["members"].candidates, first["members"].candidates)
