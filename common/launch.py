"""`bash all-train-all.sh`: every command behind a set of tables, in dependency order (see `jobs_of`), one after the other.

A job whose product exists and was made under the present settings is skipped, so running again resumes; one made under
others is named and left alone. A failure stops the jobs that need it and no others. `--dry-run` shows the plan.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common import cli
from common.config import PROTOCOLS, SCENARIOS
from common.data import DATASETS
from common.data.partition import partition_settings
from common.defenses import DEFENSES, with_options
from common.diffence.candidates import candidate_settings, candidates_dir, missing_shards
from common.diffence.ddpm import ddpm_settings
from common.errors import check_name
from common.files import differences, load_checkpoint, read_json
from common.report import result_file
from common.run import Run, open_run
from common.shadows import shadow_run
from common.targets import model_path, settings_of

ROOT = Path(__file__).parents[1]
PUBLISHED = ("cifar10", "cifar100", "svhn")  # the data sets of the paper's tables
# What is done first where --minutes may not reach the end; defenses of your own come last.
PRIORITY = tuple(dict.fromkeys(["undefended", "hamp", "relaxloss", "dpsgd", "selena", "advreg", "memguard", *DEFENSES]))
EXPERIMENTS = ("label_only", "attack_diffence")  # of a defense, beside its evaluation
MISSING, DONE, OTHER = "missing", "done", "made under other settings"


@dataclass(frozen=True)
class Job:
    """One command of a plan. `state()` looks at its product: MISSING, DONE, or OTHER and what differs."""

    name: str  # "cifar10 train hamp"
    command: tuple[str, ...]  # from the repository's root
    needs: tuple[str, ...]  # names of jobs
    state: Callable[[], str]
    log: Path


def jobs_of(
    run: Run, defenses: Sequence[str], scenarios: Sequence[str], protocol: str, experiments: Sequence[str] = ()
) -> list[Job]:
    """The jobs of one data set, each after those it needs; a defense is trained and evaluated before the next in `defenses`.

    `attack.shadows` of the run's config says how many shadow models of each defense are in the plan.
    """
    jobs: list[Job] = []
    options = ["--profile", run.profile, *(word for override in run.overrides for word in ("--set", override))]

    def job(what: str, command: str, needs: Sequence[str], state: Callable[[], str]) -> str:
        words = [*command.split(), *options]
        words += [] if what == "partition" else ["--seed", str(run.seed), "--device", str(run.device)]
        words[1] = f"{run.dataset}/{words[1]}"
        log = ROOT / "logs" / run.dataset / f"{run.profile_name}-seed{run.seed}" / f"{what.replace(' ', '-')}.log"
        jobs.append(Job(f"{run.dataset} {what}", tuple(words), tuple(needs), state, log))
        return jobs[-1].name

    manifest, diffusion = run.partition_dir / "manifest.json", run.ddpm_dir / "unet" / "settings.json"
    partition = job("partition", "python data_partition.py", [], lambda: _json_state(manifest, partition_settings(run)))
    ddpm = job("ddpm", "python diff_defense/train_ddpm.py", [partition], lambda: _json_state(diffusion, ddpm_settings(run)))
    drawing = f"python diff_defense/draw_candidates.py --protocol {protocol}"
    candidates = job("candidates", drawing, [ddpm], lambda: _candidates_state(run, protocol))
    trained: dict[str, str] = {}
    # MemGuard guards the undefended classifier, which is then trained in any case.
    brought = {"memguard": ["undefended"]}
    for name in dict.fromkeys(each for chosen in defenses for each in (*brought.get(chosen, []), chosen)):
        training = f"python train_defense.py --defense {name}"
        parts_of = DEFENSES[name].parts
        parts = [] if parts_of is None else parts_of(run)
        needs = [partition, *([trained["undefended"]] if name == "memguard" else [])]
        needs += [
            job(f"train {name} {i}", f"{training} --part {i}", [partition], lambda part=part: _model_state(*part))  # type: ignore[misc]
            for i, part in enumerate(parts)
        ]
        made = (model_path(run, name), settings_of(run, name))
        trained[name] = job(f"train {name}", training, needs, lambda made=made: _model_state(*made))  # type: ignore[misc]
        shadows = []
        for i, shadow in enumerate(shadow_run(run, i) for i in range(run.config.attack.shadows)):
            made = (model_path(shadow, name), settings_of(shadow, name))
            needs = [partition, *([f"{run.dataset} shadow undefended {i}"] if name == "memguard" else [])]
            training = f"python train_shadows.py --defense {name} --index {i}"
            shadows.append(job(f"shadow {name} {i}", training, needs, lambda made=made: _model_state(*made)))  # type: ignore[misc]
        if name in defenses:
            attack = (
                f"bash evaluate_MIAs/evaluate_mia.sh --defense {name} --protocol {protocol} --scenario {' '.join(scenarios)}"
            )
            rows = [run.results_dir(protocol) / f"{result_file(name, scenario)}.json" for scenario in (None, *scenarios)]
            needs = [candidates, trained[name], *shadows]
            evaluated = job(f"evaluate {name}", attack, needs, lambda rows=rows: _rows_state(rows, run))  # type: ignore[misc]
            for kind in experiments:
                command = f"python evaluate_MIAs/{kind}.py --defense {name}"
                job(f"{kind} {name}", command, [evaluated], lambda kind=kind, name=name: _experiment_state(kind, name, run))  # type: ignore[misc]
    return jobs


def _json_state(path: Path, wanted: dict[str, Any]) -> str:
    if not path.is_file():
        return MISSING
    made = read_json(path, "the job that makes it")
    return _compared(made.get("settings", made), wanted)


def _candidates_state(run: Run, protocol: str) -> str:
    if missing_shards(run, protocol):
        return MISSING
    return _json_state(candidates_dir(run) / "settings.json", candidate_settings(run))


def _model_state(path: Path, wanted: dict[str, Any]) -> str:
    return _compared(load_checkpoint(path, "the job that makes it").get("settings"), wanted) if path.is_file() else MISSING


def _rows_state(paths: Sequence[Path], run: Run) -> str:
    """An evaluation costs little beside a training: rows made under other settings are simply made again."""
    rows = [read_json(path, "the job that makes it") for path in paths if path.is_file()]
    return DONE if len(rows) == len(paths) and all(row["config"] == run.config.as_dict() for row in rows) else MISSING


def _experiment_state(kind: str, defense: str, run: Run) -> str:
    rows = [read_json(path, "the job that makes it") for path in run.results_dir("clean").glob(f"{kind}-{defense}-*.json")]
    return DONE if any(row["defense"] == defense and row["config"] == run.config.as_dict() for row in rows) else MISSING


def _compared(made: Any, wanted: dict[str, Any]) -> str:
    found = differences(made, wanted)
    return f"{OTHER} ({'; '.join(found[:3])})" if found else DONE


def dry_run(jobs: Sequence[Job]) -> None:
    """Print every command and what exists of it."""
    for job in jobs:
        print(f"{job.state():8}  {shlex.join(job.command)}")


def run_jobs(jobs: Sequence[Job], minutes: float) -> bool:
    """Run what is missing, until `minutes` have passed (inf: to the end); prints failures last. True if nothing failed."""
    deadline = time.monotonic() + 60 * minutes
    outcome: dict[str, str] = {}
    failed = []
    with tqdm(total=len(jobs), unit="job", smoothing=0, disable=None) as progress:
        for job in jobs:
            progress.set_postfix_str(job.name)
            lacking = [need for need in job.needs if outcome[need] != DONE]
            outcome[job.name] = f"not run: needs {lacking[0]}" if lacking else _run_job(job, deadline)
            progress.update()
            tqdm.write(f"{outcome[job.name]:8}  {job.name}")
            if outcome[job.name].startswith("failed"):
                failed.append(job)
    for job in failed:
        tail = "\n".join(job.log.read_text(errors="replace").splitlines()[-8:])
        print(f"\n{job.name} failed. The end of {job.log}:\n{tail}\nRun it alone: {shlex.join(job.command)}", file=sys.stderr)
    return not failed and all(state == DONE for state in outcome.values())


def _run_job(job: Job, deadline: float) -> str:
    """Run one job unless its product exists; what it prints goes to its log. Returns its state afterwards."""
    before = job.state()
    if before != MISSING:
        return before
    if deadline <= time.monotonic():
        return "not run: out of time"
    job.log.parent.mkdir(parents=True, exist_ok=True)
    interpreter = {"python": [sys.executable], "bash": ["bash"]}[job.command[0]]
    with open(job.log, "w") as log:
        left = None if deadline == float("inf") else deadline - time.monotonic()
        try:
            code = subprocess.run(
                [*interpreter, *job.command[1:]], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=left
            ).returncode
        except subprocess.TimeoutExpired:
            return "out of time: the same command continues it"
    return DONE if code == 0 else f"failed with exit code {code}"


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line of `all-train-all.sh`; `folder` is the repository's root."""
    made = cli.parser(folder, "Partition, train and evaluate everything, in dependency order.")
    made.add_argument("--datasets", nargs="+", default=list(PUBLISHED), help=f"default: {' '.join(PUBLISHED)}")
    made.add_argument("--defenses", nargs="+", default=list(PRIORITY), help=f"in this order (default: {' '.join(PRIORITY)})")
    made.add_argument("--scenario", nargs="+", default=["1", "2", "3"], help="of Diffence (default: 1 2 3)")
    made.add_argument("--protocol", default="clean", help="clean or released (default: clean)")
    made.add_argument("--shadows", type=int, help="also LiRA and RMIA, with so many shadow models of each defense")
    made.add_argument(
        "--experiments", nargs="+", default=[], help=f"also, in protocol clean with their defaults: {' or '.join(EXPERIMENTS)}"
    )
    made.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many minutes; a rerun continues")
    made.add_argument("--dry-run", action="store_true", help="print the commands and what exists, and run nothing")
    parsed = made.parse_args(arguments)
    check_name("protocol", parsed.protocol, PROTOCOLS)
    for kind, names, known in (
        ("data set", parsed.datasets, tuple(DATASETS)),
        ("defense", parsed.defenses, tuple(DEFENSES)),
        ("scenario", parsed.scenario, SCENARIOS),
        ("experiment", parsed.experiments, EXPERIMENTS),
    ):
        for name in names:
            check_name(kind, name, known)
    parsed.set += [f"attack.shadows={parsed.shadows}"] if parsed.shadows is not None else []
    runs = []
    for dataset in parsed.datasets:
        runs.append(with_options(open_run(ROOT / dataset, parsed)))
    chosen = parsed.defenses, parsed.scenario, parsed.protocol, parsed.experiments
    jobs = [job for run in runs for job in jobs_of(run, *chosen)]
    if parsed.dry_run:
        dry_run(jobs)
    elif not run_jobs(jobs, parsed.minutes):
        sys.exit(1)


if __name__ == "__main__":
    cli.run_script(main, ROOT)
