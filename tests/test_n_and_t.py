"""Attacks for many N and T: the cells against an evaluation, one drawing for all, resumption, and what is refused."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call, refusal, tiny_run

from common.commands import evaluate_mia, n_and_t
from common.experiments import n_and_t as experiment

OPTIONS = ("--device", "cpu", "--set", "attack.nn_epochs=2")


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, int, int]]:
    """The T, side, first position and number of candidates of every shard that is drawn."""
    made: list[tuple[int, str, int, int]] = []
    draw = experiment.draw_shard

    def count(run: Any, reconstruct: Any, examples: Any, side: str, positions: range) -> np.ndarray:
        made.append((reconstruct.t, side, positions.start, run.config.diffence.n))
        return draw(run, reconstruct, examples, side, positions)

    monkeypatch.setattr(experiment, "draw_shard", count)
    return made


def rows_of(folder: Path, tiny: Path, name: str, *changes: str) -> dict[str, Any]:
    run = tiny_run(folder, tiny, "attack.nn_epochs=2", *changes)
    row: dict[str, Any] = json.loads((run.results_dir("clean") / name).read_text())
    return row


def test_a_cell_is_what_an_evaluation_with_these_settings_finds(copied_drawn: Path, tiny: Path, call: Call) -> None:
    """N = 4 and T = 100 are the profile's: the same candidates, so the same numbers, in every scenario and without.

    A smaller N has the first of the same candidates.
    """
    options = ("--defense", "undefended", "--profile", tiny, *OPTIONS, "--scenario", "1", "3")
    for n in (2, 4):
        assert call(evaluate_mia, copied_drawn, *options, *(("--n", n) if n == 2 else ())).code == 0
    answer = call(n_and_t, copied_drawn, *options, "--n", 2, 4, "--t", 60, 100)
    assert answer.code == 0, answer.err
    row = rows_of(copied_drawn, tiny, "n_and_t-undefended-n4-t60-100.json")
    cells = {(cell["scenario"], cell["t"], cell["n"]): cell for cell in row["cells"]}
    assert list(cells) == [(scenario, t, n) for scenario in "13" for t in (60, 100) for n in (2, 4)]
    for (scenario, name), n in product((("1", "undefended_w_Diffence"), ("3", "undefended_w_Diffence_scenario3")), (2, 4)):
        evaluation, cell = (
            rows_of(copied_drawn, tiny, f"{name}.json", *(["diffence.n=2"] if n == 2 else [])),
            cells[scenario, 100, n],
        )
        assert cell["best"] == evaluation["best"]
        for key in ("interval", "labels_changed", "no_match", "draws"):
            assert cell[key] == evaluation["diffence"][key]
        for attack, found in cell["attacks"].items():
            assert found == {key: evaluation["attacks"][attack][key] for key in found}
    alone = rows_of(copied_drawn, tiny, "undefended.json")
    assert (row["without"]["best"], row["gap_floor"], row["accuracy"]) == (alone["best"], alone["gap_floor"], alone["accuracy"])
    assert row["left_out"] == {"t_values": [200, 240, 260], "max_timestep": 160}
    assert f"{cells['1', 100, 4]['best']['auc']:.3f}" in answer.out and "Left out: T = 200, 240, 260." in answer.out
    # Fewer candidates keep the label less often, and more noise loses it more often.
    matched = {key: -sum(cell["no_match"].values()) for key, cell in cells.items()}
    assert matched["3", 60, 2] <= matched["3", 60, 4] and matched["3", 100, 2] <= matched["3", 100, 4]
    assert sum(cells["3", 60, 4]["no_match"].values()) != sum(cells["3", 100, 4]["no_match"].values())


def test_each_t_is_drawn_once_for_all_n_and_all_scenarios(
    copied: Path, tiny: Path, call: Call, drawings: list[tuple[int, str, int, int]]
) -> None:
    """Also for a smaller N and a second call, and no image of a candidate is kept."""
    options = ("--defense", "undefended", "--profile", tiny, *OPTIONS, "--t", 60)
    assert call(n_and_t, copied, *options, "--n", 1, 3, "--scenario", "1", "3").code == 0
    once = [(60, side, start, 3) for side in ("members", "non_members") for start in (0, 100)]
    assert drawings == once
    assert call(n_and_t, copied, *options, "--n", 2, "--scenario", "2", "average").code == 0
    assert drawings == once
    run = tiny_run(copied, tiny)
    assert not run.candidates_dir.exists()
    assert call(n_and_t, copied, *options, "--n", 4, "--scenario", "3").code == 0  # more candidates than were drawn
    assert drawings[4:] == [(60, side, start, 4) for _, side, start, _ in once]


def test_a_killed_run_goes_on(
    copied: Path, tiny: Path, call: Call, drawings: list[tuple[int, str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after three of four shards, then after one of two cells: nothing is done twice, and the row is the same."""
    options = ("--defense", "undefended", "--profile", tiny, *OPTIONS, "--t", 60, "--n", 2, 4, "--scenario", "3")
    whole = tiny_run(copied, tiny, "attack.nn_epochs=2")
    draw, cell_of = experiment.draw_shard, experiment.cell_of
    measured: list[int] = []

    def stop_at_the_fourth(*arguments: Any) -> np.ndarray:
        if len(drawings) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    def stop_at_the_second(run: Any, *arguments: Any) -> Any:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(run.config.diffence.n)
        return cell_of(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "draw_shard", stop_at_the_fourth)
        assert call(n_and_t, copied, *options).code == 130
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "cell_of", stop_at_the_second)
        assert call(n_and_t, copied, *options).code == 130
    assert len(drawings) == 4 and measured == [2]
    assert call(n_and_t, copied, *options).code == 0
    assert len(drawings) == 4
    row = rows_of(copied, tiny, "n_and_t-undefended-n4-t60-60.json")
    for path in (whole.outputs_dir / "n_and_t").iterdir():
        path.unlink()
    assert call(n_and_t, copied, *options).code == 0
    assert rows_of(copied, tiny, "n_and_t-undefended-n4-t60-60.json")["cells"] == row["cells"]


def test_refusals(trained: Path, tiny: Path, call: Call) -> None:
    options = ("--defense", "undefended", "--profile", tiny, "--device", "cpu")
    assert "diffence.t = 200 exceeds ddpm.max_timestep = 160" in refusal(call(n_and_t, trained, *options, "--t", 100, 200))
    assert "--n must be at least 1, not 0." in refusal(call(n_and_t, trained, *options, "--n", 0, 5))
    assert "Did you mean 'hamp'" in refusal(call(n_and_t, trained, "--defense", "undefended", "hmap", *options[2:]))
    few = (*options, "--set", "ddpm.max_timestep=30", "--set", "diffence.t=20")
    assert "trained on T = 1..30" in refusal(call(n_and_t, trained, *few))
