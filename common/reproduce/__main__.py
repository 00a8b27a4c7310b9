"""`python -m common.reproduce`: one data set of the paper on one device, with a forecast of the minutes.

The jobs are those of `bash all-train-all.sh`, and its launcher runs them: the most telling defenses come first, each is
evaluated as soon as it is trained, and the same command continues what --minutes or Ctrl-C stopped. With --dry-run or
--forecast, the device is timed for about 20 seconds, and the minutes of each job follow from that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import inf
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from common import launch
from common.cli import ROOT, make_parser, run_script
from common.config import require
from common.errors import check_name

if TYPE_CHECKING:  # imports PyTorch, which would make --help slow
    from common.run import Run


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. `folder` is the root of the repository."""
    parsed, started = parse(folder, arguments), perf_counter()
    from common.data import DATASETS
    from common.defenses import DEFENSES, with_options
    from common.reproduce.work import PROTOCOL, SCENARIOS
    from common.run import open_run

    defenses = parsed.defenses or list(dict.fromkeys([*launch.PRIORITY, *DEFENSES]))
    check_name("data set", parsed.dataset, tuple(DATASETS))
    for defense in defenses:
        check_name("defense", defense, tuple(DEFENSES))
    run = with_options(open_run(folder / parsed.dataset, parsed))
    if parsed.dry_run or parsed.forecast:
        print_forecast(run, defenses, parsed.minutes, started)
    if parsed.dry_run:
        return
    options = ["--datasets", parsed.dataset, "--profile", parsed.profile, "--seed", str(parsed.seed), "--device", parsed.device]
    options += [word for change in parsed.set for word in ("--set", change)]
    options += ["--defenses", *defenses, "--scenario", *SCENARIOS, "--protocol", PROTOCOL, "--minutes", str(parsed.minutes)]
    launch.main(folder, options)


def parse(folder: Path, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options. The default profile depends on --dataset, which is therefore read first."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--dataset", default="cifar10")
    dataset = first.parse_known_args(arguments)[0].dataset
    profile = "gpu" if (folder / dataset / "configs" / "gpu.yaml").is_file() else "paper"
    parser = make_parser(folder / dataset, __doc__, profile=profile, prog="python -m common.reproduce")
    parser.add_argument(
        "--dataset", default="cifar10", help="its profile gpu is the default, or paper without one (default: cifar10)"
    )
    parser.add_argument("--defenses", nargs="+", help=launch.DEFENSES_HELP)
    parser.add_argument("--minutes", type=float, default=inf, help="stop after this many minutes; the same command continues")
    parser.add_argument("--forecast", action="store_true", help="print the forecast, which takes no part of --minutes, and run")
    parser.add_argument("--dry-run", action="store_true", help="print the forecast, and run nothing")
    parsed = parser.parse_args(arguments)
    require(parsed.minutes > 0, f"--minutes must be positive, not {parsed.minutes:g}.")
    return parsed


def print_forecast(run: Run, defenses: Sequence[str], minutes: float, started: float) -> None:
    """Time the run's device, and print the minutes of every job.

    `started` is when the first import began (`perf_counter`). The imports are what the start of a job takes.
    """
    from common.experiments.plan import MISSING, plan_jobs
    from common.reproduce.forecast import forecast, forecast_table, seconds_table
    from common.reproduce.throughput import measure
    from common.reproduce.work import PROTOCOL, SCENARIOS, START, Work, work_of
    from common.run import environment

    imported = perf_counter()
    jobs = plan_jobs([run], defenses, SCENARIOS, PROTOCOL)
    works = [work_of(job, run) if job.state() == MISSING else Work() for job in jobs]
    seconds = {START: imported - started} | measure(run, {unit for work in works for unit in work})
    took, machine = perf_counter() - imported, environment(run)
    print(f"{machine['device']}, threads: {machine['threads']}, measured in {took:.0f} seconds\n")
    print(seconds_table(seconds, works), end="\n\n")
    print(forecast_table(forecast(jobs, works, seconds, minutes), minutes))


if __name__ == "__main__":
    run_script(main, ROOT)
