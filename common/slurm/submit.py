"""Submit the jobs of a plan to Slurm: as arrays where they are alike, each after the jobs that it needs."""

import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from common.cli import ROOT
from common.errors import UserError
from common.experiments.plan import DONE, MISSING, Job
from common.slurm.cluster import Cluster, Resources
from common.slurm.queue import remember

LARGEST = 1000  # jobs in an array; Slurm's default limit is 1,001
REQUEUES = 1000  # times that a job may reach its time limit and continue
FOLDER = ROOT / "logs" / "slurm"  # of what submitit writes: the scripts of sbatch, stored commands, output of its own


def submit_jobs(jobs: Sequence[Job], cluster: Cluster) -> bool:
    """Submit the jobs whose products are missing, print their ids, and return.

    Slurm starts a job once the jobs that it needs have succeeded, and cancels it where one of them fails. A job whose product
    was made under other settings is not changed, and the jobs that need it are not submitted. Returns whether all jobs are
    done or submitted. Raises UserError where sbatch refuses a job; then none is submitted.
    """
    states: dict[str, str] = {}
    for job in jobs:
        unmet = [need for need in job.needs if states[need] not in (DONE, MISSING)]
        states[job.name] = f"not submitted: needs {unmet[0]}" if unmet else job.state()
        if states[job.name] not in (DONE, MISSING):
            print(f"{states[job.name]}  {job.name}")
    missing = [job for job in jobs if states[job.name] == MISSING]
    ids: dict[str, str] = {}  # by name of the job
    try:
        for array in arrays(missing):
            needed = [ids[need] for need in array[0].needs if need in ids]
            numbers = _submit(array, parameters(array, cluster.resources(array[0].kind), needed))
            ids.update(zip((job.name for job in array), numbers, strict=True))
            remember(array, numbers)
            print(f"{_title(numbers):14}  {_name(array)}", flush=True)
    except BaseException:
        if ids:
            subprocess.run(["scancel", *_main_ids(ids.values())], check=False)
        raise
    print(f"{len(missing)} jobs submitted, {sum(state == DONE for state in states.values())} done already.")
    if ids:
        print(f"To watch them: squeue --me, and tail -f {missing[0].log.parent}/*.log")
        print(f"To cancel them: scancel {' '.join(_main_ids(ids.values()))}")
        print("When they have ended, the same command submits what is missing then.")
    return all(state in (DONE, MISSING) for state in states.values())


def arrays(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in groups that can be one job array each: of one kind, and with the same needs among `jobs`.

    `jobs` are in the order of their needs, and so are the groups.
    """
    names = {job.name for job in jobs}
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.kind, *(need for need in job.needs if need in names)), []).append(job)
    return [group[start : start + LARGEST] for group in groups.values() for start in range(0, len(group), LARGEST)]


def parameters(array: Sequence[Job], resources: Resources, needed: Sequence[str]) -> dict[str, Any]:
    """submitit's parameters for an array of jobs that starts once the jobs with the ids `needed` have succeeded."""
    optional = {
        "partition": resources.partition,
        "account": resources.account,
        "constraint": resources.constraint,
        "gpus_per_node": resources.gpus,
        "dependency": ":".join(["afterok", *needed]) if needed else "",
        "setup": resources.setup,
    }
    return {
        "job_name": f"{array[0].name.split()[0]}-{array[0].kind}",  # cifar10-shadow
        "time": resources.time,
        "mem": f"{resources.memory}GB",
        "cpus_per_task": resources.cpus,
        "array_parallelism": resources.parallel,
        "srun_args": [f"--cpus-per-task={resources.cpus}"],  # which srun does not take from sbatch since Slurm 22.05
        "stderr_to_stdout": True,
        # A job that waits for one that failed would wait for ever.
        "additional_parameters": {"chdir": str(ROOT), "requeue": True, "kill-on-invalid-dep": "yes", **resources.options},
        **{name: value for name, value in optional.items() if value},
    }


def _submit(array: Sequence[Job], wanted: dict[str, Any]) -> list[str]:
    """Submit an array, or a job alone; returns the id of each job."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from common.slurm.command import Command

    executor = SlurmExecutor(FOLDER, max_num_timeout=REQUEUES)
    executor.update_parameters(**wanted)
    try:
        submitted = executor.submit_array([Command(tuple(job.words), job.log) for job in array])
    except (FailedJobError, FailedSubmissionError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"sbatch refuses {_name(array)} ({said}): change the cluster file, then submit again.") from error
    return [job.job_id for job in submitted]


def require_slurm() -> None:
    """Raise UserError on a machine that cannot submit jobs."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError('--slurm needs submitit: pip install -e ".[slurm]".') from error
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine: run this on a login node of the cluster.")


def _name(array: Sequence[Job]) -> str:
    """The name of a job, or `cifar10 shadow, 64 jobs`."""
    first = array[0]
    return first.name if len(array) == 1 else f"{first.name.split()[0]} {first.kind}, {len(array)} jobs"


def _title(numbers: Sequence[str]) -> str:
    """The id of a job, or 12_[0-63]."""
    return numbers[0] if len(numbers) == 1 else f"{numbers[0].split('_')[0]}_[0-{len(numbers) - 1}]"


def _main_ids(numbers: Any) -> list[str]:
    """The ids of whole arrays and of jobs alone, each once."""
    return list(dict.fromkeys(number.split("_")[0] for number in numbers))
