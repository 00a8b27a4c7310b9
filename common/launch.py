"""`bash all-train-all.sh`: run every command behind a set of tables, in the order of their dependencies.

A job is skipped if its product exists and was made under the current settings. The same command therefore continues a stopped
one. A product that was made under other settings is reported and not changed. A job that fails stops only the jobs that need
it. `--dry-run` prints the plan. `--slurm cluster.yaml` submits the jobs to a Slurm cluster instead of running them here. The
jobs are planned in common/experiments/plan.py.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import ROOT, make_parser, run_script
from common.config import PROTOCOLS, SCENARIOS, require
from common.errors import check_name
from common.workers import only_launcher, run_jobs

if TYPE_CHECKING:  # imports PyTorch, which would make --help slow
    from common.experiments.plan import Job

PUBLISHED = ("cifar10", "cifar100", "svhn")  # the data sets of the paper's tables
# The default order of the defenses: the most informative ones first, because --minutes may end a plan early. All others follow.
PRIORITY = ("undefended", "hamp", "relaxloss", "dpsgd", "selena", "advreg", "memguard")
DEFENSES_HELP = f"in this order (default: {' '.join(PRIORITY)}, then dpsgd-private, dpsgd-strong and your own)"
# Further experiments: by the names of their scripts, then evaluations under other settings (common/experiments/variants.py).
EXPERIMENTS = (
    *("label_only", "attack_diffence", "intervals", "n_and_t", "overhead", "training_cost"),
    *("lira", "architectures", "table_iv", "stronger", "worst_case"),
)


def print_plan(jobs: Sequence[Job]) -> None:
    """Print the state and the command of every job, with what it needs: minutes, disk, and other jobs; then the sums."""
    from common.experiments.forecast import gigabytes
    from common.experiments.plan import MISSING

    forecasts = []
    for job in jobs:
        state = job.state()
        print(f"{state:8}  {job.command_line}")
        if state == MISSING:
            forecasts.append(job.forecast())
            minutes = forecasts[-1].minutes
            print(f"{'':8}  {job.name}: {_minutes(minutes)} minutes, {gigabytes(forecasts[-1].stays)}{_after(job)}")
    known = [one.minutes for one in forecasts if one.minutes is not None]
    print(f"\nmissing: {len(forecasts)} of {len(jobs)} jobs, {gigabytes(sum(one.stays for one in forecasts))} of disk")
    unknown = len(forecasts) - len(known)
    print(
        f"{_minutes(sum(known))} minutes in {len(known)} of them, whose work was timed here before; {unknown} others: unknown"
    )


def _minutes(minutes: float | None) -> str:
    return "unknown" if minutes is None else f"{minutes:.1f}"


def _after(job: Job) -> str:
    """`, after ddpm, train hamp`: what a job needs, without the name of the data set."""
    shown = [need.split(" ", 1)[1] for need in job.needs[:4]]
    more = [f"{len(job.needs) - 4} more"] if len(job.needs) > 4 else []
    return f", after {', '.join([*shown, *more])}" if shown else ""


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line of `all-train-all.sh`. `folder` is the root of the repository."""
    parsed = _parse(folder, arguments)
    from common.experiments.forecast import refuse_full_disk
    from common.experiments.plan import MISSING, STEPS
    from common.experiments.variants import VARIANTS
    from common.slurm.cluster import read_cluster
    from common.slurm.queue import refuse_queued
    from common.slurm.submit import require_slurm, submit_jobs

    folders, jobs = _plan(parsed)
    kinds = [*STEPS, *(name for name in EXPERIMENTS if name not in VARIANTS)]
    cluster = read_cluster(parsed.slurm, kinds) if parsed.slurm else None
    if parsed.dry_run:
        print_plan(jobs)
        return
    if cluster:
        require_slurm()
    at_once = cluster.parallel if cluster else parsed.workers
    with only_launcher(folders):
        missing = [job for job in jobs if job.state() == MISSING]
        refuse_queued(missing)
        refuse_full_disk([job.forecast() for job in missing], at_once)
        done = submit_jobs(jobs, cluster) if cluster else run_jobs(jobs, parsed.minutes, parsed.workers)
    if not done:
        sys.exit(1)


def _parse(folder: Path, arguments: Sequence[str]) -> Namespace:
    parser = make_parser(folder, "Partition, train and evaluate everything, in dependency order.", prog="bash all-train-all.sh")
    parser.add_argument("--datasets", nargs="+", default=list(PUBLISHED), help=f"default: {' '.join(PUBLISHED)}")
    parser.add_argument("--defenses", nargs="+", help=DEFENSES_HELP)
    parser.add_argument("--scenario", nargs="+", default=["1", "2", "3"], help="of Diffence (default: 1 2 3)")
    parser.add_argument("--protocol", default="clean", help="clean or released (default: clean)")
    parser.add_argument("--seeds", type=int, default=1, help="models of that many seeds, from --seed on (default: 1)")
    parser.add_argument("--shadows", type=int, help="also LiRA and RMIA, with this many shadow models of each defense")
    parser.add_argument(
        "--experiments",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"also these, with their defaults: {', '.join(EXPERIMENTS)}; worst_case trains 16 models of each defense, or "
        "--shadows, with 100 canaries, or 500 where data.scored is at least 2000, unless data.canaries is set",
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after this many minutes; the same command continues"
    )
    parser.add_argument("--workers", type=int, default=1, help="jobs at a time, which share GPUs and cores (default: 1)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the jobs, their states and what they need, and run nothing"
    )
    parser.add_argument(
        "--slurm", type=Path, metavar="FILE", help="submit the jobs to Slurm as this YAML file says, and return"
    )
    parsed = parser.parse_args(arguments)
    require(parsed.workers > 0, f"--workers must be at least 1, not {parsed.workers}.")
    require(parsed.seeds > 0, f"--seeds must be at least 1, not {parsed.seeds}.")
    numbered = parsed.workers > 1 and ":" in parsed.device
    require(not numbered, f"--workers gives each job a GPU of its own: take --device cuda in place of {parsed.device}.")
    here = parsed.workers == 1 and parsed.minutes == float("inf")
    require(parsed.slurm is None or here, "--workers and --minutes are for jobs on this machine: leave them out with --slurm.")
    return parsed


def _plan(parsed: Namespace) -> tuple[list[Path], list[Job]]:
    """The folders of the data sets, and the jobs in the order of their needs. Raises UserError for an unknown name."""
    from common.data import DATASETS
    from common.defenses import DEFENSES, with_options
    from common.experiments.plan import plan_jobs
    from common.run import open_run

    defenses = parsed.defenses or list(dict.fromkeys([*PRIORITY, *DEFENSES]))
    for kind, names, known in (
        ("protocol", [parsed.protocol], PROTOCOLS),
        ("data set", parsed.datasets, tuple(DATASETS)),
        ("defense", defenses, tuple(DEFENSES)),
        ("scenario", parsed.scenario, SCENARIOS),
        ("experiment", parsed.experiments, EXPERIMENTS),
    ):
        for name in names:
            check_name(kind, name, known)
    parsed.set += [f"attack.shadows={parsed.shadows}"] if parsed.shadows is not None else []
    device = parsed.device
    if parsed.slurm:  # a login node need not have the device of the jobs
        parsed.device = "cpu"
    runs = [with_options(open_run(ROOT / dataset, parsed)) for dataset in dict.fromkeys(parsed.datasets)]
    jobs: list[Job] = []
    for run in runs:
        saved = parsed.protocol != "released" or run.config.train.best_on_test
        require(
            saved, "the protocol released attacks the epoch with the best test accuracy: add --set train.best_on_test=true."
        )
        of_seeds = [replace(run, seed=seed) for seed in range(parsed.seed, parsed.seed + parsed.seeds)]
        jobs += plan_jobs(of_seeds, defenses, parsed.scenario, parsed.protocol, parsed.experiments, device)
    return [run.folder for run in runs], jobs


if __name__ == "__main__":
    run_script(main, ROOT)
