"""The plan of all-train-all.sh: which jobs there are, in which order, what they need, and what exists of them."""

import dataclasses
import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from common.config import Attack, Config
from common.defenses import DEFENSES, with_options
from common.errors import UserError
from common.experiments.plan import DONE, MISSING, OTHER, Job, plan_jobs
from common.experiments.shadow_models import shadow_run
from common.files import save_checkpoint, write_json
from common.launch import PRIORITY
from common.profiles import load_config
from common.run import Run
from common.training.targets import model_path, settings_of


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


def test_a_profile_of_ones_own_is_found_from_where_jobs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = with_options(Run(ROOT / "synthetic", "mine.yaml", Config(), 0, torch.device("cpu")))
    for job in plan_jobs([run], ["undefended"], ["1"], "clean"):
        assert job.words[job.words.index("--profile") + 1] == str(tmp_path / "mine.yaml")


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
    more = ("data.scored=2000", "data.members=4000", "data.non_members=4000", "attack.shadows=6")
    large = dataclasses.replace(run, config=load_config(ROOT / "synthetic", "small", list(more)), overrides=more)
    commands = [shlex.join(job.command) for job in plan_jobs([large], ["hamp"], ["1"], "clean", ["worst_case"])]
    (command,) = (one for one in commands if "worst_case.py" in one and "reorder" not in one)
    assert "--count 6" in command and "data.canaries=500" in command
    few = dataclasses.replace(run, config=Config(attack=Attack(shadows=4)), overrides=("attack.shadows=4",))
    with pytest.raises(UserError, match="worst_case needs at least 6 models, not 4: raise --shadows"):
        plan_jobs([few], ["hamp"], ["1"], "clean", ["worst_case"])


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
