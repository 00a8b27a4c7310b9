"""Small diffusion models: training on T alone, lazy draws against an evaluation, the cost of a query, the figure."""

import json
from pathlib import Path
from typing import Any

import made_up_rows as made
import numpy as np
import pytest
import torch
from conftest import ROOT, Call, refusal, tiny_run
from matplotlib.figure import Figure

from common.commands import evaluate_mia, frontier
from common.config import DDPM, Config, Diffence
from common.data.partition import Examples
from common.diffence import ddpm
from common.diffence.select import Selector
from common.errors import UserError
from common.experiments import draw_cost
from common.experiments import frontier as experiment
from common.report import frontier as figure
from common.report.editions import Edition, Selection, read_folder, select_editions
from common.report.paper import paper_numbers

PAPER = paper_numbers(ROOT)
OPTIONS = ("--device", "cpu", "--set", "attack.nn_epochs=2", "--count", 80, "--minutes", 0.002)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that train in no time, and one timed call."""
    monkeypatch.setattr(experiment, "SIZES", {name: ([8, 8], 1) for name in figure.NETWORKS})
    monkeypatch.setattr(draw_cost, "CALLS", {1: 1, 4: 1})
    monkeypatch.setattr(draw_cost, "published_classifier", lambda run: torch.nn.Sequential(torch.nn.Flatten(), LINEAR))


LINEAR = torch.nn.Linear(3 * 32 * 32, 10)


# training on T alone


def test_timesteps_are_drawn_from_the_first_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends occur and nothing outside; and `min_timestep` = 1 draws the same numbers as ever."""
    seen: list[torch.Tensor] = []

    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            seen.append(timestep + 1)
            return (self.scale * x,)

    members = Examples(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    for first, last in ((1, 160), (158, 160), (160, 160)):
        network = Recorder()
        config = DDPM(min_timestep=first, max_timestep=last, batch_size=400)
        ddpm.ddpm_step(network, torch.optim.Adam(network.parameters()), members, config, 7, 0)
        assert (seen[-1].min(), seen[-1].max()) == (first, last) or first == 1
    torch.manual_seed(7)
    torch.randint(3, (400,))
    assert torch.equal(seen[0], torch.randint(1, 161, (400,)))


def test_a_model_trained_on_t_alone_is_not_asked_about_other_steps() -> None:
    trained = DDPM(min_timestep=160, max_timestep=160)
    assert Config(ddpm=trained).as_dict()["ddpm"]["min_timestep"] == 160
    assert "min_timestep" not in Config().as_dict()["ddpm"]
    for diffence in (Diffence(t=100), Diffence(steps=2)):
        with pytest.raises(UserError, match=r"trained from ddpm\.min_timestep = 160 on"):
            Config(ddpm=trained, diffence=diffence)
    with pytest.raises(UserError, match=r"must lie in 1\.\.ddpm\.max_timestep = 100, not 160"):
        DDPM(min_timestep=160, max_timestep=100)


# lazy draws


def test_a_cell_is_what_an_evaluation_with_these_settings_finds(
    copied: Path, tiny: Path, call: Call, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation draws all N candidates. Behind the same diffusion model, its rows have the same numbers.

    The partition's own numbers of points are as many as the cell has.
    """
    monkeypatch.setattr(figure, "NETWORKS", ("width 16",))
    monkeypatch.setattr(experiment, "NETWORKS", ("width 16",))
    run = tiny_run(copied, tiny)
    answer = call(frontier, copied, "--profile", tiny, *OPTIONS)
    assert answer.code == 0, answer.err
    rows = [json.loads(path.read_text()) for path in sorted(run.results_dir("clean").parent.rglob("frontier-*.json"))]
    assert sorted(row["training"] for row in rows) == sorted(figure.TRAININGS)
    for row in rows:
        assert row["scored"] == {"members": 80, "non_members": 80}
        assert row["config"]["data"]["fit"] == row["config"]["data"]["known"] == 20
        assert row["budget"]["steps"] == row["config"]["ddpm"]["steps"] == row["ddpm"]["steps"]
        assert f"{row['cells'][0]['best']['auc']:.3f}" in answer.out
    row = next(row for row in rows if row["training"] == "up to T")
    changed = [
        f"--set=ddpm.{key}={value}" for key, value in row["config"]["ddpm"].items() if isinstance(value, (int, str, list))
    ]
    numbers = [f"--set=data.{key}={row['config']['data'][key]}" for key in ("fit", "known", "scored")]
    monkeypatch.setattr("common.data.partition.refuse_other_config", lambda *arguments: None)  # these numbers of points
    drawn = call(
        evaluate_mia,
        *(copied, "--defense", "undefended", "--profile", tiny, "--device", "cpu", "--set", "attack.nn_epochs=2"),
        *(*changed, *numbers, "--scenario", "1", "3"),
    )
    assert drawn.code == 0, drawn.err
    for name, cell in zip(("undefended_w_Diffence", "undefended_w_Diffence_scenario3"), row["cells"], strict=True):
        (path,) = run.results_dir("clean").parent.rglob(f"{name}.json")
        evaluation = json.loads(path.read_text())
        for key in ("labels_changed", "no_match", "draws"):
            assert cell[key] == evaluation["diffence"][key]
        assert (cell["interval"] or []) == pytest.approx(evaluation["diffence"]["interval"] or [], abs=1e-3)
        for attack, found in cell["attacks"].items():  # batches of other sizes round otherwise
            assert found["auc"] == pytest.approx(evaluation["attacks"][attack]["auc"], abs=0.01)
        assert row["cost"]["draws"][cell["scenario"]] == pytest.approx(np.mean(list(cell["draws"].values())))


def test_candidates_are_drawn_until_one_qualifies(trained: Path, tiny: Path) -> None:
    """Candidate j of query q has the logit j - q. phi is that logit, so in [1.5, 9] query q needs q + 3 of them, or all 4."""
    run = tiny_run(trained, tiny)
    asked: list[tuple[int, int]] = []

    def reconstruct(images: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        asked.extend(zip(queries.tolist(), numbers.tolist(), strict=True))
        return (numbers - queries).float()[:, None, None, None].expand(-1, 3, 2, 2)

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = x.mean((1, 2, 3))
            return torch.stack([value, torch.zeros_like(value)], dim=1)

    original = np.tile(np.array([[1, 0]], dtype=np.float32), (3, 1))
    arguments = (torch.zeros(3, 3, 2, 2), torch.arange(3), original)
    found = experiment.draw_until(run, Mean(), reconstruct, Selector("1", 1.5, 9.0), *arguments)["candidates"]
    assert sorted(asked) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)]  # N = 4
    assert found[..., 0].tolist() == [[0, 1, 2, 2], [-1, 0, 1, 2], [-2, -1, 0, 1]]
    asked.clear()
    experiment.draw_until(run, Mean(), reconstruct, None, *arguments)
    assert len(asked) == 3 * 4


def test_a_killed_run_goes_on(copied: Path, tiny: Path, call: Call, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it draws, then while it times: no shard is drawn twice, no model trained twice, and no row made twice."""
    monkeypatch.setattr(experiment, "NETWORKS", ("width 16",))
    shards: list[int] = []
    draw, timed, calls = experiment.draw_until, experiment.time_draws, iter(range(10))

    def stop_at_the_third(*arguments: Any) -> Any:
        shards.append(len(arguments[4]))
        if len(shards) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    def stop_at_the_second(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return timed(*arguments)

    monkeypatch.setattr(experiment, "draw_until", stop_at_the_third)
    monkeypatch.setattr(experiment, "time_draws", stop_at_the_second)
    for code in (130, 130, 0, 0):
        answer = call(frontier, copied, "--profile", tiny, *OPTIONS)
        assert answer.code == code, answer.err
    # Of each side and training: 20 points of the defender's, then 100 others. The third was begun twice.
    assert shards == [20, 20, 100, 100, 100, 20, 20, 100, 100]
    assert next(calls) == 3  # two rows, of which one was begun twice


def test_refusals(trained: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--profile", tiny, "--device", "cpu")
    assert "--count must lie in 4..100" in refusal(call(frontier, trained, *options, "--count", 101))
    assert "--minutes must be more than 0" in refusal(call(frontier, trained, *options, "--minutes", 0))
    monkeypatch.setattr(experiment, "unscored_members", lambda data: torch.arange(20))  # the tiny profile scores all members
    guarded = call(frontier, trained, "--defense", "memguard", *options, "--count", 12)
    assert "memguard's guard was trained on" in refusal(guarded)


# the cost of a query


def test_the_cost_of_a_query_is_a_line_in_its_draws(trained: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier of 1 unit and a reconstruction of 2 by a fake clock: a query with d draws costs 1 + 3 d units."""
    clock = [0.0]

    class Slow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            clock[0] += len(x)
            return torch.zeros(len(x), 2)

    def reconstruct(images: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        clock[0] += 2 * len(images)
        return images

    monkeypatch.setattr(draw_cost.time, "process_time", lambda: clock[0])
    arguments = (tiny_run(trained, tiny), Slow(), reconstruct, torch.rand(8, 3, 2, 2))
    for batch in draw_cost.CALLS:
        facts = draw_cost.time_queries(*arguments, batch, {"1": 10.0, "3": 2.5})  # type: ignore[arg-type]
        assert (facts["bare_ms"], facts["one_draw_ms"], facts["further_draw_ms"]) == pytest.approx((1000, 4000, 3000))
        assert facts["over_bare"] == pytest.approx({"1": 31, "3": 8.5})


def test_flops_are_those_of_the_layers() -> None:
    """A linear layer of 30 x 20 weights: 600 multiply-adds, which are 1,200 operations."""
    assert draw_cost.gflop(torch.nn.Linear(30, 20), torch.rand(1, 30)) == pytest.approx(1200e-9)


# the figure


def row(network: str, training: str, auc: float, ratio: float) -> made.Row:
    cells = [
        {
            "scenario": one,
            "best": {"auc": auc},
            "auc_interval": [auc - 0.02, auc + 0.02],
            "no_match": {"members": 20, "non_members": 40},
        }
        for one in ("1", "3")
    ]
    queries = [
        {"classifier": name, "batch": batch, "over_bare": {"1": 2 * ratio, "3": ratio}}
        for name in ("trained", "published")
        for batch in (1, 16)
    ]
    return made.provenance("frontier", "cifar10", "narrow", "clean", "undefended", 0, []) | {
        "network": network,
        "training": training,
        "budget": {"minutes": 5, "steps": 700, "seconds_a_step": 0.4},
        "scored": {"members": 1000, "non_members": 1000},
        "gap_floor": 0.62,
        "without": {"best": {"auc": 0.77}},
        "cells": cells,
        "cost": {"gflop": {"unet": 0.12}, "draws": {"1": 4.5, "3": 3.5}, "queries": queries},
    }


def edition_of(root: Path, *rows: made.Row) -> Edition:
    (edition,) = select_editions(read_folder(made.write_rows(root, *rows)), Selection())
    return edition


def test_the_goal_is_judged_against_the_largest_network(tmp_path: Path) -> None:
    """The intervals of the largest network end at AUC .66 and .65. Whoever is cheap and below .65 meets the goal."""
    rows = [
        row("width 16", "up to T", 0.649, 4.9),
        row("width 16", "T alone", 0.651, 4.9),
        row("width 32", "T alone", 0.64, 5.5),  # 11 times in scenario 1
        row("width 64", "up to T", 0.64, 9.0),
        row("width 64", "T alone", 0.63, 9.0),
    ]
    made_figure = figure.figure_frontier(edition_of(tmp_path, *rows), PAPER)
    assert "in scenario 3 by width 16 trained on up to T;" in made_figure.caption
    assert "in scenario 1 by width 16 trained on up to T, width 32 trained on T alone." in made_figure.caption
    assert isinstance(made_figure.drawing, Figure) and len(made_figure.drawing.axes) == 2
    assert made_figure.numbers is not None
    lines = {
        line.heads[1:]: [made_figure.numbers.text(one) for one in line.cells.values()] for line in made_figure.numbers.lines
    }
    assert lines["width 16", "up to T"] == [
        "0.12",
        "700",
        "64.9",
        "3.0",
        "3.50",
        "4.9",
        "4.9",
        "64.9",
        "3.0",
        "4.50",
        "9.8",
        "9.8",
    ]
    assert set(lines["width 32", "up to T"]) == {"[a]"}
    assert "`python cifar10/evaluate_MIAs/frontier.py --profile narrow`" in made_figure.numbers.footnotes()[-1]
    judged = figure.figure_frontier(edition_of(tmp_path / "few", *rows[:3]), PAPER)
    assert "the goal cannot be judged" in judged.caption
