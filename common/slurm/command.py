"""What submitit calls on a node of the cluster: the command of one job, which continues where it was interrupted."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from submitit.helpers import DelayedSubmission

from common.cli import ROOT


@dataclass(frozen=True)
class Command:
    """The command of a job. submitit stores it in a file when the job is submitted, and calls it on a node.

    words: the command line.
    log: the file that gets its output. Where Slurm starts the job again, the new output follows the old.
    """

    words: tuple[str, ...]
    log: Path

    def __call__(self) -> None:
        """Run the command from the repository's root. Raises RuntimeError where it fails, so that Slurm counts it as failed."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # An OMP_NUM_THREADS of the user's comes first. Where the cluster does not bind jobs to cores, PyTorch would use all.
        threads = {"OMP_NUM_THREADS": os.environ["SLURM_CPUS_PER_TASK"]} if "SLURM_CPUS_PER_TASK" in os.environ else {}
        with open(self.log, "a" if os.environ.get("SLURM_RESTART_COUNT") else "w") as log:
            code = subprocess.call(
                self.words,
                cwd=ROOT,
                env={**threads, **os.environ, "PYTHON": sys.executable},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_leave_signals_to_submitit,
            )
        if code:
            raise RuntimeError(f"exit code {code}: see {self.log}.")

    def checkpoint(self) -> DelayedSubmission:
        """What is called when Slurm starts the job again, after preemption or at its time limit: the same command."""
        return DelayedSubmission(self)


def _leave_signals_to_submitit() -> None:
    """Ignore the signals with which Slurm announces preemption and the time limit to all processes of a job.

    If they ended the command, the job could count as failed before it is queued again. The command is killed when submitit
    has queued it.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
