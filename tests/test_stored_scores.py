"""The scores beside rows: packed without ties, and every AUC of a committed row follows from them."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from sklearn.metrics import roc_auc_score

from common.report import collect

STORED_SCORES = sorted((ROOT / "results").glob("*/*/*.npz"))


def test_scores_are_packed_without_ties(tmp_path: Path) -> None:
    """1 - 2**-30 is 1 in float32, so the second attack keeps float64. The first one's scores differ in float32, too."""
    (tmp_path / "scores").mkdir()
    scores = {"loss": [0.1, 0.2, 0.3], "nn": [1.0, 1 - 2**-30, 0.5]}
    for attack, values in scores.items():
        np.save(tmp_path / "scores" / f"{attack}-based-hamp.npy", np.stack([values, [1, 1, 0]], axis=1))
    collect.pack_scores(tmp_path / "hamp.json", tmp_path / "hamp.npz")
    with np.load(tmp_path / "hamp.npz") as packed:
        assert {attack: packed[attack].dtype for attack in scores} == {"loss": np.float32, "nn": np.float64}
        assert all(len(np.unique(packed[attack])) == 3 and packed[f"{attack} members"] == 2 for attack in scores)
        np.testing.assert_array_equal(packed["nn"], scores["nn"])


@pytest.mark.parametrize("path", STORED_SCORES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_auc_of_a_row_follows_from_its_stored_scores(path: Path) -> None:
    """By scikit-learn."""
    row = json.loads(path.with_suffix(".json").read_text())
    with np.load(path) as stored:
        for attack, report in row["attacks"].items():
            scores, members = stored[attack], int(stored[f"{attack} members"])
            auc = roc_auc_score(np.arange(len(scores)) < members, scores)
            assert auc == pytest.approx(report["auc"], abs=1e-9), attack


def test_scores_are_stored_for_the_paper_s_partition() -> None:
    assert any(path.parent.name.startswith("narrow-") for path in STORED_SCORES)
