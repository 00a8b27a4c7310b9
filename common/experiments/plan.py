"""The plan of `all-train-all.sh`: every command behind a set of tables, and what exists of its product."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common.cli import ROOT
from common.config import require
from common.data.partition import partition_settings
from common.defenses import DEFENSES
from common.diffence.candidates import candidate_settings, candidates_dir, missing_shards
from common.diffence.ddpm import ddpm_settings
from common.experiments.forecast import Forecast, Training, of_candidates, of_ddpm, of_evaluation, of_partition, of_trainings
from common.experiments.shadow_models import shadow_run
from common.experiments.variants import SHADOWS, VARIANTS, run_of, worst_case
from common.files import differences, read_json
from common.profiles import is_path, with_defaults
from common.report.rows import result_file
from common.run import Run
from common.training.loop import checkpoint_facts
from common.training.targets import model_path, settings_of

MISSING, DONE, OTHER = "missing", "done", "made under other settings"
STEPS = ("partition", "ddpm", "candidates", "train", "shadow", "evaluate")  # the kinds of jobs, beside the experiments
TOGETHER = ("n_and_t",)  # experiments that are one job for all defenses, which share what it draws
MAKER = "the job that makes it"  # what a message names as the remedy for a damaged product


@dataclass(frozen=True)
class Job:
    """One command of a plan. `state()` looks at its product: MISSING, DONE, or OTHER with what differs.

    kind: one of STEPS, or the name of an experiment.
    forecast: what it needs, as far as that is known before it runs.
    """

    name: str  # "cifar10 train hamp"
    command: tuple[str, ...]  # from the repository's root
    needs: tuple[str, ...]  # names of jobs
    state: Callable[[], str]
    log: Path
    kind: str = ""
    forecast: Callable[[], Forecast] = Forecast

    @property
    def command_line(self) -> str:
        return shlex.join(self.command)

    @property
    def words(self) -> list[str]:
        """The command with the interpreter of this process."""
        return [sys.executable if self.command[0] == "python" else self.command[0], *self.command[1:]]


@dataclass
class Plan:
    """The jobs of one data set, each after those that it needs.

    variant: what its jobs are called after the data set, for a plan under another seed or other settings that adds to the jobs
    of the first.
    device: what its commands get as --device. `auto` leaves the choice to the machine that runs them.
    """

    run: Run
    jobs: list[Job] = field(default_factory=list)
    variant: str = ""
    device: str = "auto"

    def add(
        self,
        what: str,
        command: str,
        needs: Sequence[str],
        state: "partial[str]",
        forecast: Callable[[], Forecast] = Forecast,
    ) -> str:
        """Add the job `what`, whose command is a script of the data set's folder with its arguments. Returns its name.

        A job with the same product may be in the plan already, under other settings that do not matter to it. It is taken.
        """
        for job in self.jobs:
            if isinstance(job.state, partial) and (job.state.func, job.state.args) == (state.func, state.args):
                return job.name
        kind, run, what = what.split()[0], self.run, f"{self.variant} {what}".strip()
        interpreter, script, *arguments = command.split()
        profile = str(Path(run.profile).resolve()) if is_path(run.profile) else run.profile  # jobs run in ROOT
        words = [interpreter, f"{run.dataset}/{script}", *arguments, "--profile", profile]
        words += [word for override in run.overrides for word in ("--set", override)]
        if script != "data_partition.py":  # which depends on neither
            words += ["--seed", str(run.seed), "--device", self.device]
        log = ROOT / "logs" / run.dataset / f"{run.profile_name}-seed{run.seed}" / f"{what.replace(' ', '-')}.log"
        self.jobs.append(Job(f"{run.dataset} {what}", tuple(words), tuple(needs), state, log, kind, forecast))
        return self.jobs[-1].name

    def train(self, defense: str, partition: str, needed: Sequence[str]) -> str:
        """Add the training of a defense, after that of its sub-models and of the defenses that it needs."""
        command = f"python train_defense.py --defense {defense}"
        parts_of = DEFENSES[defense].parts
        parts = [
            self._add_training(f"train {defense} {i}", f"{command} --part {i}", [partition], self.run, part)
            for i, part in enumerate(parts_of(self.run) if parts_of else [])
        ]
        own = model_path(self.run, defense), settings_of(self.run, defense)
        return self._add_training(f"train {defense}", command, [partition, *needed, *parts], self.run, own)

    def train_shadows(self, defense: str, count: int, partition: str, needed: Sequence[Sequence[str]]) -> list[str]:
        """Add the training of `count` shadow models of a defense, each after those of the defenses that it needs."""
        names, parts_of = [], DEFENSES[defense].parts
        for i in range(count):
            needs = [partition, *(shadows[i] for shadows in needed)]
            command = f"python train_shadows.py --defense {defense} --index {i}"
            run = shadow_run(self.run, i)
            trainings = [*(parts_of(run) if parts_of else []), (model_path(run, defense), settings_of(run, defense))]
            names.append(self._add_training(f"shadow {defense} {i}", command, needs, run, *trainings))
        return names

    def _add_training(self, what: str, command: str, needs: Sequence[str], run: Run, *trainings: Training) -> str:
        """Add a job that does `trainings` of a run in turn. The checkpoint of the last one is its product."""
        return self.add(what, command, needs, partial(model_state, *trainings[-1]), partial(of_trainings, run, trainings))


def plan_jobs(
    runs: Sequence[Run],
    defenses: Sequence[str],
    scenarios: Sequence[str],
    protocol: str,
    experiments: Sequence[str] = (),
    device: str = "auto",
) -> list[Job]:
    """The jobs of one data set, whose `runs` differ in the seed: everything of the first seed, then of the next.

    Each defense is trained and evaluated before the next one in `defenses`. `attack.shadows` of the config says how many shadow
    models of each defense are in the plan. The variants among the `experiments` come last, each with the defenses of its table
    or figure.
    """
    jobs: list[Job] = []
    for run in runs:
        seed = f"seed{run.seed} " if run.seed != runs[0].seed else ""
        plan = Plan(run, jobs, seed.strip(), device)
        _add_evaluations(
            plan, defenses, scenarios, protocol, [name for name in experiments if name not in (*VARIANTS, "worst_case")]
        )
        for variant in [variant for name in experiments if name in VARIANTS for variant in VARIANTS[name](run)]:
            asked = [defense for defense in defenses if defense in variant.defenses]
            other = Plan(run_of(variant, run), jobs, seed + variant.name, device)
            _add_evaluations(other, asked, variant.scenarios or scenarios, protocol, [])
        for variant in worst_case(run) if "worst_case" in experiments else []:
            _add_worst_case(Plan(run_of(variant, run), jobs, seed + variant.name, device), defenses)
    return jobs


def _add_evaluations(
    plan: Plan, defenses: Sequence[str], scenarios: Sequence[str], protocol: str, experiments: Sequence[str]
) -> None:
    """Add the evaluation of each defense, everything that it needs, and the `experiments` that are scripts."""
    run = plan.run
    partition, candidates = _add_candidates(plan, protocol)
    trained: dict[str, str] = {}
    shadows: dict[str, list[str]] = {}
    evaluated: dict[str, str] = {}
    for defense in with_needed(defenses):
        needed = DEFENSES[defense].needs
        trained[defense] = plan.train(defense, partition, [trained[name] for name in needed])
        others = [shadows[name] for name in needed]
        shadows[defense] = plan.train_shadows(defense, run.config.attack.shadows, partition, others)
        if defense not in defenses:
            continue
        options = f"--defense {defense} --protocol {protocol} --scenario {' '.join(scenarios)}"
        names = [result_file(defense, scenario) for scenario in (None, *scenarios)]
        rows = [run.results_dir(protocol) / f"{name}.json" for name in names]
        evaluated[defense] = plan.add(
            f"evaluate {defense}",
            f"bash evaluate_MIAs/evaluate_mia.sh {options}",
            [candidates, trained[defense], *shadows[defense]],
            partial(rows_state, rows, run),
            partial(of_evaluation, run, defense, protocol),
        )
        for kind in experiments:
            if kind not in TOGETHER:
                command = f"python evaluate_MIAs/{kind}.py --defense {defense}"
                plan.add(f"{kind} {defense}", command, [evaluated[defense]], partial(experiment_state, kind, [defense], run))
    for kind in experiments:
        if kind in TOGETHER:
            command = f"python evaluate_MIAs/{kind}.py --defense {' '.join(evaluated)}"
            plan.add(kind, command, [*evaluated.values()], partial(experiment_state, kind, [*evaluated], run))


def _add_candidates(plan: Plan, protocol: str) -> tuple[str, str]:
    """Add the partition, the diffusion model and the candidates. Returns the names of the first and of the last job."""
    run = plan.run
    manifest, diffusion = run.partition_dir / "manifest.json", run.ddpm_dir / "unet" / "settings.json"
    partition_done = partial(json_state, manifest, partition_settings(run))
    partition = plan.add("partition", "python data_partition.py", [], partition_done, partial(of_partition, run))
    ddpm_command = "python diff_defense/train_ddpm.py"
    ddpm_done = partial(json_state, diffusion, ddpm_settings(run))
    ddpm = plan.add("ddpm", ddpm_command, [partition], ddpm_done, partial(of_ddpm, run))
    drawing = f"python diff_defense/draw_candidates.py --protocol {protocol}"
    drawn = partial(candidates_state, run, protocol)
    return partition, plan.add("candidates", drawing, [ddpm], drawn, partial(of_candidates, run, protocol))


def _add_worst_case(plan: Plan, defenses: Sequence[str]) -> None:
    """Add models with canaries of each defense, `attack.shadows` or SHADOWS of them, and the attacks on them."""
    partition, candidates = _add_candidates(plan, "clean")
    count = plan.run.config.attack.shadows or SHADOWS
    require(count >= 6, f"worst_case needs at least 6 models, not {count}: raise --shadows.")
    models: dict[str, list[str]] = {}
    for defense in with_needed(defenses):
        models[defense] = plan.train_shadows(defense, count, partition, [models[name] for name in DEFENSES[defense].needs])
        if defense in defenses:
            command = f"python evaluate_MIAs/worst_case.py --defense {defense} --count {count} --scenario 1 3"
            state = partial(rows_state, worst_case_rows(plan.run, defense, count), plan.run)
            plan.add(f"worst_case {defense}", command, [candidates, *models[defense]], state)


def worst_case_rows(run: Run, defense: str, count: int) -> list[Path]:
    """The rows of worst_case.py that a plan asks for: without Diffence, and in scenarios 1 and 3."""
    from common.experiments.worst_case import result_path  # not above: only this needs its attacks, which are slow to import

    return [result_path(run, defense, scenario, count) for scenario in (None, "1", "3")]


def with_needed(defenses: Sequence[str]) -> list[str]:
    """The defenses, each once and after those that it needs."""
    return list(dict.fromkeys(name for defense in defenses for name in (*DEFENSES[defense].needs, defense)))


def json_state(path: Path, wanted: dict[str, Any]) -> str:
    """The state of a product whose settings are a JSON file, or are in one under `settings`."""
    if not path.is_file():
        return MISSING
    content = read_json(path, MAKER)
    return _compare(content.get("settings", content), wanted)


def candidates_state(run: Run, protocol: str) -> str:
    """The state of the candidates of an evaluation."""
    if missing_shards(run, protocol):
        return MISSING
    return json_state(candidates_dir(run) / "settings.json", candidate_settings(run))


def model_state(path: Path, wanted: dict[str, Any]) -> str:
    """The state of a checkpoint."""
    return _compare(checkpoint_facts(path, MAKER)["settings"], wanted) if path.is_file() else MISSING


def rows_state(paths: Sequence[Path], run: Run) -> str:
    """The state of an evaluation. Rows made under other settings count as missing: evaluating again costs little."""
    rows = [read_json(path, MAKER) for path in paths if path.is_file()]
    return DONE if len(rows) == len(paths) and all(_same_config(row, run) for row in rows) else MISSING


def experiment_state(kind: str, defenses: Sequence[str], run: Run) -> str:
    """The state of a further experiment: DONE where any row of each defense was made under these settings."""
    rows = [read_json(path, MAKER) for path in run.results_dir("clean").glob(f"{kind}-*.json")]
    made = {row["defense"] for row in rows if _same_config(row, run)}
    return DONE if made.issuperset(defenses) else MISSING


def _same_config(row: dict[str, Any], run: Run) -> bool:
    """Whether a row was made under the run's config.

    Settings that are newer than the row had their defaults, and defenses that are newer had no part in it.
    """
    stored, wanted = with_defaults(row["config"]), run.config.as_dict()
    wanted["defenses"] = {name: section for name, section in wanted["defenses"].items() if name in stored["defenses"]}
    return stored == wanted


def _compare(stored: Any, wanted: dict[str, Any]) -> str:
    lines = differences(stored, wanted)
    return f"{OTHER} ({'; '.join(lines[:3])})" if lines else DONE
