"""The label-only command: its row, a killed run, Diffence in front of the classifier, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Call, refusal

import common.experiments.label_only
from common.commands import label_only

ASK = ("--defense", "undefended", "--count", 5, "--steps", 1, "--device", "cpu")


def row_of(folder: Path, name: str = "label_only-undefended-5images-1steps") -> dict[str, Any]:
    (path,) = folder.glob(f"evaluate_MIAs/results/**/{name}.json")
    return json.loads(path.read_text())


def stored(folder: Path) -> Path:
    (path,) = folder.glob("evaluate_MIAs/outputs/**/label_only-*.npz")
    return path


def test_the_row_and_diffence_changes_no_number_of_it(call: Call, copied_drawn: Path, tiny: Path) -> None:
    answer = call(label_only, copied_drawn, *ASK, "--profile", tiny)
    assert answer.code == 0, answer.err
    row = row_of(copied_drawn)
    assert list(row["attacks"]) == list(row["null"]["attacks"]) == ["correctness", "augmentation", "boundary"]
    assert row["scored"] == {"members": 5, "non_members": 5}
    assert row["diffence"] is None
    assert "best" not in row  # by which common.report.collect keeps it out of the main tables
    accuracy = row["accuracy"]
    assert row["gap_floor"] == pytest.approx((accuracy["members"] + 1 - accuracy["non_members"]) / 2)
    medians, failed = row["boundary"]["median_distance"], row["boundary"]["failed"]
    assert list(medians) == list(failed) == ["members", "non_members", "known_members", "known_non_members"]
    assert row["boundary"]["steps"] == 1
    # The attacker's 60 + 60 known images and 100 of noise, asked for each batch of 5, and at least 100 labels for a step.
    assert row["boundary"]["asked_an_image"] > 220 / 5 + 1
    assert "| boundary " in answer.out

    answer = call(label_only, copied_drawn, *ASK, "--profile", tiny, "--scenario", 3)
    assert answer.code == 0, answer.err
    defended = row_of(copied_drawn, "label_only-undefended_w_Diffence_scenario3-5images-1steps")
    assert defended["diffence"]["scenario"] == "3"
    for key in ("attacks", "boundary", "accuracy", "null"):
        assert defended[key] == row[key]


def test_a_killed_run_continues(call: Call, copied: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.experiments.label_only, "BATCH", 3)
    search = common.experiments.label_only.boundary_distances
    calls: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(named["seed"])
        return search(*arguments, **named)

    def begin() -> Any:
        return call(label_only, copied, *ASK, "--profile", tiny)

    assert begin().code == 0
    whole = row_of(copied)
    stored(copied).unlink()
    monkeypatch.setattr(common.experiments.label_only, "boundary_distances", counted)
    assert begin().code == 130
    first = calls.copy()
    calls.clear()
    assert begin().code == 130
    calls.clear()
    assert begin().code == 0
    assert len(set(first)) == 3
    assert len(calls) == 2  # 4 pools of 2 batches: 3, 3 and 2
    assert not set(first) & set(calls)
    again = row_of(copied)
    assert {key: again[key] for key in ("attacks", "boundary")} == {key: whole[key] for key in ("attacks", "boundary")}
    calls.clear()
    stored(copied).write_bytes(b"torn")
    assert begin().code == 130


def test_distances_of_other_weights_are_refused(call: Call, copied: Path, tiny: Path) -> None:
    assert call(label_only, copied, *ASK, "--profile", tiny).code == 0
    weights = copied / "final-all-models/tiny/seed0/resnet18/undefended.pt"
    weights.write_bytes(weights.with_name("undefended.best.pt").read_bytes() + b"\0")
    assert "weights:" in refusal(call(label_only, copied, *ASK, "--profile", tiny))


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--count", 61, "--count must lie in 1..60"),
        ("--count", 0, "--count must be at least 1, not 0"),
        ("--steps", 0, "--steps must be at least 1, not 0"),
        ("--scenario", "4", "unknown scenario '4'"),
        ("--scenario", "average", "--set diffence.stable=true"),
        ("--protocol", "claen", "Did you mean 'clean'"),
        ("--defense", "undefend", "Did you mean 'undefended'"),
    ],
)
def test_refuses(call: Call, trained: Path, tiny: Path, option: str, value: object, sentence: str) -> None:
    assert sentence in refusal(call(label_only, trained, *ASK, "--profile", tiny, option, value))
