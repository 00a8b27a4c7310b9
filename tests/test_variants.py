"""The plan of further experiments and of evaluations under other settings: what they share, and what they add."""

import shlex
from pathlib import Path

import torch
from conftest import tiny_run

from common.config import Config
from common.defenses import DEFENSES, with_options
from common.experiments.plan import DONE, MISSING, Job, plan_jobs
from common.files import write_json
from common.run import Run


def variant_jobs(folder: Path, *experiments: str, defenses: tuple[str, ...] = tuple(DEFENSES), shadows: int = 0) -> list[Job]:
    run = with_options(tiny_run(folder, Path("small"), *([f"attack.shadows={shadows}"] if shadows else [])))
    return plan_jobs([run], defenses, ["1", "3"], "clean", experiments)


def test_a_variant_shares_what_its_settings_do_not_change(workspace: Path) -> None:
    """Table IV draws and evaluates anew, and trains nothing; its evaluations wait for the profile's own trainings."""
    plain = {job.name for job in variant_jobs(workspace / "synthetic")}
    jobs = {job.name.removeprefix("synthetic "): job for job in variant_jobs(workspace / "synthetic", "table_iv")}
    new = [name for name in jobs if f"synthetic {name}" not in plain]
    evaluated = [f"table_iv evaluate {name}" for name in ("undefended", "selena", "hamp", "relaxloss")]
    assert sorted(new) == sorted(["table_iv candidates", *evaluated])
    job = jobs["table_iv evaluate hamp"]
    assert "--set diffence.n=10 --set diffence.t=50" in shlex.join(job.command) and "--scenario 3 " in shlex.join(job.command)
    assert set(job.needs) == {"synthetic table_iv candidates", "synthetic train hamp"}


def test_every_figure_of_other_networks_is_planned(workspace: Path) -> None:
    """Figure 12: three networks, a quarter as wide as published, as the profile's ResNet-18 is; no DP-SGD on ViT."""
    jobs = {job.name: job for job in variant_jobs(workspace / "synthetic", "architectures", defenses=("undefended", "dpsgd"))}
    for network, width in (("densenet121", 8), ("vgg16", 16), ("vit", 128)):
        command = shlex.join(jobs[f"synthetic architectures {network} train undefended"].command)
        assert f"--set model.name={network} --set model.width={width}" in command
        assert ("--set train.lr=0.0001" in command) == (network == "vit")
        assert (f"synthetic architectures {network} evaluate dpsgd" in jobs) == (network != "vit")
    assert sum(name.endswith(" ddpm") for name in jobs) == 1  # one diffusion model for all networks


def test_lira_is_planned_once(workspace: Path) -> None:
    """With --shadows the profile's own plan has it already."""
    names = [job.name for job in variant_jobs(workspace / "synthetic", "lira", defenses=("hamp",))]
    assert sum(" lira shadow hamp " in name for name in names) == 16 and "synthetic lira evaluate hamp" in names
    assert sum(" train hamp" in name for name in names) == 1
    given = [job.name for job in variant_jobs(workspace / "synthetic", "lira", defenses=("hamp",), shadows=4)]
    assert sum(" shadow hamp " in name for name in given) == 4


def test_a_stronger_diffusion_model_lies_beside_the_profile_s(workspace: Path) -> None:
    jobs = {job.name: job for job in variant_jobs(workspace / "synthetic", "stronger", defenses=("undefended", "memguard"))}
    command = shlex.join(jobs["synthetic stronger ddpm"].command)
    assert "--set ddpm.name=stronger --set ddpm.reference=true --set ddpm.steps=1000" in command  # four times as many
    assert "--scenario average " in shlex.join(jobs["synthetic stronger evaluate undefended"].command)
    assert "synthetic stronger evaluate memguard" not in jobs  # as in Table VII
    assert "synthetic stronger ddpm" in jobs["synthetic stronger candidates"].needs


def test_one_job_measures_n_and_t_for_all_defenses(tmp_path: Path) -> None:
    run = with_options(Run(tmp_path / "synthetic", "small", Config(), 0, torch.device("cpu")))
    *_, job = plan_jobs([run], ["hamp", "memguard"], ["1"], "clean", ["n_and_t", "overhead"])
    assert job.name == "synthetic n_and_t" and "--defense hamp memguard --" in shlex.join(job.command)
    assert set(job.needs) == {"synthetic evaluate hamp", "synthetic evaluate memguard"}
    row = {"defense": "hamp", "config": run.config.as_dict()}
    write_json(run.results_dir("clean") / "n_and_t-hamp-n50-t40-160.json", row)
    assert job.state() == MISSING
    write_json(run.results_dir("clean") / "n_and_t-memguard-n50-t40-160.json", row | {"defense": "memguard"})
    assert job.state() == DONE


def test_a_row_that_is_older_than_a_setting_is_done(tmp_path: Path) -> None:
    """It lacks the setting, which then had its default. A row with another value is not done."""
    run = with_options(Run(tmp_path / "synthetic", "small", Config(), 0, torch.device("cpu")))
    *_, job = plan_jobs([run], ["hamp"], ["1"], "clean", ["intervals"])
    path, config = run.results_dir("clean") / "intervals-hamp-n30-t160.json", run.config.as_dict()
    for section, key in (("train", "bf16"), ("diffence", "stable")):
        del config[section][key]
    for expected, changed in ((DONE, {}), (MISSING, {"fallback": "reorder"}), (MISSING, {"no_longer": 1})):
        write_json(path, {"defense": "hamp", "config": config | {"diffence": config["diffence"] | changed}})
        assert job.state() == expected
