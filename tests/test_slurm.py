"""Slurm: which jobs become arrays and what they wait for, what sbatch is asked, refusals; and a real Slurm whose node dies."""

import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Call, refusal, run_script, script_environment, write_profile

from benchmarks.kills import digests
from benchmarks.slurm import CLUSTER, die, preempt, two_nodes, wait_for_all
from common import launch
from common.config import Attack, Config
from common.defenses import with_options
from common.errors import UserError
from common.experiments.plan import DONE, MISSING, OTHER, STEPS, Job, plan_jobs
from common.run import Run
from common.slurm import submit
from common.slurm.cluster import Resources, read_cluster
from common.slurm.queue import refuse_queued, remember
from common.slurm.submit import arrays, parameters, submit_jobs


def planned(tmp_path: Path, *defenses: str) -> list[Job]:
    run = with_options(Run(tmp_path / "synthetic", "small", Config(attack=Attack(shadows=4)), 0, torch.device("cpu")))
    return plan_jobs([run], defenses, ["1"], "clean")


def names(array: Sequence[Job]) -> list[str]:
    return [job.name.removeprefix("synthetic ") for job in array]


# Arrays


def test_jobs_of_one_kind_with_the_same_needs_are_an_array(tmp_path: Path) -> None:
    groups = [names(array) for array in arrays(planned(tmp_path, "undefended", "selena", "memguard"))]
    assert ["train undefended", *(f"train selena {i}" for i in range(25))] in groups
    assert [f"shadow {name} {i}" for name in ("undefended", "selena") for i in range(4)] in groups
    for alone in ("partition", "ddpm", "candidates", "train selena", "shadow memguard 2", "evaluate memguard"):
        assert [alone] in groups


def test_arrays_are_in_the_order_of_their_needs(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "memguard", "selena", "undefended")
    seen: set[str] = set()
    for array in arrays(jobs):
        for job in array:
            assert set(job.needs) <= seen
        seen |= {job.name for job in array}
    assert seen == {job.name for job in jobs}


def test_what_exists_already_separates_no_jobs(tmp_path: Path) -> None:
    """MemGuard's shadow models need one shadow model each. Where these exist, they are one array."""
    missing = [job for job in planned(tmp_path, "memguard") if "undefended" not in job.name]
    assert [f"shadow memguard {i}" for i in range(4)] in map(names, arrays(missing))


def test_arrays_are_as_large_as_slurm_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "LARGEST", 10)
    sizes = [len(array) for array in arrays(planned(tmp_path, "selena"))]
    assert sizes[3:7] == [10, 10, 5, 1]


# cluster.yaml


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def test_kinds_of_jobs_have_values_of_their_own(tmp_path: Path) -> None:
    text = (
        "{partition: cpu, options: {qos: long}, kinds: {ddpm: {partition: gpu, gpus: 1, time: 2880}, evaluate: {memory: 64}}}"
    )
    cluster = read_cluster(write(tmp_path, text), STEPS)
    assert cluster.resources("train") == Resources(partition="cpu", options={"qos": "long"})
    assert cluster.resources("ddpm") == Resources(partition="gpu", gpus=1, time=2880, options={"qos": "long"})
    assert cluster.resources("evaluate").memory == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partion: gpu", ["cluster.yaml", "partion"]),
        ("time: long", ["cluster.yaml", "time"]),
        ("time: 2", ["time must be at least 5, not 2"]),
        ("kinds: {shadows: {time: 10}}", ["unknown kind of job", "'shadows'", "Did you mean 'shadow'?"]),
        ("kinds: {shadow: {tme: 10}}", ["kinds.shadow", "tme"]),
        ("kinds: {shadow: {gpus: -1}}", ["gpus must be at least 0, not -1"]),
        ("options: {array: 0-3}", ["the option array of sbatch follows from the plan"]),
        ("partition: [gpu", ["cluster.yaml is no readable YAML"]),
    ],
)
def test_a_wrong_cluster_file_is_refused(tmp_path: Path, call: Call, text: str, words: list[str]) -> None:
    options = ["--datasets", "synthetic", "--device", "cpu", "--defenses", "undefended", "--dry-run"]
    sentence = refusal(call(launch.main, ROOT, *options, "--slurm", write(tmp_path, text)))
    for word in words:
        assert word in sentence


def test_what_does_not_go_with_slurm_is_refused(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--datasets", "synthetic", "--defenses", "undefended", "--slurm", write(tmp_path, CLUSTER)]
    assert "leave them out with --slurm" in refusal(call(launch.main, ROOT, *options, "--workers", 2))
    assert "docs/clusters.md" in refusal(call(launch.main, ROOT, *options[:-1], tmp_path / "none.yaml"))
    monkeypatch.setenv("PATH", "")
    assert "no sbatch on this machine" in refusal(call(launch.main, ROOT, *options))


# Submission, to commands that are not Slurm's


class Fake:
    """A folder with `sbatch`, which numbers the scripts that it keeps, `squeue`, which shows a file, and `scancel`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command("srun", "")
        self.command("squeue", f"cat {folder}/queue")
        self.command("scancel", f'echo "$@" > {folder}/cancelled')
        count = f"$(( $(ls {folder} | grep -c '[.]sh$') + 1 ))"
        self.command("sbatch", f'n={count}; cp "$1" {folder}/$n.sh; echo "Submitted batch job $n"')
        self.queue("")

    def command(self, name: str, line: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def queue(self, *ids: str) -> None:
        (self.folder / "queue").write_text("\n".join(ids))

    def script(self, number: int) -> str:
        return (self.folder / f"{number}.sh").read_text()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(submit, "FOLDER", tmp_path / "submitit")
    return Fake(folder)


def job(tmp_path: Path, name: str, *needs: str, state: str = MISSING) -> Job:
    kind = name.split()[1]
    log = tmp_path / "logs" / f"{name.replace(' ', '-')}.log"
    return Job(name, ("python", "x.py", name), needs, lambda: state, log, kind)


def test_dependencies_name_elements_of_arrays(tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """A job waits for the very jobs that it needs, and for none that is done."""
    jobs = [
        job(tmp_path, "d partition", state=DONE),
        job(tmp_path, "d train a", "d partition"),
        *(job(tmp_path, f"d shadow a {i}", "d partition") for i in range(3)),
        job(tmp_path, "d evaluate a", "d train a", "d shadow a 0", "d shadow a 2"),
    ]
    cluster = read_cluster(write(tmp_path, "{parallel: 2, setup: [module load cuda], kinds: {train: {gpus: 1}}}"), STEPS)
    assert submit_jobs(jobs, cluster)
    assert "--dependency" not in fake.script(1) + fake.script(2)
    assert "--gpus-per-node=1" in fake.script(1) and "--gpus" not in fake.script(2)
    assert "--array=0-2%2" in fake.script(2)
    assert "#SBATCH --dependency=afterok:1:2_0:2_2\n" in fake.script(3)
    for line in ("module load cuda\n", f"#SBATCH --chdir={ROOT}\n", "#SBATCH --requeue\n", "--kill-on-invalid-dep=yes\n"):
        assert line in fake.script(3)
    shown = capsys.readouterr().out
    assert "2_[0-2]" in shown and "5 jobs submitted, 1 done already" in shown and "scancel 1 2 3" in shown


def test_options_of_sbatch(tmp_path: Path) -> None:
    resources = Resources("gpu", "lab", "a100", 60, 8, 3, 1, options={"qos": "long", "exclusive": True})
    wanted = parameters([job(tmp_path, "d train a")], resources, ["7"])
    assert {"partition": "gpu", "account": "lab", "constraint": "a100", "time": 60, "mem": "8GB"}.items() <= wanted.items()
    assert wanted["dependency"] == "afterok:7" and wanted["cpus_per_task"] == 3 and wanted["gpus_per_node"] == 1
    assert {"qos": "long", "exclusive": True}.items() <= wanted["additional_parameters"].items()
    assert (
        not {"partition", "account", "dependency", "setup"} & parameters([job(tmp_path, "d train a")], Resources(), []).keys()
    )


def test_what_was_made_otherwise_is_left_alone(tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    other = job(tmp_path, "d train a", state=f"{OTHER} (seed: 0 -> 1)")
    after, free = job(tmp_path, "d evaluate a", "d train a"), job(tmp_path, "d train b")
    last = job(tmp_path, "d label_only a", "d evaluate a")
    assert not submit_jobs([other, after, free, last], read_cluster(write(tmp_path, CLUSTER), STEPS))
    assert "--job-name=d-train\n" in fake.script(1) and not (fake.folder / "2.sh").exists()
    shown = capsys.readouterr().out
    assert f"{OTHER} (seed: 0 -> 1)  d train a" in shown and "not submitted: needs d evaluate a  d label_only a" in shown


def test_what_slurm_has_already_is_not_submitted_twice(tmp_path: Path, fake: Fake) -> None:
    jobs = [job(tmp_path, f"d train {name}") for name in "abc"]
    refuse_queued(jobs)
    remember(jobs[:2], ["12_0", "12_1"])
    fake.queue("11_0", "12_1", "13")
    with pytest.raises(UserError, match=r"Slurm has 1 of these jobs already, such as d train b \(job 12_1\).*scancel 12\."):
        refuse_queued(jobs)
    remember(jobs[1:], ["14", "15"])  # the second submission of b is what counts
    refuse_queued(jobs)
    fake.command("squeue", "echo no controller >&2; exit 1")
    with pytest.raises(UserError, match="squeue does not answer"):
        refuse_queued(jobs)


def test_all_or_nothing_is_submitted(tmp_path: Path, fake: Fake) -> None:
    fake.command("sbatch", "grep -q evaluate $1 && { echo invalid partition >&2; exit 1; }; echo Submitted batch job 1")
    jobs = [job(tmp_path, "d train a"), job(tmp_path, "d evaluate a", "d train a")]
    with pytest.raises(UserError, match=r"sbatch refuses d evaluate a .*invalid partition"):
        submit_jobs(jobs, read_cluster(write(tmp_path, CLUSTER), STEPS))
    assert (fake.folder / "cancelled").read_text() == "1\n"


def test_the_jobs_choose_their_device_themselves(tmp_path: Path) -> None:
    run = with_options(Run(tmp_path / "synthetic", "small", Config(), 0, torch.device("cpu")))
    for device in ("auto", "cuda"):
        (ddpm,) = (job for job in plan_jobs([run], ["hamp"], ["1"], "clean", (), device) if job.kind == "ddpm")
        assert ddpm.command[-2:] == ("--device", device)


# A real Slurm

HAVE_SLURM = all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "sbatch"))


@pytest.mark.skipif(not HAVE_SLURM, reason="needs Debian's packages slurm-wlm and munge, and root")
def test_a_plan_survives_the_death_of_a_node_and_a_preemption(workspace: Path, tmp_path: Path) -> None:
    """A small plan. A node dies in the middle of a job, and another job is preempted: every file is a local run's, bit for bit.

    python -m benchmarks.slurm does the same with the whole plan.
    """
    profile = write_profile(tmp_path / "tiny.yaml", "model.width=8", "defenses.selena={k: 2, l: 1}", "train.epochs=2")
    options = ["--datasets", "synthetic", "--defenses", "selena", "--scenario", "3", "--profile", profile, "--device", "cpu"]
    trees = [Path(shutil.copytree(workspace, tmp_path / name)) for name in ("local", "slurm")]
    for made in ("data", "final-all-models", "diff_defense/diff_models", "evaluate_MIAs/results"):  # by tests that ran before
        for tree in trees:
            shutil.rmtree(tree / "synthetic" / made, ignore_errors=True)
    command = ["bash", "all-train-all.sh", *map(str, options)]
    slurm = [*options, "--slurm", write(tmp_path, CLUSTER)]
    with subprocess.Popen(command, cwd=trees[0], env=script_environment()) as local, two_nodes(tmp_path / "nodes"):
        submitted = run_script(trees[1], "all-train-all.sh", *slurm)
        assert submitted.code == 0 and "7 jobs submitted, 0 done already" in submitted.out, submitted
        twice = run_script(trees[1], "all-train-all.sh", *slurm)
        assert twice.code == 2 and "of these jobs already" in twice.err, twice
        assert die(tmp_path / "nodes", "--name=synthetic-train")
        preempted = preempt(trees[1], "--name=synthetic-train")
        wait_for_all()
    (said,) = trees[1].glob(f"logs/slurm/{preempted}_*_log.out")
    assert "this job is preempted" in said.read_text() and "Exiting gracefully after preemption" in said.read_text()
    assert local.returncode == 0
    assert digests(trees[1]) == digests(trees[0])
    assert len(digests(trees[0])) > 10
