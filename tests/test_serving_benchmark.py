"""The benchmark of serving: what it adds up, every way on a trained run, and the table that is made from its file."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Call

from benchmarks import serving
from common.report.serving import COMMAND, serving_table


def test_a_timed_network_adds_up_its_own_time() -> None:
    def work(x: int, factor: int = 1) -> int:
        started = time.process_time()
        while time.process_time() - started < 0.01:
            pass
        return factor * x

    network = serving.Timed(work)  # type: ignore[arg-type]
    assert [network(2), network(2, factor=3)] == [2, 6]
    assert 0.02 <= network.seconds < 0.04


def test_the_numbers_of_a_way() -> None:
    """Calls of 2 images: 10 of 4 ms, of which the UNet has 2 and the classifier 1; one takes 104 ms of wall time."""
    ones = np.ones(10)
    wall = np.where(np.arange(10) == 3, 0.104, 0.004)
    timed = {"wall": wall, "cpu": 0.004 * ones, "unet": 0.002 * ones, "classifier": 0.001 * ones, "draws": 5 * ones}
    cpu = np.where(np.arange(10) == 0, 0.5, 0.0005)  # the first call of the bare classifier was disturbed
    found = serving.summarised(timed, timed | {"cpu": cpu}, 2)
    assert found["images_per_second"] == pytest.approx(20 / 0.14)
    assert found["call_ms"]["p50"] == pytest.approx(4) and found["call_ms"]["p99"] == pytest.approx(95)
    assert (found["cpu_ms"], found["draws"], found["over_bare"]) == pytest.approx((2, 2.5, 8))
    assert found["share"] == pytest.approx({"unet": 0.5, "classifier": 0.25, "rest": 0.25})


def test_every_way_is_measured_and_shown(
    copied_drawn: Path, tiny: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "BATCHES", (1, 4))
    shutil.copy(tiny, copied_drawn / "configs" / "tiny.yaml")
    out = tmp_path / "results" / "benchmark_serving_synthetic_tiny.json"
    answer = call(serving.main, copied_drawn.parent, "--dataset", "synthetic", "--profile", "tiny", "--calls", 5, "--out", out)
    assert answer.code == 0, answer.err
    found = json.loads(out.read_text())
    ways = [(one["batch"], one["scenario"], one["draws_at_once"]) for one in found["answers"]]
    expected = [(None, None), ("1", 1), ("1", 4), ("3", 1), ("3", 4)]  # N = 4
    assert ways == [(batch, *way) for batch in serving.BATCHES for way in expected]
    for one in found["answers"]:
        assert sum(one["share"].values()) == pytest.approx(1) and min(one["share"].values()) >= 0
        least, most = {None: (0, 0), 1: (1, 4), 4: (4, 4)}[one["draws_at_once"]]
        assert one["calls"] == 5 and least <= one["draws"] <= most
    assert {"processor", "cores"} == set(found["machine"]) and len(found["commit"]) >= 7
    table = serving_table(tmp_path)
    last = found["answers"][-1]
    assert f"| {last['images_per_second']:.1f} " in table and f"commit {found['commit']}" in table
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 2 + len(ways)


def test_without_a_measurement_the_page_has_the_command(tmp_path: Path) -> None:
    assert f"`{COMMAND}`" in serving_table(tmp_path)


def test_the_networks_are_timed_inside_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fake clock that only the networks move, nothing is left for the rest."""
    clock = [0.0]

    def move(x: torch.Tensor) -> torch.Tensor:
        clock[0] += len(x)
        return x

    monkeypatch.setattr(serving.time, "process_time", lambda: clock[0])
    networks = {"unet": serving.Timed(move), "classifier": serving.Timed(move)}  # type: ignore[arg-type]

    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return networks["classifier"](networks["unet"](networks["unet"](x)))

    ways: list[serving.Way] = [(None, None, networks["classifier"]), ("3", 1, Both())]
    bare, both = serving.time_ways(ways, networks, torch.rand(6, 3, 2, 2), 2, 3)
    assert (bare["share"]["classifier"], bare["over_bare"]) == (1, 1)
    assert both["over_bare"] == 3 and both["share"]["rest"] == pytest.approx(0)
    assert both["share"]["unet"] == pytest.approx(2 / 3)


def test_what_the_serving_page_says_of_drawing_at_once() -> None:
    row = json.loads((ROOT / "results" / "benchmark_serving_synthetic_small.json").read_text())
    single = {(one["scenario"], one["draws_at_once"]): one for one in row["answers"] if one["batch"] == 1}
    assert single["1", 1]["draws"] > 0.95 * row["n"]
    assert single["1", row["n"]]["over_bare"] < single["1", 1]["over_bare"]
    assert single["3", 1]["over_bare"] < single["3", row["n"]]["over_bare"]
