"""benchmarks/kills.py: what counts as a difference between two runs."""

import json
from pathlib import Path

import torch

from benchmarks.kills import differing, digests


def tree(root: Path, auc: float = 0.5, weight: float = 1.0, **unequal: object) -> dict[str, str]:
    """The digests of a run with a row and a checkpoint."""
    folder = root / "synthetic" / "evaluate_MIAs"
    folder.mkdir(parents=True)
    (folder / "row.json").write_text(json.dumps({"auc": auc, "settings": {"n": 3, **unequal}}))
    torch.save({"model": {"w": torch.tensor([weight])}, "history": [{"loss": 0.1, **unequal}]}, folder / "undefended.pt")
    return digests(root)


def test_times_and_digests_of_files_may_differ_and_nothing_else(tmp_path: Path) -> None:
    expected = tree(tmp_path / "whole", seconds=1.0, weights="a", commit="b")
    row, checkpoint = sorted(expected)
    assert differing(expected, tree(tmp_path / "same", seconds=2.0, weights="c", commit="d")) == []
    assert differing(expected, tree(tmp_path / "row", auc=0.5 + 2**-53)) == [row]
    assert differing(expected, tree(tmp_path / "weights", weight=1 + 2**-23)) == [checkpoint]


def test_a_missing_file_and_a_temporary_one_are_differences(tmp_path: Path) -> None:
    expected = tree(tmp_path / "whole")
    left = tmp_path / "left" / "synthetic" / "data" / "x.pt.partial"
    left.parent.mkdir(parents=True)
    left.touch()
    assert differing(expected, tree(tmp_path / "left")) == [str(left.relative_to(tmp_path / "left"))]
    assert differing(expected, {}) == sorted(expected)
