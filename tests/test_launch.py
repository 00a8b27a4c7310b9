"""The plan of all-train-all.sh: dependency order, what exists is skipped, a failure stops its dependents and no others."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import run_script

from common.config import Config
from common.defenses import DEFENSES, with_options
from common.launch import DONE, MISSING, Job, jobs_of, run_jobs
from common.run import Run


def planned(folder: Path, *defenses: str) -> list[Job]:
    run = with_options(Run(folder / "synthetic", "small", Config(), 0, torch.device("cpu")))
    return jobs_of(run, defenses, ["1", "3"], "clean")


def test_every_job_comes_after_those_it_needs(tmp_path: Path) -> None:
    seen: set[str] = set()
    for job in planned(tmp_path, *DEFENSES):
        assert set(job.needs) <= seen
        seen.add(job.name)
    assert {f"synthetic evaluate {name}" for name in DEFENSES} <= seen
    assert sum(name.startswith("synthetic train selena ") for name in seen) == 25


def test_memguard_brings_the_training_it_guards(tmp_path: Path) -> None:
    jobs = {job.name: job for job in planned(tmp_path, "memguard")}
    assert "synthetic train undefended" in jobs["synthetic train memguard"].needs
    assert "synthetic evaluate undefended" not in jobs


def fake(tmp_path: Path, name: str, code: int, *needs: str) -> Job:
    """A job that leaves a file named after it and exits with `code`."""
    product = tmp_path / name
    script = f"import pathlib, sys; print('said', {name!r}); pathlib.Path({str(product)!r}).touch(); sys.exit({code})"
    return Job(name, ("python", "-c", script), needs, lambda: DONE if product.exists() else MISSING, tmp_path / f"{name}.log")


def test_a_failure_stops_its_dependents_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [
        fake(tmp_path, "a", 0),
        fake(tmp_path, "bad", 3, "a"),
        fake(tmp_path, "after-bad", 0, "bad"),
        fake(tmp_path, "after-that", 0, "after-bad"),
        fake(tmp_path, "c", 0, "a"),
    ]
    assert not run_jobs(jobs, float("inf"))
    made = {path.name for path in tmp_path.iterdir() if path.suffix != ".log"}
    assert made == {"a", "bad", "c"}
    said = capfd.readouterr().err
    assert "bad failed" in said and "said bad" in said and "python -c" in said


def test_what_exists_is_skipped_and_what_differs_is_left_alone(tmp_path: Path) -> None:
    done, other = fake(tmp_path, "done", 3), fake(tmp_path, "other", 0)
    (tmp_path / "done").touch()
    assert run_jobs([done], float("inf")) and not done.log.exists()
    other = dataclasses.replace(other, state=lambda: "made under other settings (seed: 0 -> 1)")
    after = fake(tmp_path, "after", 0, "other")
    assert not run_jobs([other, after], float("inf"))
    assert not (tmp_path / "other").exists() and not (tmp_path / "after").exists()


def test_time_runs_out(tmp_path: Path) -> None:
    assert not run_jobs([fake(tmp_path, "late", 0)], 0.0)
    assert not (tmp_path / "late").exists()


def test_the_script(workspace: Path, tiny: Path) -> None:
    options = ["--datasets", "synthetic", "--profile", tiny, "--device", "cpu", "--dry-run"]
    shown = run_script(workspace, "all-train-all.sh", *options, "--defenses", "undefended", "hamp")
    assert shown.code == 0, shown.err
    assert "train_defense.py --defense hamp" in shown.out and MISSING in shown.out
    wrong = run_script(workspace, "all-train-all.sh", *options, "--defenses", "hmap")
    assert wrong.code == 2 and "Did you mean 'hamp'" in wrong.err
