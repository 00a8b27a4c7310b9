"""`python -m common.reproduce`: the minutes of a plan from a short measurement of the device, and the launcher behind it."""

import dataclasses
import shutil
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Call, refusal, run_script, tiny_run

from common import launch
from common.config import Attack, Config, Data, Diffence, Train
from common.data.partition import load_split
from common.defenses import DEFENSES, with_options
from common.experiments.plan import DONE, MISSING, Job, plan_jobs
from common.reproduce import throughput, work
from common.reproduce.__main__ import main, parse
from common.reproduce.forecast import FITS, LATER, STARTED, forecast
from common.reproduce.throughput import TRIALS, Trial, measure, seconds_of
from common.reproduce.work import Work, work_of
from common.run import Run

# 100 members in batches of 10 for 6 epochs: 10 steps an epoch. 2 * (4 + 5 + 6) = 30 images are evaluated.
CONFIG = Config(
    data=Data(members=100, reference=55, non_members=40, fit=4, known=5, scored=6),
    train=Train(epochs=6, batch_size=10, best_on_test=False),
    diffence=Diffence(n=3),
    attack=Attack(nn_epochs=10),
    defenses={
        "selena": {"k": 5, "l": 2},
        "advreg": {"attack_batches": 7, "defender_batches": 4, "warmup_epochs": 2, "warmup_attack_passes": 3},
        "dpsgd-strong": {"batch_size": 30, "epochs": 4},
        "memguard": {"epochs": 8, "batch_size": 20},
    },
)


def works(config: Config, *defenses: str) -> dict[str, Work]:
    """The work of each job by its name, without the start of the job, which every job has once."""
    run = with_options(Run(ROOT / "synthetic", "nowhere", config, 0, torch.device("cpu")))
    found = {}
    for job in plan_jobs([run], defenses, work.SCENARIOS, work.PROTOCOL):
        content = work_of(job, run)
        assert content.pop(work.START) == 1
        found[job.name.removeprefix("synthetic ")] = content
    return found


# The arithmetic, worked by hand


def test_the_work_of_every_job() -> None:
    jobs = works(CONFIG, *DEFENSES)
    accuracies = {work.PREDICTION: 100 + 40}  # which the command prints after a training
    assert jobs["partition"] == {}
    assert jobs["ddpm"] == {work.DIFFUSION_STEP: 800_000}
    assert jobs["candidates"] == {work.CANDIDATE: 30 * 3}
    for plain in ("undefended", "hamp", "relaxloss"):
        assert jobs[f"train {plain}"] == {work.CLASSIFIER_STEP: 6 * 10, **accuracies}
    # 60 of 100 members: 6 steps an epoch. The student is told by 2 sub-models about each of the 100 members.
    assert [jobs[f"train selena {i}"] for i in range(5)] == [{work.CLASSIFIER_STEP: 6 * 6}] * 5
    assert jobs["train selena"] == {work.CLASSIFIER_STEP: 60, work.PREDICTION: 2 * 100 + 140}
    # Before the first round 3 passes of 5 batches. Then 4 epochs of 3 rounds (4 + 4 + 2 steps of the classifier), 7 steps each.
    assert jobs["train advreg"] == {work.CLASSIFIER_STEP: 60, work.ATTACKER_STEP: 3 * 5 + 4 * 3 * 7, **accuracies}
    for private in ("dpsgd", "dpsgd-private"):
        assert jobs[f"train {private}"] == {work.DPSGD_STEP: 60, **accuracies}
    assert jobs["train dpsgd-strong"] == {work.STRONG_STEP: 4 * 3, **accuracies}
    # Members 0..5 (released) and 9..14 (clean) are scored: 88 members and 55 reference images, 8 batches of 20.
    assert jobs["train memguard"] == {work.GUARD_STEP: 8 * 8, work.PREDICTION: 88 + 55 + 140}
    # The image and 3 candidates; 10 epochs, and 2 under shuffled membership, for 4 sets of outputs.
    assert jobs["evaluate hamp"] == {work.PREDICTION: 30 * 4, work.ATTACK_EPOCH: 4 * 12}


def test_the_work_under_other_settings() -> None:
    """An incomplete batch is a step, but not of DP-SGD. The best epoch on the test set costs predictions; MemGuard has two."""
    tested = dataclasses.replace(CONFIG, train=Train(epochs=6, batch_size=16, best_on_test=True))
    jobs = works(tested, "undefended", "dpsgd", "dpsgd-strong", "memguard", "advreg")
    assert jobs["train undefended"] == {work.CLASSIFIER_STEP: 6 * 7, work.PREDICTION: 6 * 40 + 140}
    assert jobs["train dpsgd"] == {work.DPSGD_STEP: 6 * 6, work.PREDICTION: 6 * 40 + 140}
    assert jobs["train dpsgd-strong"] == {work.STRONG_STEP: 4 * 3, work.PREDICTION: 4 * 40 + 140}
    assert jobs["train memguard"] == {work.GUARD_STEP: 2 * 8 * 8, work.PREDICTION: 2 * (88 + 55) + 140}
    assert jobs["train advreg"][work.ATTACKER_STEP] == 3 * 3 + 4 * 2 * 7  # rounds of 4 + 3 steps
    short = dataclasses.replace(CONFIG, train=Train(epochs=2, batch_size=10, best_on_test=False))
    assert work.ATTACKER_STEP not in works(short, "advreg")["train advreg"]  # warm-up epochs alone
    shadows = works(dataclasses.replace(CONFIG, attack=Attack(shadows=4, nn_epochs=10)), "selena")
    assert shadows["shadow selena 0"][work.CLASSIFIER_STEP] == 5 * 36 + 60
    assert shadows["evaluate selena"][work.PREDICTION] == 5 * 30 * 4


def job(name: str, state: str, *needs: str) -> Job:
    return Job(name, ("python",), needs, lambda: state, Path("none.log"))


def test_minutes_and_how_far_they_reach() -> None:
    jobs = [
        job("a", DONE),
        job("b", MISSING, "a"),
        job("other", "made under other settings (seed: 0 -> 1)"),
        job("after", MISSING, "other"),
        job("c", MISSING, "b"),
        job("d", MISSING),
    ]
    amounts = [Work({"x": 1000}), Work({"x": 40, "y": 10}), Work({"x": 9}), Work({"x": 9}), Work({"y": 60}), Work({"x": 30})]
    lines = forecast(jobs, amounts, {"x": 2.0, "y": 4.0}, minutes=5)
    assert [(line.minutes, line.total, line.reach) for line in lines] == [
        (0, 0, ""),
        (2, 2, FITS),
        (0, 2, ""),
        (0, 2, ""),
        (4, 6, STARTED),
        (1, 7, LATER),
    ]
    assert lines[3].state == "needs other"
    assert {line.reach for line in forecast(jobs, amounts, {"x": 2.0, "y": 4.0})} == {"", FITS}
    assert forecast(jobs, amounts, {"x": 2.0, "y": 4.0}, minutes=2)[4].reach == LATER  # nothing starts at the end


# The measurement


class Clock:
    """A clock that work moves: `fixed` seconds, `each` for an image, and `cold` more when a size is new."""

    def __init__(self, each: float, fixed: float = 0.0, cold: float = 0.0) -> None:
        self.seconds, self.each, self.fixed, self.cold = 0.0, each, fixed, cold
        self.sizes: list[int] = []

    def now(self) -> float:
        return self.seconds

    def work(self, size: int) -> None:
        self.seconds += self.fixed + self.each * size + (self.cold if size not in self.sizes else 0)
        self.sizes.append(size)


@pytest.mark.parametrize("each", [1e-5, 1e-3, 0.01, 0.03])
def test_a_measurement_keeps_its_time_and_finds_the_speed(each: float) -> None:
    """By the full size where the time allows it, else by the line through two smaller ones."""
    clock = Clock(each, fixed=0.02, cold=0.1)
    assert seconds_of(Trial(clock.work, 128), 2.5, clock.now) == pytest.approx(0.02 + 128 * each, rel=0.15)
    assert clock.seconds <= 2.5 + clock.cold  # which nobody can expect
    assert (max(clock.sizes) == 128) == (each < 0.01)


def test_work_that_is_too_slow_is_done_once() -> None:
    clock = Clock(each=3.0)
    assert seconds_of(Trial(clock.work, 128), 2.5, clock.now) == pytest.approx(128 * 3)
    assert clock.sizes == [2]


def test_the_forecast_of_a_training_agrees_with_its_time(trained: Path, tiny: Path) -> None:
    """Within a factor of 3, on a machine that may be busy with other things, and of which 6 seconds are taken at most."""
    run, split = with_options(tiny_run(trained, tiny, seed=5)), load_split(tiny_run(trained, tiny))
    units = {work.CLASSIFIER_STEP, work.DPSGD_STEP, work.PREDICTION}
    started = time.perf_counter()
    seconds = measure(run, units, seconds=6)
    assert time.perf_counter() - started < 1.5 * 6 and set(seconds) == units
    for defense in ("undefended", "dpsgd"):
        predicted = sum(count * seconds[unit] for unit, count in work.TRAININGS.get(defense, work.plain)(run).items())
        started = time.perf_counter()
        DEFENSES[defense].train(run, split)
        assert predicted / 3 < time.perf_counter() - started < predicted * 3


# The command


def test_the_profile_is_gpu_where_there_is_one() -> None:
    assert parse(ROOT, ["--minutes", "25"]).profile == "gpu"
    assert parse(ROOT, ["--dataset", "svhn"]).profile == "paper"
    assert parse(ROOT, ["--dataset", "svhn", "--profile", "small"]).profile == "small"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes", "0"], "--minutes must be positive, not 0."),
        (["--minutes", "nan"], "--minutes must be positive, not nan."),
        (["--dataset", "cifar"], "unknown data set 'cifar'. Did you mean 'cifar10'?"),
        (["--defenses", "hmap"], "unknown defense 'hmap'. Did you mean 'hamp'?"),
        (["--profile", "papr"], "unknown profile of cifar10 'papr'"),
    ],
)
def test_wrong_arguments(call: Call, arguments: list[str], words: str) -> None:
    assert words in refusal(call(main, ROOT, "--dry-run", *arguments))


def test_the_forecast_has_the_jobs_of_the_launcher(tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its order, with all units measured, for two seconds here. Nothing is run."""
    given: dict[str, object] = {}
    monkeypatch.setattr(launch, "only_launcher", lambda folders: nullcontext())
    monkeypatch.setattr(launch, "run_jobs", lambda jobs, minutes, *_: given.update(jobs=jobs, minutes=minutes) or True)
    monkeypatch.setattr(throughput, "measure", partial(measure, seconds=2))
    command = ["--dataset", "synthetic", "--profile", tiny, "--device", "cpu", "--minutes", "1e-5"]
    command += ["--set", "data.members=250"]  # of which some are not scored, for MemGuard's guard
    shown = call(main, ROOT, *command, "--forecast")
    assert shown.code == 0, shown.err
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.out.splitlines() if line.startswith("| ")]
    units, jobs = ([line for line in cells if len(line) == length] for length in (3, 5))
    assert [line[0] for line in units[1:]] == [work.START, *TRIALS]
    assert all(float(line[1].replace(",", "")) > 0 for line in units[1:])
    assert jobs[0][4] == "after 1e-05 minutes" and [line[4] for line in jobs[1:]] == [STARTED, *[LATER] * (len(jobs) - 2)]
    assert isinstance(given["jobs"], list) and [job.name for job in given["jobs"]] == [line[0] for line in jobs[1:]]
    assert given["minutes"] == 1e-5
    given.clear()
    assert "evaluate memguard" in call(main, ROOT, *command, "--dry-run").out and not given


def test_stopped_by_the_minutes_and_continued(trained: Path, tiny: Path, tmp_path: Path) -> None:
    tree = Path(shutil.copytree(trained.parent, tmp_path / "tree", ignore=shutil.ignore_patterns("candidates", "results")))
    command = ["--dataset", "synthetic", "--profile", tiny, "--device", "cpu", "--defenses", "undefended"]
    row = tree / "synthetic/evaluate_MIAs/results/tiny/undefended_w_Diffence_scenario2.json"
    stopped = run_script(tree, "common.reproduce", *command, "--minutes", "0.01", options=("-m",))
    assert stopped.code == 1 and "out of time" in stopped.out and not row.exists(), stopped
    finished = run_script(tree, "common.reproduce", *command, options=("-m",))
    assert finished.code == 0 and row.is_file(), finished
