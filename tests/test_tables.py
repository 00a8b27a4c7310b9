"""README's tables come from the committed rows by common.tables, and rows from uncommitted code are refused."""

import json
import shutil
from pathlib import Path

import pytest

from common import tables
from common.errors import UserError

ROOT = Path(__file__).parents[1]


def test_readme_is_what_the_rows_say() -> None:
    readme = (ROOT / "README.md").read_text()
    assert tables.fill(readme, ROOT) == readme, "run: python -m common.tables"


def test_the_real_run_shows_what_diffence_promises() -> None:
    rows = {
        row["diffence"]["scenario"] if row["diffence"] else None: row
        for row in tables.measured(ROOT)["cifar10", "small-clean-seed0"]
        if row["defense"] == "undefended"
    }
    assert set(rows) == {None, "1", "2", "3"}
    assert rows[None]["accuracy"]["members"] >= 0.90
    for scenario in "123":
        assert rows[scenario]["diffence"]["labels_changed"] == {"members": 0, "non_members": 0}
        assert rows[scenario]["accuracy"] == rows[None]["accuracy"]
    drop = rows[None]["attacks"]["entropy"]["auc"] - rows["1"]["attacks"]["entropy"]["auc"]
    assert drop >= 0.10
    assert rows["1"]["best"]["auc"] <= rows["1"]["gap_floor"] + 0.03


def test_changed_rows_change_the_readme(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    for (dataset, name), rows in tables.measured(ROOT).items():
        (tmp_path / "results").mkdir(exist_ok=True)
        shutil.copy(ROOT / "results" / "benchmark_reconstruction.json", tmp_path / "results")
        folder = tmp_path / "results" / dataset / name
        folder.mkdir(parents=True)
        for i, row in enumerate(rows):
            (folder / f"{i}.json").write_text(json.dumps(row | {"gap_floor": 0.123456}))
    assert "0.123" in tables.fill(readme, tmp_path)


def test_rows_from_uncommitted_code_and_lost_markers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    made = tmp_path / "cifar10" / "evaluate_MIAs" / "results"
    made.mkdir(parents=True)
    row = tables.measured(ROOT)["cifar10", "small-clean-seed0"][0]
    (made / "undefended.json").write_text(json.dumps(row | {"commit": "0123456789ab+changes"}))
    with pytest.raises(UserError, match="uncommitted"):
        tables.collect("cifar10")
    (made / "undefended.json").write_text(json.dumps(row | {"commit": "0123456789ab"}))
    assert [path.is_file() for path in tables.collect("cifar10")] == [True]
    with pytest.raises(UserError, match="markers"):
        tables.fill("no markers", tmp_path)
