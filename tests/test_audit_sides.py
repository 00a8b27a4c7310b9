"""Which members and non-members the audit refuses: sides that were saved otherwise, and sides that share points."""

from pathlib import Path

import numpy as np
import pytest
from planted import save_planted
from scipy.special import softmax

from common.attacks import Outputs
from common.audit import audit
from common.audit.files import LoadedOutputs
from common.errors import UserError
from common.pair import Pair


def run(files: dict[str, Path], out: Path) -> None:
    audit.audit(files, 0.5, 0.001, 0, out)


def test_sides_that_were_saved_otherwise_are_refused(tmp_path: Path) -> None:
    files = save_planted(tmp_path, 1.0, 30)
    with np.load(files["members"]) as made:
        logits, labels = made["logits"], made["labels"]
    for other in ({"logits": logits.astype(np.float32)}, {"probabilities": softmax(logits, axis=1)}):
        np.savez(files["members"], **other, labels=labels)
        with pytest.raises(UserError, match="save both alike"):
            run(files, tmp_path / "out")


def side(logits: np.ndarray, labels: np.ndarray) -> LoadedOutputs:
    return LoadedOutputs(Outputs(logits, labels), "logits", str(logits.dtype), 0)


PATHS = Pair(Path("m.npz"), Path("n.npz"))


def test_members_among_the_non_members_are_refused(tmp_path: Path) -> None:
    files = save_planted(tmp_path, 1.0, 40)
    with np.load(files["members"]) as one, np.load(files["non_members"]) as other:
        logits, labels = (np.concatenate([other[name][:20], one[name][7:27]]) for name in ("logits", "labels"))
    np.savez(files["non_members"], logits=logits, labels=labels)
    words = r"20 of 40 non-members in .*non_members\.npz have exactly the logits and the label of a member, such as row 20"
    with pytest.raises(UserError, match=words):
        run(files, tmp_path / "out")


def test_answers_that_agree_by_chance_are_no_copies() -> None:
    """Constant answers, one-hot answers, and answers in few bits: equal rows are then as frequent within a side as across."""
    rng = np.random.default_rng(0)
    labels = Pair(rng.integers(0, 5, 50), rng.integers(0, 5, 50))
    audit.check_sides(labels.map(lambda y: side(np.zeros((50, 5)), y)), PATHS)
    audit.check_sides(labels.map(lambda y: side(np.eye(5)[(y + 1) % 5], y)), PATHS)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        coarse = [side(rng.normal(size=(2000, 2)).round(1), rng.integers(0, 2, 2000)) for _ in range(2)]
        audit.check_sides(Pair(*coarse), PATHS)


def test_other_class_counts_are_refused(tmp_path: Path) -> None:
    files = save_planted(tmp_path, 1.0, 30)
    np.savez(files["non_members"], logits=np.random.default_rng(0).normal(size=(30, 4)), labels=np.arange(30) % 4)
    with pytest.raises(UserError, match=r"5 classes and .* 4"):
        run(files, tmp_path / "out")
