"""The command lines of a data set's scripts.

Every command parses its options before it imports PyTorch, so that --help and the refusal of a wrong option take
less than a second.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import make_parser
from common.config import PROTOCOLS, SCENARIOS, load_config, require
from common.errors import UserError, check_name

if TYPE_CHECKING:
    from common.run import Run

# The text of --help. It is not made from common.defenses.DEFENSES, which imports PyTorch.
DEFENSE_NAMES = "undefended, selena, advreg, hamp, relaxloss, dpsgd, dpsgd-private, memguard, or your own"

# Options that stand for a setting: `--n 10` is `--set diffence.n=10`.
SETTINGS = {"n": "diffence.n", "t": "diffence.t", "shadows": "attack.shadows"}


def _parse(parser: ArgumentParser, folder: Path, arguments: Sequence[str], positive: Sequence[str] = ()) -> Namespace:
    """Parse the options, and raise UserError for wrong settings, scenarios and protocols before anything slow is imported.

    The options named in `positive` must be at least 1.
    """
    parsed = parser.parse_args(arguments)
    values = vars(parsed)
    parsed.set += [f"{key}={values[option]}" for option, key in SETTINGS.items() if values.get(option) is not None]
    load_config(folder, parsed.profile, parsed.set)
    scenarios = values.get("scenario")
    for scenario in [scenarios] if isinstance(scenarios, str) else scenarios or []:
        check_name("scenario", scenario, SCENARIOS)
    if "protocol" in values:
        check_name("protocol", parsed.protocol, PROTOCOLS)
    for option in positive:
        require(values[option] > 0, f"--{option} must be at least 1, not {values[option]}.")
    return parsed


def _open_defense_run(folder: Path, parsed: Namespace) -> Run:
    """The run for the parsed options of a command with --defense, of one name or several.

    Raises UserError for an unknown defense or wrong settings.
    """
    from common.defenses import DEFENSES, with_options
    from common.run import open_run

    for defense in [parsed.defense] if isinstance(parsed.defense, str) else parsed.defense:
        check_name("defense", defense, DEFENSES)
    return with_options(open_run(folder, parsed))


def data_partition(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/data_partition.py`"""
    parser = make_parser(folder, f"Partition {folder.name} into members, reference and non-members.", seed=False, device=False)
    parser.add_argument(
        "--root", type=Path, help=f"folder of the official files (default: $DIFFENCE_DATA, else {folder.name}/data)"
    )
    parsed = _parse(parser, folder, arguments)
    from common.data import DATASETS
    from common.data.partition import load_split, write_partition
    from common.files import read_json
    from common.run import open_run

    run = open_run(folder, parsed)
    if (run.partition_dir / "manifest.json").is_file():
        load_split(run)  # raises UserError if it is damaged or was made under other settings
        print(f"{run.partition_dir} exists and is intact.")
        return
    elsewhere = Path(os.environ["DIFFENCE_DATA"]) if os.environ.get("DIFFENCE_DATA") else folder / "data"
    counts = write_partition(run, parsed.root or DATASETS[run.dataset].root or elsewhere)
    for reason, files in read_json(run.partition_dir / "manifest.json", "").get("left_out", {}).items():
        if files:
            print(f"left out: {len(files):,} files, such as {files[0]}: {reason}")
    print(f"{run.partition_dir}: " + ", ".join(f"{count:,} {part.replace('_', '-')}" for part, count in counts.items()))


def train_defense(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/train_defense.py --defense NAME`"""
    parser = make_parser(folder, f"Train a classifier on the members of {folder.name} under a defense.")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument("--part", type=int, metavar="INT", help="train this sub-model only (SELENA: 0..K-1)")
    parsed = _parse(parser, folder, arguments)
    from common.data.partition import load_split
    from common.defenses import DEFENSES
    from common.training.distributed import is_first, processes
    from common.training.loop import accuracy
    from common.training.targets import PostInference, model_path

    run = _open_defense_run(folder, parsed)
    defense = DEFENSES[parsed.defense]
    split = load_split(run)
    if parsed.part is not None:
        if defense.train_part is None:
            raise UserError(f"{parsed.defense} has no sub-models: leave out --part.")
        with processes(run.device):
            defense.train_part(run, split, parsed.part)
        return
    with processes(run.device):
        model = defense.train(run, split)
        if not is_first():
            return
    classifier = model.classifier if isinstance(model, PostInference) else model  # post-inference defenses change no label
    members, non_members = (accuracy(classifier, examples, run.device) for examples in (split.members, split.non_members))
    print(f"{model_path(run, parsed.defense)}: accuracy {members:.4f} on members, {non_members:.4f} on non-members")


def train_shadows(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/train_shadows.py --defense NAME`"""
    parser = make_parser(folder, f"Train shadow models of {folder.name} under a defense, for LiRA and RMIA.")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument("--count", type=int, default=64, help="how many, even, from 4 (default: 64; 16 for a first look)")
    parser.add_argument("--index", type=int, metavar="INT", help="train this one only (from 0), as a job of its own")
    parsed = _parse(parser, folder, arguments)
    require(parsed.count >= 4 and parsed.count % 2 == 0, f"--count must be an even number from 4, not {parsed.count}.")
    from tqdm import tqdm

    from common.data.partition import load_split
    from common.experiments.shadow_models import shadow_run, train_shadow

    run = _open_defense_run(folder, parsed)
    split = load_split(run)
    indices = range(parsed.count) if parsed.index is None else [parsed.index]
    for index in tqdm(indices, desc=f"shadow models, {parsed.defense}", unit="model", disable=None):
        train_shadow(run, split, parsed.defense, index)
    print(f"{shadow_run(run, 0).models_dir.parent}: {len(indices)} shadow models under {parsed.defense}")


def train_ddpm(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/diff_defense/train_ddpm.py`"""
    parser = make_parser(folder, f"Train the diffusion model that re-generates images of {folder.name}.")
    parsed = _parse(parser, folder, arguments)
    from common.data.partition import load_split
    from common.diffence import ddpm
    from common.run import open_run
    from common.training.distributed import is_first, processes

    run = open_run(folder, parsed)
    split = load_split(run)
    with processes(run.device):
        ddpm_folder = ddpm.train_ddpm(run, ddpm.training_images(run, split))
        if not is_first():
            return
    picture = ddpm_folder / "reconstructions.png"
    ddpm.save_grid(run, split, picture)
    print(f"{ddpm_folder / 'unet'}: the diffusion model; {picture}: originals above their reconstructions")


def draw_candidates(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/diff_defense/draw_candidates.py`"""
    parser = make_parser(folder, f"Draw the candidates of all evaluated images of {folder.name}, once for every defense.")
    parser.add_argument("--protocol", default="clean", help="clean or released (default: clean)")
    parsed = _parse(parser, folder, arguments)
    from common.data.partition import load_split
    from common.diffence.candidates import draw_all
    from common.run import open_run
    from common.training.distributed import is_first, processes

    run = open_run(folder, parsed)
    split = load_split(run)
    with processes(run.device):
        draw_all(run, split, parsed.protocol)
        if not is_first():
            return
    print(f"{run.candidates_dir}: {run.config.diffence.n} candidates of every evaluated image")


def evaluate_mia(folder: Path, arguments: Sequence[str]) -> None:
    """`bash <data set>/evaluate_MIAs/evaluate_mia.sh --defense NAME`"""
    parser = make_parser(folder, f"Attack a classifier of {folder.name}, without and with Diffence.")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument("--scenario", nargs="+", default=["1"], help="one or more of 1, 2, 3 and average (default: 1)")
    parser.add_argument("--n", type=int, help="candidates for each image, N (default: the profile's)")
    parser.add_argument("--t", type=int, help="diffusion step T, 1..1000 (default: the profile's)")
    parser.add_argument("--protocol", default="clean", help="clean or released (default: clean)")
    parser.add_argument("--shadows", type=int, help="also LiRA and RMIA, with this many shadow models (train_shadows.py)")
    parsed = _parse(parser, folder, arguments)
    from common.experiments.evaluate import evaluate
    from common.report.rows import tables_markdown

    run = _open_defense_run(folder, parsed)
    rows = evaluate(run, parsed.defense, parsed.protocol, parsed.scenario)
    print(f"\n{run.dataset}, {run.profile_name}, protocol {parsed.protocol}, seed {run.seed}\n")
    print(tables_markdown(rows))
    print(f"\nText, JSON rows, scores and pictures: {run.results_dir(parsed.protocol)}")


def attack_diffence(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/evaluate_MIAs/attack_diffence.py --defense NAME`"""
    parser = make_parser(
        folder, f"Attack Diffence itself on {folder.name}: query each image M times, without and with diffence.stable."
    )
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument("--scenario", nargs="+", default=["1", "3"], help="one or more of 1, 2, 3 and average (default: 1 3)")
    parser.add_argument("--m", type=int, default=16, help="queries for each image, M (default: 16)")
    parser.add_argument(
        "--count", type=int, default=200, help="scored images of each side, and as many known ones (default: 200)"
    )
    parsed = _parse(parser, folder, arguments, positive=("m", "count"))
    from common.experiments.repeated_queries import repeated_queries, result_path
    from common.report.experiments import repeated_queries_markdown

    run = _open_defense_run(folder, parsed)
    row = repeated_queries(run, parsed.defense, parsed.scenario, parsed.m, parsed.count)
    print(f"\n{run.dataset}, {run.profile_name}, {parsed.defense}, seed {run.seed}: {row['m']} queries for each image\n")
    print(repeated_queries_markdown(row))
    print(f"\nJSON row: {result_path(run, parsed.defense, parsed.m, parsed.count)}")


def label_only(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/evaluate_MIAs/label_only.py --defense NAME`"""
    parser = make_parser(
        folder, f"Attack a classifier of {folder.name} by its labels alone: gap, augmentation and boundary attack."
    )
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument(
        "--count", type=int, default=100, help="scored images of each side, and as many known ones (default: 100)"
    )
    parser.add_argument(
        "--steps", type=int, default=20, help="of HopSkipJump; 20 need 6,600 labels for each image (default: 20)"
    )
    parser.add_argument("--scenario", help="of Diffence: 1, 2, 3 or average (default: without Diffence)")
    parser.add_argument("--protocol", default="clean", help="clean or released (default: clean)")
    parsed = _parse(parser, folder, arguments, positive=("count", "steps"))
    from common.experiments import label_only as experiment
    from common.report.experiments import label_only_markdown

    run = _open_defense_run(folder, parsed)
    settings = (run, parsed.defense, parsed.protocol, parsed.count, parsed.steps, parsed.scenario)
    row = experiment.label_only(*settings)
    print(f"\n{run.dataset}, {run.profile_name}, {parsed.defense}, protocol {parsed.protocol}, seed {run.seed}\n")
    print(label_only_markdown(row))
    print(f"\nJSON row: {experiment.result_path(*settings)}")


def intervals(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/evaluate_MIAs/intervals.py --defense NAME`"""
    parser = make_parser(folder, f"Compare all intervals of scenario 1 on a classifier of {folder.name} (Figures 9 and 10).")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument("--protocol", default="clean", help="clean or released (default: clean)")
    parsed = _parse(parser, folder, arguments)
    from common.experiments import intervals as experiment
    from common.report.experiments import intervals_markdown

    run = _open_defense_run(folder, parsed)
    row = experiment.intervals(run, parsed.defense, parsed.protocol)
    print(f"\n{run.dataset}, {run.profile_name}, {parsed.defense}, protocol {parsed.protocol}, seed {run.seed}\n")
    print(intervals_markdown(row))
    print(f"\nJSON row: {experiment.result_path(run, parsed.defense, parsed.protocol)}")


def n_and_t(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/evaluate_MIAs/n_and_t.py --defense NAME`"""
    parser = make_parser(folder, f"Attack classifiers of {folder.name} behind Diffence for many N and T (Figure 11).")
    parser.add_argument("--defense", nargs="+", required=True, help=f"one or more, which share candidates: {DEFENSE_NAMES}")
    parser.add_argument("--scenario", nargs="+", default=["1", "3"], help="one or more of 1, 2, 3 and average (default: 1 3)")
    parser.add_argument("--n", nargs="+", type=int, dest="n_values", metavar="N", help="(default: 2 5 10 20 30 40 50)")
    parser.add_argument(
        "--t",
        nargs="+",
        type=int,
        dest="t_values",
        metavar="T",
        help="(default: those of 40 80 120 160 200 240 260 that the diffusion model is trained on)",
    )
    parser.add_argument("--protocol", default="clean", help="clean or released (default: clean)")
    parsed = _parse(parser, folder, arguments)
    from common.experiments import n_and_t as experiment

    run = _open_defense_run(folder, parsed)
    n_values = sorted(set(parsed.n_values or experiment.N_VALUES))
    t_values = sorted(set(parsed.t_values or experiment.known_steps(run)))
    rows = experiment.n_and_t(run, parsed.defense, parsed.protocol, parsed.scenario, n_values, t_values)
    for row in rows:
        print(f"\n{run.dataset}, {run.profile_name}, {row['defense']}, protocol {parsed.protocol}, seed {run.seed}\n")
        print(experiment.summary(row))
        print(f"\nJSON row: {experiment.result_path(run, row['defense'], parsed.protocol, n_values, t_values)}")


def frontier(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/evaluate_MIAs/frontier.py`"""
    parser = make_parser(
        folder,
        f"Attack a classifier of {folder.name} behind small diffusion models, and time its queries: how small may they be?",
    )
    parser.add_argument("--defense", default="undefended", help=f"{DEFENSE_NAMES} (default: undefended)")
    parser.add_argument(
        "--minutes", type=float, default=5, help="of CPU time, or of a GPU, to train each diffusion model (default: 5)"
    )
    parser.add_argument("--count", type=int, default=1000, help="scored images of each side (default: 1000)")
    parsed = _parse(parser, folder, arguments, positive=("count",))
    from common.experiments import frontier as experiment

    run = _open_defense_run(folder, parsed)
    rows = experiment.frontier(run, parsed.defense, parsed.minutes, parsed.count)
    print(f"\n{run.dataset}, {run.profile_name}, {parsed.defense}, seed {run.seed}\n")
    print(experiment.summary(rows))
    print(f"\nJSON rows: {run.results_dir('clean')}")


def overhead(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/evaluate_MIAs/overhead.py --defense NAME`"""
    parser = make_parser(folder, f"Time the answers of a classifier of {folder.name}, without and with Diffence (Table V).")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument(
        "--scenario", nargs="*", default=["1", "2", "3"], help="none, or more of 1, 2, 3 and average (default: 1 2 3)"
    )
    parser.add_argument("--batch", type=int, default=50, help="images in a call, beside single ones (default: 50)")
    parser.add_argument("--count", type=int, default=100, help="scored images of each side (default: 100)")
    parsed = _parse(parser, folder, arguments, positive=("batch", "count"))
    from common.experiments import overhead as experiment

    run = _open_defense_run(folder, parsed)
    row = experiment.overhead(run, parsed.defense, parsed.scenario, parsed.batch, parsed.count)
    print(f"\n{run.dataset}, {run.profile_name}, N = {row['n']}, T = {row['t']}, {row['device']}, {row['threads']} thread(s)\n")
    print(experiment.summary(row))
    print(f"\nJSON row: {experiment.result_path(run, parsed.defense, parsed.batch, parsed.count)}")


def training_cost(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/evaluate_MIAs/training_cost.py --defense NAME`"""
    parser = make_parser(folder, f"The seconds of a training of {folder.name}, from its logs (Table VIII).")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parsed = _parse(parser, folder, arguments)
    from common.experiments import training_cost as experiment

    run = _open_defense_run(folder, parsed)
    row = experiment.training_cost(run, parsed.defense)
    print(f"\n{run.dataset}, {run.profile_name}, {parsed.defense}, seed {run.seed}: {row['seconds']:.1f} s\n")
    print(experiment.summary(row))
    print(f"\nJSON row: {experiment.result_path(run, parsed.defense)}")


def worst_case(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/evaluate_MIAs/worst_case.py --defense NAME`"""
    parser = make_parser(folder, f"Attack canaries, images of {folder.name} with a wrong label, and as many random images.")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument("--scenario", nargs="+", default=["1", "3"], help="one or more of 1, 2, 3 and average (default: 1 3)")
    parser.add_argument("--count", type=int, default=16, help="models, even, from 4; each is the target once (default: 16)")
    parsed = _parse(parser, folder, arguments)
    require(parsed.count >= 4 and parsed.count % 2 == 0, f"--count must be an even number from 4, not {parsed.count}.")
    from common.experiments import worst_case as experiment
    from common.report.experiments import worst_case_markdown

    run = _open_defense_run(folder, parsed)
    rows = experiment.worst_case(run, parsed.defense, parsed.scenario, parsed.count)
    print(f"\n{run.dataset}, {run.profile_name}, {parsed.defense}, seed {run.seed}: {parsed.count} models\n")
    print(worst_case_markdown(*rows))
    print(f"\nJSON rows: {run.results_dir('clean')}")
