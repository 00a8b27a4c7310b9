"""What the audit reads: probabilities become logits without loss, and every other format is refused in one sentence."""

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from common.attacks import Outputs
from common.audit.files import load_outputs, load_shadows
from common.errors import UserError
from common.pair import Pair

CLASSES = 5
LABELS = np.arange(30) % CLASSES
LOGITS = np.random.default_rng(0).normal(size=(30, CLASSES))
NAN = np.where(np.arange(30)[:, None] == 3, np.nan, LOGITS)
WRONG_ARRAYS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "no labels": ({"logits": LOGITS}, "holds logits, and lacks `labels`: save it with"),
    "no outputs": ({"signals": LOGITS, "labels": LABELS}, "holds signals, labels, and lacks `logits` or `probabilities`"),
    "privacy meter": ({"fpr": LABELS, "scores": LABELS, "memberships": LABELS}, "ML Privacy Meter"),
    "tf privacy": ({"logits_train": LOGITS, "labels_train": LABELS}, "AttackInputData"),
    "nothing": ({}, "holds nothing"),
    "one-hot labels": ({"logits": LOGITS, "labels": np.eye(CLASSES)[LABELS]}, "labels` of shape"),
    "too many axes": ({"logits": LOGITS[None], "labels": LABELS}, "of shape"),
    "a label too high": ({"logits": LOGITS, "labels": LABELS + 1}, "integers in 0..4"),
    "float labels": ({"logits": LOGITS, "labels": LABELS + 0.0}, "integers in 0..4"),
    "NaN": ({"logits": NAN, "labels": LABELS}, "1 of 30 rows of `logits`"),
    "text": ({"logits": LOGITS.astype(str), "labels": LABELS}, "real numbers"),
    "logits as probabilities": ({"probabilities": LOGITS, "labels": LABELS}, "save logits under the name `logits`"),
    "not normalised": ({"probabilities": softmax(LOGITS, 1) * 0.9, "labels": LABELS}, "do not sum to 1"),
    "probabilities as logits": ({"logits": softmax(LOGITS, 1), "labels": LABELS}, "under the name `probabilities`"),
}


def test_probabilities_rank_as_logits_do_until_they_are_exactly_zero(tmp_path: Path) -> None:
    phi = np.linspace(20, 75, 40)  # p rounds to 1 in float32 beyond 17; the other classes' p still tells them apart
    labels = np.arange(40) % CLASSES
    logits = np.zeros((40, CLASSES))
    logits[np.arange(40), labels] = phi + math.log(CLASSES - 1)  # the others are 0
    np.savez(tmp_path / "p.npz", probabilities=softmax(logits, axis=1).astype(np.float32), labels=labels)
    loaded = load_outputs(tmp_path / "p.npz")
    assert (loaded.array, loaded.dtype, loaded.saturated) == ("probabilities", "float32", 0)  # p = 1, yet none of them ties
    np.testing.assert_allclose(loaded.outputs.loss, np.logaddexp(0, -phi), rtol=1e-5)
    np.savez(tmp_path / "hard.npz", probabilities=np.eye(CLASSES)[labels], labels=labels)
    hard = load_outputs(tmp_path / "hard.npz")
    assert np.isfinite(hard.outputs.logits).all()
    assert len(set(hard.outputs.loss)) == 1
    assert hard.saturated == 40


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble])
def test_the_smallest_probabilities_keep_their_order(kind: type, tmp_path: Path) -> None:
    """Subnormal ones too: 1, 2, 4 .. times the smallest number of the type, and 0, which ties with the smallest alone."""
    small = np.finfo(np.float64 if kind is np.longdouble else kind).smallest_subnormal * 2.0 ** np.arange(8)
    other: np.ndarray = np.concatenate([[0], small]).astype(kind)
    np.savez(tmp_path / "p.npz", probabilities=np.stack([1 - other, other], axis=1).astype(kind), labels=np.zeros(9, int))
    loaded = load_outputs(tmp_path / "p.npz")
    assert loaded.saturated == 1
    phi = loaded.outputs.logits[:, 0] - loaded.outputs.logits[:, 1]
    assert phi[0] == phi[1] and (np.diff(phi[1:]) < 0).all()


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_wrong_arrays_are_refused(name: str, tmp_path: Path) -> None:
    arrays, words = WRONG_ARRAYS[name]
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=words) as refused:
        load_outputs(tmp_path / "x.npz")
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_other_formats_are_named_and_never_unpickled(tmp_path: Path) -> None:
    bomb = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    torch.save({"logits": torch.zeros(2, 2)}, tmp_path / "x.pt")
    torch.save({"logits": torch.zeros(2, 2)}, tmp_path / "renamed.npz")
    np.save(tmp_path / "x.npy", LOGITS)
    np.savez(tmp_path / "objects.npz", logits=bomb, labels=LABELS)
    np.savez(tmp_path / "whole.npz", logits=LOGITS, labels=LABELS)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:300])
    (tmp_path / "torn.npz").write_bytes(whole.replace(b"PK\x01\x02", bytes(4), 1))  # of the list of what it holds
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(bomb))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(bomb))
    (tmp_path / "x.csv").write_text("logit,label\n1,0\n")
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "what.npz").write_text("hello")
    for name, words in {
        "x.pt": "PyTorch",
        "renamed.npz": "PyTorch",
        "x.npy": "one array only",
        "objects.npz": "Python objects",
        "cut.npz": "damaged",
        "torn.npz": "damaged",
        "x.pkl": "TF Privacy",
        "pickle.npz": "a pickle",
        "x.csv": "text file",
        "x.h5": "HDF5",
        "what.npz": "no .npz file",
        "": "no file",
    }.items():
        with pytest.raises(UserError, match=words):
            load_outputs(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_shadow_outputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    side = Outputs(LOGITS, LABELS)
    good, keep = np.zeros((4, 60, CLASSES)), np.zeros((4, 60), dtype=bool)
    for arrays, words in (
        ({"logits": good[:, :59], "keep": keep}, r"\[M >= 2, 60, 5\]"),
        ({"logits": good, "keep": keep.T}, "`keep` of shape"),
        ({"logits": good, "keep": keep.astype(int)}, "type bool"),
        ({"logits": good}, "`keep`"),
        ({"logits": good + np.nan, "keep": keep}, "NaN"),
    ):
        np.savez(tmp_path / "s.npz", **arrays)
        with pytest.raises(UserError, match=words):
            load_shadows(tmp_path / "s.npz", Pair(side, side))
