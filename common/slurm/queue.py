"""Which jobs of a plan Slurm has already: ids lie beside their logs, and `squeue` knows those that have not ended."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from common.config import require
from common.errors import UserError
from common.experiments.plan import Job
from common.files import read_json, write_json

FILE = "slurm.json"  # the id of the last submission of each job, by the name of its log


def remember(jobs: Sequence[Job], ids: Sequence[str]) -> None:
    """Write down under which ids jobs were submitted."""
    for folder in {job.log.parent for job in jobs}:
        new = {job.log.name: number for job, number in zip(jobs, ids, strict=True) if job.log.parent == folder}
        write_json(folder / FILE, {**_remembered(folder), **new})


def refuse_queued(jobs: Sequence[Job]) -> None:
    """Raise UserError where Slurm has some of the jobs already. On a machine without Slurm there is nothing to refuse."""
    ids = {folder: _remembered(folder) for folder in {job.log.parent for job in jobs}}
    submitted = {job.name: ids[job.log.parent][job.log.name] for job in jobs if job.log.name in ids[job.log.parent]}
    if not submitted or shutil.which("squeue") is None:
        return
    alive = _queue()
    queued = {name: number for name, number in submitted.items() if number in alive}
    if queued:
        name, number = next(iter(queued.items()))
        arrays = sorted({number.split("_")[0] for number in queued.values()}, key=int)
        raise UserError(
            f"Slurm has {len(queued)} of these jobs already, such as {name} (job {number}): wait until they have ended, or "
            f"cancel them with scancel {' '.join(arrays)}."
        )


def _remembered(folder: Path) -> dict[str, str]:
    path = folder / FILE
    return read_json(path, "the submission again") if path.is_file() else {}


def _queue() -> set[str]:
    """The ids of all jobs that Slurm has queued or running, an array's one by one (12_3)."""
    command = ["squeue", "--array", "--noheader", "--format=%i"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"squeue does not answer ({' '.join(done.stderr.split())}): try again later.")
    return set(done.stdout.split())
