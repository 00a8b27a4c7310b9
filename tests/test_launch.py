"""The plan of all-train-all.sh: dependency order, what exists is skipped, a failure stops its dependents and no others."""

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Call, refusal, run_script, script_environment, tiny_run

from common import launch
from common.config import Attack, Config, load_config
from common.defenses import DEFENSES, with_options
from common.experiments.plan import DONE, MISSING, OTHER, Job, plan_jobs
from common.experiments.shadow_models import shadow_run
from common.files import differences, save_checkpoint, write_json
from common.launch import PRIORITY
from common.run import Run
from common.training.targets import model_path, settings_of
from common.workers import only_launcher, run_jobs, slot_environment


def planned(folder: Path, *defenses: str) -> list[Job]:
    run = with_options(Run(folder / "synthetic", "small", Config(), 0, torch.device("cpu")))
    return plan_jobs([run], defenses, ["1", "3"], "clean")


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


def test_the_order_of_the_defenses_is_the_order_of_the_plan(tmp_path: Path) -> None:
    """Each is evaluated as soon as it is trained: where time runs out, the rows of the first are there."""

    def steps(*defenses: str) -> list[str]:
        return [job.name.removeprefix("synthetic ") for job in planned(tmp_path, *defenses)][3:]

    in_order = ["relaxloss", "undefended", "hamp"]
    assert steps(*in_order) == [f"{what} {name}" for name in in_order for what in ("train", "evaluate")]
    guarded = ["train undefended", "train memguard", "evaluate memguard"]
    assert steps("hamp", "memguard") == ["train hamp", "evaluate hamp", *guarded]
    assert PRIORITY[:4] == ("undefended", "hamp", "relaxloss", "dpsgd") and set(PRIORITY) <= set(DEFENSES)


def test_shadow_models_and_experiments_join_the_plan(tmp_path: Path) -> None:
    config = Config(attack=Attack(shadows=4))
    run = with_options(Run(tmp_path / "synthetic", "small", config, 0, torch.device("cpu"), ("attack.shadows=4",)))
    plan = plan_jobs([run], ["memguard"], ["1"], "clean", ["label_only"])
    jobs = {job.name.removeprefix("synthetic "): job for job in plan}
    shadows = [f"shadow {name} {i}" for name in ("undefended", "memguard") for i in range(4)]
    assert [name for name in jobs if name.startswith("shadow")] == shadows
    assert set(jobs["evaluate memguard"].needs) > {f"synthetic {name}" for name in shadows[4:]}
    assert jobs["shadow memguard 1"].needs == ("synthetic partition", "synthetic shadow undefended 1")
    shown = shlex.join(jobs["shadow memguard 1"].command)
    assert "train_shadows.py --defense memguard --index 1" in shown and "--set attack.shadows=4" in shown
    assert jobs["label_only memguard"].needs == ("synthetic evaluate memguard",)
    assert "--shadows" not in shlex.join(jobs["evaluate memguard"].command)  # the setting says it
    seen: set[str] = set()
    for job in plan:
        assert set(job.needs) <= seen
        seen.add(job.name)


def test_models_with_canaries_join_the_plan() -> None:
    """They are trained once for both fallbacks, and no target is trained for them."""
    run = with_options(Run(ROOT / "synthetic", "small", load_config(ROOT / "synthetic", "small"), 0, torch.device("cpu")))
    plain = plan_jobs([run], ["memguard"], ["1"], "clean")
    seen = {job.name for job in plain}
    plan = [job for job in plan_jobs([run], ["memguard"], ["1"], "clean", ["worst_case"]) if job.name not in seen]
    jobs = {job.name.removeprefix("synthetic "): shlex.join(job.command) for job in plan if "candidates" not in job.name}
    shadows = [f"canaries shadow {name} {i}" for name in ("undefended", "memguard") for i in range(16)]
    assert [*jobs] == [*shadows, "canaries worst_case memguard", "canaries reorder worst_case memguard"]
    assert all("--set data.canaries=100" in command for command in jobs.values())
    assert "train_shadows.py --defense memguard --index 3" in jobs["canaries shadow memguard 3"]
    assert "worst_case.py --defense memguard --count 16" in jobs["canaries worst_case memguard"]
    assert ["diffence.fallback=reorder" in jobs[name] for name in [*jobs][-2:]] == [False, True]
    needs = {name for job in plan if "memguard" in job.name and "shadow" not in job.name for name in job.needs}
    assert needs >= {f"synthetic canaries shadow memguard {i}" for i in range(16)}
    assert not any("train" in name for name in needs)
    assert {job.kind for job in plan} == {"shadow", "worst_case", "candidates"}
    more = ("data.scored=2000", "data.members=4000", "data.non_members=4000", "attack.shadows=4")
    large = dataclasses.replace(run, config=load_config(ROOT / "synthetic", "small", list(more)), overrides=more)
    commands = [shlex.join(job.command) for job in plan_jobs([large], ["hamp"], ["1"], "clean", ["worst_case"])]
    (command,) = (one for one in commands if "worst_case.py" in one and "reorder" not in one)
    assert "--count 4" in command and "data.canaries=500" in command


def test_a_shadow_model_and_a_row_are_found(tmp_path: Path) -> None:
    """Done is what was made under these settings, by this defense: `dpsgd-private` is not `dpsgd`."""
    config = Config(attack=Attack(shadows=4))
    run = with_options(Run(tmp_path / "synthetic", "small", config, 0, torch.device("cpu")))
    jobs = {job.name.removeprefix("synthetic "): job for job in plan_jobs([run], ["dpsgd"], ["1"], "clean", ["label_only"])}
    assert {jobs[name].state() for name in ("shadow dpsgd 0", "label_only dpsgd")} == {MISSING}
    shadow = shadow_run(run, 0)
    save_checkpoint(model_path(shadow, "dpsgd"), {"settings": settings_of(shadow, "dpsgd")})
    assert (jobs["shadow dpsgd 0"].state(), jobs["shadow dpsgd 1"].state()) == (DONE, MISSING)
    save_checkpoint(model_path(shadow, "dpsgd"), {"settings": settings_of(shadow_run(run, 1), "dpsgd")})
    assert jobs["shadow dpsgd 0"].state().startswith(OTHER)
    row = {"defense": "dpsgd-private", "config": run.config.as_dict()}
    write_json(run.results_dir("clean") / "label_only-dpsgd-private-5images-1steps.json", row)
    assert jobs["label_only dpsgd"].state() == MISSING
    write_json(run.results_dir("clean") / "label_only-dpsgd-5images-1steps.json", row | {"defense": "dpsgd"})
    assert jobs["label_only dpsgd"].state() == DONE
    of_then = {name: section for name, section in run.config.defenses.items() if name != "dpsgd-strong"}
    row = {"defense": "dpsgd", "config": run.config.as_dict() | {"defenses": of_then}}
    write_json(run.results_dir("clean") / "label_only-dpsgd-5images-1steps.json", row)
    assert jobs["label_only dpsgd"].state() == DONE  # a defense that is newer than the row had no part in it
    of_then["dpsgd"] = of_then["dpsgd"] | {"groups": 3}
    write_json(run.results_dir("clean") / "label_only-dpsgd-5images-1steps.json", row)
    assert jobs["label_only dpsgd"].state() == MISSING


def test_more_seeds_add_jobs_and_change_none() -> None:
    """So a rerun with other seeds reuses what exists. All seeds share the partition, and nothing else."""
    config = load_config(ROOT / "synthetic", "small", [])
    run = with_options(Run(ROOT / "synthetic", "small", config, 0, torch.device("cpu")))
    runs = [dataclasses.replace(run, seed=seed) for seed in range(3)]

    def commands(count: int) -> list[tuple[str, ...]]:
        return [job.command for job in plan_jobs(runs[:count], ["hamp"], ["1"], "clean", ["label_only", "stronger"])]

    one, three = commands(1), commands(3)
    assert three[: len(one)] == one and len(set(three)) == len(three) == 3 * (len(one) - 1) + 1
    jobs = {job.name: job for job in plan_jobs(runs, ["hamp"], ["1"], "clean", ["stronger"])}
    assert jobs["synthetic seed2 train hamp"].needs == ("synthetic partition",)
    assert "synthetic seed2 train hamp" in jobs["synthetic seed2 evaluate hamp"].needs
    assert jobs["synthetic seed2 train hamp"].command[-4:-2] == ("--seed", "2")
    assert {"synthetic stronger ddpm", "synthetic seed1 stronger ddpm"} <= set(jobs)


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


def test_an_unknown_experiment_is_refused(call: Call) -> None:
    assert "Did you mean 'label_only'" in refusal(call(launch.main, ROOT, "--dry-run", "--experiments", "label_onyl"))


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
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert slot_environment(0, 1, gpus=4) == {}
    assert [slot_environment(slot, 4, gpus=2, cores=16) for slot in (0, 1, 2)] == [
        {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "4"} for gpu in ("0", "1", "0")
    ]
    assert slot_environment(5, 8, gpus=1, cores=4) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert slot_environment(0, 2, gpus=0, cores=8) == {}


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
        assert refused.code == 2 and "another all-train-all.sh is running the jobs of synthetic" in refused.err
        holder.kill()
    assert "out of time" in run_script(tree, *command).out


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
