"""Running a plan: what exists is skipped, a failure stops its dependents and no others, workers, one launcher at a time."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Call, refusal, run_script, script_environment, tiny_run

from common import launch
from common.defenses import with_options
from common.errors import UserError
from common.experiments.plan import DONE, MISSING, Job
from common.files import differences
from common.workers import only_launcher, run_jobs, slot_environment


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


def test_time_runs_out_within_a_job(tmp_path: Path) -> None:
    """It is stopped, nothing starts after it, and the same command does what is left."""
    jobs = [
        fake(tmp_path, "first", 0),
        dataclasses.replace(fake(tmp_path, "long", 0), command=("python", "-c", "import time; time.sleep(600)")),
        fake(tmp_path, "late", 0),
    ]
    started = time.monotonic()
    assert not run_jobs(jobs, 0.05)
    assert time.monotonic() - started < 60
    assert (tmp_path / "first").exists() and not (tmp_path / "late").exists()
    assert run_jobs([jobs[0], fake(tmp_path, "long", 0), jobs[2]], float("inf"))
    assert (tmp_path / "long").exists() and (tmp_path / "late").exists()


def test_the_script(workspace: Path, tiny: Path) -> None:
    options = ["--datasets", "synthetic", "--profile", tiny, "--device", "cpu", "--dry-run"]
    shown = run_script(workspace, "all-train-all.sh", *options, "--defenses", "undefended", "hamp")
    assert shown.code == 0, shown.err
    assert "train_defense.py --defense hamp" in shown.out and MISSING in shown.out
    seeds = run_script(workspace, "all-train-all.sh", *options, "--defenses", "hamp", "--seed", "4", "--seeds", "2")
    assert [f"--seed {seed} " in seeds.out for seed in range(3, 7)] == [False, True, True, False]
    none = run_script(workspace, "all-train-all.sh", *options, "--seeds", "0")
    assert none.code == 2 and "--seeds must be at least 1, not 0." in none.err
    wrong = run_script(workspace, "all-train-all.sh", *options, "--defenses", "hmap")
    assert wrong.code == 2 and "Did you mean 'hamp'" in wrong.err


def test_plans_that_cannot_run_are_refused(call: Call) -> None:
    assert "Did you mean 'label_only'" in refusal(call(launch.main, ROOT, "--dry-run", "--experiments", "label_onyl"))
    released = ("--dry-run", "--datasets", "cifar10", "--profile", "gpu", "--protocol", "released")
    assert "--set train.best_on_test=true" in refusal(call(launch.main, ROOT, *released))
    assert "take --device cuda" in refusal(call(launch.main, ROOT, "--dry-run", "--workers", 2, "--device", "cuda:1"))


def test_as_far_as_the_minutes_reach(trained: Path, tiny: Path, tmp_path: Path) -> None:
    """`--profile gpu --minutes 25`, proven where there is no GPU: stopped in time, then continued, in order of importance."""
    tree = Path(shutil.copytree(trained.parent, tmp_path / "tree", ignore=shutil.ignore_patterns("candidates", "results")))
    options = ["--datasets", "synthetic", "--defenses", "undefended", "hamp", "--profile", tiny, "--device", "cpu"]
    stopped = run_script(tree, "all-train-all.sh", *options, "--scenario", "3", "--minutes", "0.02")
    assert stopped.code == 1 and "out of time" in stopped.out, stopped
    results = tree / "synthetic/evaluate_MIAs/results/tiny"
    assert not (results / "hamp.json").exists()
    finished = run_script(tree, "all-train-all.sh", *options, "--scenario", "3")
    assert finished.code == 0, finished
    written = sorted(results.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.stem for path in written] == [
        "undefended",
        "undefended_w_Diffence_scenario3",
        "hamp",
        "hamp_w_Diffence_scenario3",
    ]


def test_the_gpu_profile_is_the_paper_s_but_for_what_time_forbids(workspace: Path) -> None:
    made, paper = (with_options(tiny_run(workspace / "cifar10", Path(name))) for name in ("gpu", "paper"))
    changed = {line.split(":")[0] for line in differences(paper.config.as_dict(), made.config.as_dict())}
    assert {key.split(".")[0] for key in changed} == {"train", "ddpm", "defenses"}
    assert {key for key in changed if not key.startswith("ddpm.")} == {
        "train.best_on_test",
        "defenses.selena.k",
        "defenses.selena.l",
        "defenses.advreg.attack_batches",
    }


# Several workers


def slow(tmp_path: Path, name: str, *needs: str) -> Job:
    """A job that waits until two of its kind run at the same time, for at most 20 seconds, and says which threads it has."""
    script = (
        "import os, pathlib, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r}); (folder / 'running-{name}').touch()\n"
        "end = time.time() + 20\n"
        "while time.time() < end and len(list(folder.glob('running-*'))) < 2: time.sleep(0.02)\n"
        "print(os.environ['OMP_NUM_THREADS'])\n"
        f"sys.exit(time.time() > end or (folder / {name!r}).touch())"
    )
    product = tmp_path / name
    return Job(name, ("python", "-c", script), needs, lambda: DONE if product.exists() else MISSING, tmp_path / f"{name}.log")


def test_workers_run_side_by_side_and_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run_jobs([slow(tmp_path, "a"), slow(tmp_path, "b"), fake(tmp_path, "after", 0, "a", "b")], workers=2)
    threads = {(tmp_path / f"{name}.log").read_text().strip() for name in ("a", "b")}
    assert threads == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_workers_respect_the_order_of_needs(tmp_path: Path) -> None:
    jobs = [fake(tmp_path, "a", 0), fake(tmp_path, "bad", 3), fake(tmp_path, "b", 0, "a"), fake(tmp_path, "c", 0, "b", "bad")]
    assert not run_jobs([*jobs, fake(tmp_path, "d", 0, "b")], workers=3)
    made = sorted((path for path in tmp_path.iterdir() if path.suffix != ".log"), key=lambda path: path.stat().st_mtime_ns)
    assert {path.name for path in made} == {"a", "bad", "b", "d"}
    names = [path.name for path in made]
    assert names.index("a") < names.index("b") < names.index("d")


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    assert slot_environment(0, 1, gpus=4) == {}
    assert [slot_environment(slot, 4, gpus=2, cores=16) for slot in (0, 1, 2)] == [
        {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "4"} for gpu in ("0", "1", "0")
    ]
    assert slot_environment(5, 8, gpus=1, cores=4) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert slot_environment(0, 2, gpus=0, cores=8) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")  # the GPUs that the user may have, in a machine of more
    assert [slot_environment(slot, 2, gpus=2)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["2", "3"]


def test_a_second_launcher_is_refused_until_the_first_is_dead(workspace: Path, tmp_path: Path) -> None:
    tree = Path(shutil.copytree(workspace, tmp_path / "tree"))
    holding = (
        "import sys, time; from pathlib import Path; from common.workers import only_launcher\n"
        "with only_launcher([Path('synthetic')]): print('held', flush=True); time.sleep(600)"
    )
    command = ["all-train-all.sh", "--datasets", "synthetic", "--minutes", "0"]
    with subprocess.Popen([sys.executable, "-c", holding], cwd=tree, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        refused = run_script(tree, *command)
        assert refused.code == 2 and "another all-train-all.sh" in refused.err and "the jobs of synthetic" in refused.err
        holder.kill()
    assert "out of time" in run_script(tree, *command).out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_launcher_alone(number: signal.Signals, tmp_path: Path) -> None:
    """Its job ends with it, or, where the launcher cannot see the signal, keeps others from running the same jobs."""
    code = (
        "import sys; from pathlib import Path; from common.cli import run_script\n"
        "from common.experiments.plan import MISSING, Job\n"
        "from common.workers import only_launcher, run_jobs\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "sleep = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "job = Job('sleep', (sys.executable, '-c', sleep), (), lambda: MISSING, folder / 'log')\n"
        "def main(*_):\n"
        "    with only_launcher([folder]): run_jobs([job])\n"
        "run_script(main, folder)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / "log", time.monotonic() + 60
    while not (log.is_file() and log.read_text().strip()):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    launcher.send_signal(number)
    assert launcher.wait(60) == (-number if number == signal.SIGKILL else 130)
    job = int(log.read_text())
    if number == signal.SIGKILL:
        with pytest.raises(UserError, match="a job of one that was killed"), only_launcher([tmp_path]):
            pass
        os.kill(job, signal.SIGKILL)
    while Path(f"/proc/{job}").exists() and "zombie" not in Path(f"/proc/{job}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with only_launcher([tmp_path]):
        pass


def test_the_same_folder_can_be_locked_again(tmp_path: Path) -> None:
    for _ in range(2):
        with only_launcher([tmp_path]):
            pass


def test_a_stopped_launcher_stops_its_jobs_which_can_be_continued(workspace: Path, tiny: Path, tmp_path: Path) -> None:
    """Ctrl-C, as a terminal sends it: to the whole process group. Nothing of seed 3 is trained in the copied tree."""
    tree = Path(shutil.copytree(workspace, tmp_path / "tree"))
    options = ["--datasets", "synthetic", "--defenses", "undefended", "--profile", str(tiny), "--device", "cpu", "--seed", "3"]
    command = ["all-train-all.sh", *options, "--scenario", "3", "--workers", "2"]
    process = subprocess.Popen(
        ["bash", *command],
        cwd=tree,
        env=script_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a process in the background ignores
    )
    assert process.stdout is not None
    assert any(line.startswith("started   synthetic train undefended") for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    with pytest.raises(ProcessLookupError):  # nothing of the group is left
        os.killpg(process.pid, 0)
    assert not list((tree / "synthetic" / "final-all-models" / "tiny" / "seed3").rglob("undefended.pt"))
    training = ("synthetic/train_defense.py", "--defense", "undefended", "--profile", tiny, "--device", "cpu", "--seed", 3)
    assert run_script(tree, *training).code == 0
