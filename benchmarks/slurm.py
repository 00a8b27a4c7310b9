"""python -m benchmarks.slurm: the whole plan of a tiny data set on a real Slurm whose nodes die, compared with a local run.

Two nodes are started on this machine (tests/slurm/start.sh, which needs root and Debian's slurm-wlm and munge).
`all-train-all.sh --slurm` submits the plan. While it runs, nodes die with their jobs and come back, and jobs are preempted.
Slurm starts these jobs again. In the end all files must be those of an undisturbed local run, as in benchmarks/kills.py.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.kills import PLAN, copy_tree, differing, digests, undisturbed
from common.cli import ROOT

SCRIPTS = ROOT / "tests" / "slurm"
STARTS = "--Format=jobarrayid,restartcnt"  # of squeue: the id of a job, and how often Slurm has started it again
CLUSTER = "{partition: main, time: 30, memory: 1, cpus: 1}\n"


@contextmanager
def two_nodes(folder: Path) -> Iterator[None]:
    """A Slurm of two nodes whose files are in `folder`, and which the commands of Slurm find in the block."""
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        subprocess.run(["bash", SCRIPTS / "start.sh", folder], check=True)
        yield
    finally:
        subprocess.run(["bash", SCRIPTS / "stop.sh", folder], check=True)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def queue(*options: str) -> list[str]:
    """The lines of `squeue`, by default one for each job that has not ended."""
    command = ["squeue", "--array", "--noheader", *options]
    return subprocess.check_output(command, text=True).splitlines()


def die(folder: Path, *which: str) -> int:
    """Let a node die that runs a job, switch it on again, and wait until Slurm has noticed.

    `which` are options of `squeue` that choose the job, such as --name=synthetic-train. Returns how many jobs died; 0 = the
    plan has ended.
    """
    running = ["--states=running", "--format=%N", *which]
    while queue() and not queue(*running):
        time.sleep(0.2)
    time.sleep(2)  # into the job
    nodes = queue(*running)
    if not nodes:
        return 0
    on_the_node = ["--states=running", f"--nodelist={nodes[0]}", STARTS]
    victims = set(queue(*on_the_node))
    subprocess.run(["bash", SCRIPTS / "kill_node.sh", folder, nodes[0]], check=True)
    subprocess.run(["slurmd", "-N", nodes[0], "-f", folder / "slurm.conf"], check=True)
    while victims & set(queue(*on_the_node)):
        time.sleep(0.2)
    return len(victims)


def preempt(tree: Path, *which: str) -> str:
    """Send a running job of the plan in `tree` what Slurm sends before it preempts a job, and 90 seconds before its time limit.

    submitit then queues the job again. `which` as in `die`. Returns the id of the job; "" = the plan has ended.
    """
    while queue():
        for line in queue("--states=running", STARTS, *which):
            number, restarts = line.split()
            said = tree / "logs" / "slurm" / f"{number}_0_log.out"
            if said.is_file() and said.read_text().count("Loading pickle") > int(restarts):  # submitit runs in this start too
                time.sleep(2)  # into the command
                subprocess.run(["scancel", "--signal=USR2", number], check=True)
                return number
        time.sleep(0.2)
    return ""


def wait_for_all() -> None:
    """Wait until Slurm has no job any more."""
    while queue():
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deaths", type=int, default=6, help="of nodes, and as many preemptions of jobs (default: 6)")
    parser.add_argument("--folder", type=Path, help="as in benchmarks.kills, which may share it")
    parsed = parser.parse_args()
    place = (parsed.folder or Path(tempfile.mkdtemp())).resolve()
    expected, submitted = undisturbed(place), copy_tree(place / "submitted")
    (submitted / "cluster.yaml").write_text(CLUSTER)
    dead = preempted = 0
    with two_nodes(place / "slurm"):
        subprocess.run([*PLAN.split(), "--slurm", "cluster.yaml"], cwd=submitted, check=True)
        for _ in range(parsed.deaths):
            dead += die(place / "slurm")
            time.sleep(20)  # a node that has come back takes part again
            preempted += bool(preempt(submitted))
        wait_for_all()
    differ = differing(expected, digests(submitted))
    if differ:
        raise SystemExit(f"{dead} jobs died, {preempted} were preempted: {len(differ)} files in {place} differ: {differ[:10]}")
    shutil.rmtree(submitted if parsed.folder else place)
    print(f"{dead} jobs died with their nodes, {preempted} were preempted: {len(expected)} files are the same")


if __name__ == "__main__":
    main()
