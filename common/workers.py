"""Run the jobs of a plan as local processes, several at a time, each after the jobs that it needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from common.cli import ROOT
from common.errors import UserError

if TYPE_CHECKING:  # imports PyTorch, which would make --help slow
    from common.experiments.plan import Job


def run_jobs(jobs: Sequence[Job], minutes: float = float("inf"), workers: int = 1) -> bool:
    """Run the jobs whose products are missing, `workers` at a time, until `minutes` have passed (inf = no limit).

    Of the jobs that can start, the first in the plan starts first. A job that fails stops the jobs that need it and no others.
    Prints a line when a job starts and when it ends, and the ends of the logs of failed jobs at last. Ctrl-C ends the running
    jobs; the same command continues them. Returns whether the products of all jobs exist afterwards.
    """
    from tqdm import tqdm

    from common.experiments.plan import DONE

    deadline = time.monotonic() + 60 * minutes
    states: dict[str, str] = {}  # after the run, by name of the job
    waiting = list(jobs)
    running: dict[Future[str], Job] = {}
    processes = Processes()
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(workers):
        slots.put(slot)

    def in_slot(job: Job) -> str:
        slot = slots.get()
        try:
            return _run_job(job, deadline, slot_environment(slot, workers), processes)
        finally:
            slots.put(slot)

    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(jobs), unit="job", smoothing=0, disable=None) as progress,
        processes,
    ):
        while waiting or running:
            for job in _ready(waiting, states, workers - len(running)):
                waiting.remove(job)
                unmet = [need for need in job.needs if states[need] != DONE]
                if unmet:
                    running[pool.submit(str, f"not run: needs {unmet[0]}")] = job
                else:
                    running[pool.submit(in_slot, job)] = job
            progress.set_postfix_str(", ".join(job.name for job in running.values()))
            # With a timeout, because Ctrl-C that another thread receives, as while it starts a process, does not end the wait.
            for ended in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                job = running.pop(ended)
                states[job.name] = ended.result()
                progress.update()
                _print_line(f"{states[job.name]:8}  {job.name}")
    failed = [job for job in jobs if states[job.name].startswith("failed")]
    for job in failed:
        tail = "\n".join(job.log.read_text(errors="replace").splitlines()[-8:])
        print(f"\n{job.name} failed. The end of {job.log}:\n{tail}\nRun it alone: {job.command_line}", file=sys.stderr)
    return not failed and all(state == DONE for state in states.values())


def _print_line(text: str) -> None:
    """Print a line above the progress bar at once, also where the output goes to a file."""
    from tqdm import tqdm

    tqdm.write(text)
    sys.stdout.flush()


def _ready(waiting: Sequence[Job], states: dict[str, str], count: int) -> list[Job]:
    """The first `count` jobs of which all needed jobs have ended."""
    return [job for job in waiting if all(need in states for need in job.needs)][:count]


class Processes:
    """The processes that run. As a context, it ends them if it is left by an exception, such as Ctrl-C.

    Ctrl-C in a terminal reaches them too, but a process that is still importing may miss it. SIGTERM, and SIGHUP of a terminal
    that is closed, count as Ctrl-C.
    """

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self.caught: list[signal.Signals] = []

    def add(self, process: subprocess.Popen[bytes]) -> None:
        self.running.add(process)
        if self.stopped:  # meanwhile
            process.terminate()

    def __enter__(self) -> Processes:
        for name in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(name) is signal.SIG_DFL:  # `nohup` ignores SIGHUP
                signal.signal(name, signal.default_int_handler)
                self.caught.append(name)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stopped = kind is not None
        for process in [*self.running] if self.stopped else []:
            process.terminate()
        for name in self.caught:
            signal.signal(name, signal.SIG_DFL)


def _run_job(job: Job, deadline: float, environment: dict[str, str], processes: Processes) -> str:
    """Run one job if its product is missing, with its output in its log. Returns the state afterwards.

    Its process is among `processes` while it runs.
    """
    from common.experiments.plan import DONE, MISSING

    before = job.state()
    if before != MISSING:
        return before
    if deadline <= time.monotonic():
        return "not run: out of time"
    _print_line(f"started   {job.name}")
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "w") as log:
        timeout = None if deadline == float("inf") else deadline - time.monotonic()
        process = subprocess.Popen(
            job.words,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            close_fds=False,  # so that the lock of `only_launcher` is held while the job runs, should the launcher be killed
        )
        processes.add(process)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return "out of time: the same command continues it"
        finally:
            processes.running.discard(process)
    return DONE if code == 0 else f"failed with exit code {code}"


def slot_environment(slot: int, workers: int, gpus: int | None = None, cores: int | None = None) -> dict[str, str]:
    """Environment variables of the jobs in one of `workers` slots: a GPU of its own where there are several, and its threads.

    `gpus` and `cores` default to those of this machine. With CUDA_VISIBLE_DEVICES, the GPUs are those that it names. The cores
    are divided among the slots, unless OMP_NUM_THREADS is set already. A single worker has the whole machine.
    """
    if workers == 1:
        return {}
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
    environment = {"CUDA_VISIBLE_DEVICES": visible[slot % len(visible)]} if gpus > 1 else {}
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, (cores or len(os.sched_getaffinity(0))) // workers))
    return environment


@contextmanager
def only_launcher(folders: Sequence[Path]) -> Iterator[None]:
    """Hold a lock on each data set's folder while its jobs run, so that no two launchers run the same jobs.

    Jobs inherit the lock. The operating system frees it when the launcher and its jobs have ended, however they end. Raises
    UserError where another launcher, or a job that it left behind, holds it.
    """
    from common.files import locked  # not above: it imports PyTorch, which would make --help slow

    with ExitStack() as stack:
        for folder in folders:
            try:
                os.set_inheritable(stack.enter_context(locked(ROOT / "logs" / folder.name, wait=False)), True)
            except BlockingIOError as error:
                raise UserError(
                    f"another all-train-all.sh, or a job of one that was killed, is running the jobs of {folder.name} here: "
                    "wait for it, or stop it first."
                ) from error
        yield
