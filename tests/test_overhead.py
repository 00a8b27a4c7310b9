"""The time of a query and the seconds of a training: what is counted, how it adds up, and the commands that write the rows."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import Call, planted_memguard, refusal, tiny_run

from common.commands import overhead, train_defense, training_cost
from common.defenses import with_options
from common.experiments import overhead as experiment
from common.experiments.overhead import summarised, time_calls

CPU: Any = SimpleNamespace(device=torch.device("cpu"))


def waiting(wall: float, cpu: float) -> Callable[[torch.Tensor], int]:
    """An answer that sleeps for `wall` seconds and computes for `cpu` seconds, and draws 3 candidates an image."""

    def answer(images: torch.Tensor) -> int:
        time.sleep(wall)
        started = time.process_time()
        while time.process_time() - started < cpu:
            pass
        return 3 * len(images)

    return answer


def test_a_call_is_divided_by_its_images() -> None:
    """20 ms of sleep and 10 ms of work for 4 images: 7.5 ms of wall time and 2.5 ms of CPU time for each."""
    facts = summarised(time_calls(CPU, waiting(0.02, 0.01), torch.rand(10, 3, 4, 4), 4), 4, "3")
    assert facts["calls"] == 2  # the last two images do not fill a call
    assert facts["draws"] == 3
    assert facts["wall_ms"]["p50"] >= 7.5
    assert 2.5 <= facts["cpu_ms"]["p50"] < 4.5
    assert facts["wall_ms"]["p50"] <= facts["wall_ms"]["p95"]


def test_the_command_times_every_way_to_answer(copied_drawn: Path, tiny: Path, call: Call) -> None:
    options = ("--profile", tiny, "--device", "cpu", "--count", 6, "--batch", 4)
    answer = call(overhead, copied_drawn, "--defense", "undefended", *options, "--scenario", "1", "3", "average")
    assert answer.code == 0, answer.err
    run = tiny_run(copied_drawn, tiny)
    row = json.loads((run.results_dir("clean") / "overhead-undefended-batch4-6images.json").read_text())
    ways = [(one["scenario"], one["draws_at_once"], one["batch"]) for one in row["answers"]]
    expected = [(None, None), ("1", 1), ("1", 4), ("3", 1), ("3", 4), ("average", 4)]  # N = 4
    assert ways == [(*way, size) for way in expected for size in (1, 4)]
    found = dict(zip(ways, row["answers"], strict=True))
    assert found[None, None, 1]["draws"] is None and found[None, None, 1]["calls"] == 12
    assert found["1", 4, 1]["draws"] == found["average", 4, 4]["draws"] == 4
    assert 1 <= found["3", 1, 1]["draws"] <= 4
    assert found["3", 4, 1]["wall_ms"]["p50"] > found[None, None, 1]["wall_ms"]["p50"]  # five passes instead of one
    assert not list((run.outputs_dir / "overhead").iterdir())  # a second measurement is a new one


def test_memguard_s_noise_is_part_of_its_answer(
    copied_drawn: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its first way, the measurement goes on with the second."""
    run = with_options(tiny_run(copied_drawn, tiny, "defenses.memguard={steps: 3}"))
    planted_memguard(run)
    released: list[int] = []
    release, timed, calls = experiment.released, experiment.time_calls, []

    def count(model: Any, logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        released.append(len(images))
        answer = release(model, logits, images)
        assert model.post_inference is not None and not torch.equal(answer, logits)
        return answer

    def stop_at_the_second(*arguments: Any) -> Any:
        calls.append(arguments[3])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return timed(*arguments)

    monkeypatch.setattr(experiment, "released", count)
    monkeypatch.setattr(experiment, "time_calls", stop_at_the_second)
    options = ("--defense", "memguard", "--profile", tiny, "--device", "cpu", "--count", 3, "--batch", 2, "--scenario")
    steps = ("--set", "defenses.memguard={steps: 3}")
    assert call(overhead, copied_drawn, *options, *steps).code == 130
    assert call(overhead, copied_drawn, *options, *steps).code == 0
    assert calls == [1, 2, 2]
    assert released == [1] * (3 + 6) + [2] * (3 + 3)  # three calls to warm up, then all


def test_refusals(trained: Path, tiny: Path, call: Call) -> None:
    options = ("--defense", "undefended", "--profile", tiny, "--device", "cpu")
    assert "--count must lie in 1..100" in refusal(call(overhead, trained, *options, "--count", 101))
    assert "--batch must lie in 1..10" in refusal(call(overhead, trained, *options, "--count", 5, "--batch", 11))
    assert "--count must be at least 1, not 0." in refusal(call(overhead, trained, *options, "--count", 0))
    assert "Make it with: python synthetic/train_defense.py --defense hamp" in refusal(
        call(training_cost, trained, "--defense", "hamp", *options[2:])
    )


def test_the_cost_of_a_training_is_that_of_its_logs(copied: Path, tiny: Path, call: Call) -> None:
    """SELENA's sub-models are part of it, the model that MemGuard needs is named beside it, and so is the diffusion model."""
    options = ("--profile", tiny, "--device", "cpu", "--set", "defenses.selena={k: 2, l: 1}")
    run = tiny_run(copied, tiny, "defenses.selena={k: 2, l: 1}")
    assert call(train_defense, copied, "--defense", "selena", *options).code == 0
    planted_memguard(with_options(run))
    (run.models_dir / "memguard.log.csv").write_text("epoch,seconds\n1,2.5\n2,3.5\n")
    costs = {}
    for defense in ("undefended", "selena", "memguard"):
        answer = call(training_cost, copied, "--defense", defense, *options)
        assert answer.code == 0, answer.err
        costs[defense] = json.loads((run.results_dir("clean") / f"training_cost-{defense}.json").read_text())
    for defense, row in costs.items():
        logs = [pd.read_csv(run.models_dir / f"{one['name']}.log.csv")["seconds"] for one in row["trainings"]]
        assert row["seconds"] == pytest.approx(sum(log.sum() for log in logs))
        assert [one["epochs"] for one in row["trainings"]] == [len(log) for log in logs]
        assert row["trainings"][-1]["name"] == defense
    assert len(costs["selena"]["trainings"]) == 3
    assert (costs["memguard"]["seconds"], costs["memguard"]["trainings"][0]["epoch_seconds"]) == (6, {"p50": 3, "mean": 3})
    assert costs["memguard"]["needs"] == {"undefended": costs["undefended"]["seconds"]}
    assert costs["undefended"]["ddpm"]["steps"] == 20 and costs["undefended"]["ddpm"]["seconds"] > 0
    log = run.ddpm_dir / "log.csv"
    pd.read_csv(log).drop(columns="seconds").to_csv(log, index=False)  # as version 0.2 wrote it
    assert call(training_cost, copied, "--defense", "undefended", *options).code == 0
    assert json.loads((run.results_dir("clean") / "training_cost-undefended.json").read_text())["ddpm"] is None
