"""The command lines of the experiments beyond the paper's main table."""

from collections.abc import Sequence
from pathlib import Path

from common.cli import make_parser
from common.commands.options import DEFENSE_NAMES, open_defense_run, parse_options
from common.config import require


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
    parsed = parse_options(parser, folder, arguments, positive=("m", "count"))
    from common.experiments.repeated_queries import repeated_queries, result_path
    from common.report.experiments import repeated_queries_markdown

    run = open_defense_run(folder, parsed)
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
    parsed = parse_options(parser, folder, arguments, positive=("count", "steps"))
    from common.experiments import label_only as experiment
    from common.report.experiments import label_only_markdown

    run = open_defense_run(folder, parsed)
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
    parsed = parse_options(parser, folder, arguments)
    from common.experiments import intervals as experiment
    from common.report.experiments import intervals_markdown

    run = open_defense_run(folder, parsed)
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
    parsed = parse_options(parser, folder, arguments)
    from common.experiments import n_and_t as experiment

    run = open_defense_run(folder, parsed)
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
    parsed = parse_options(parser, folder, arguments, positive=("count",))
    from common.experiments import frontier as experiment

    run = open_defense_run(folder, parsed)
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
    parsed = parse_options(parser, folder, arguments, positive=("batch", "count"))
    from common.experiments import overhead as experiment

    run = open_defense_run(folder, parsed)
    row = experiment.overhead(run, parsed.defense, parsed.scenario, parsed.batch, parsed.count)
    print(f"\n{run.dataset}, {run.profile_name}, N = {row['n']}, T = {row['t']}, {row['device']}, {row['threads']} thread(s)\n")
    print(experiment.summary(row))
    print(f"\nJSON row: {experiment.result_path(run, parsed.defense, parsed.batch, parsed.count)}")


def training_cost(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/evaluate_MIAs/training_cost.py --defense NAME`"""
    parser = make_parser(folder, f"The seconds of a training of {folder.name}, from its logs (Table VIII).")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parsed = parse_options(parser, folder, arguments)
    from common.experiments import training_cost as experiment

    run = open_defense_run(folder, parsed)
    row = experiment.training_cost(run, parsed.defense)
    print(f"\n{run.dataset}, {run.profile_name}, {parsed.defense}, seed {run.seed}: {row['seconds']:.1f} s\n")
    print(experiment.summary(row))
    print(f"\nJSON row: {experiment.result_path(run, parsed.defense)}")


def worst_case(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/evaluate_MIAs/worst_case.py --defense NAME`"""
    parser = make_parser(folder, f"Attack canaries, images of {folder.name} with a wrong label, and as many random images.")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument("--scenario", nargs="+", default=["1", "3"], help="one or more of 1, 2, 3 and average (default: 1 3)")
    parser.add_argument("--count", type=int, default=16, help="models, even, from 6; each is the target once (default: 16)")
    parsed = parse_options(parser, folder, arguments)
    require(parsed.count >= 6 and parsed.count % 2 == 0, f"--count must be an even number from 6, not {parsed.count}.")
    from common.experiments import worst_case as experiment
    from common.report.experiments import worst_case_markdown

    run = open_defense_run(folder, parsed)
    rows = experiment.worst_case(run, parsed.defense, parsed.scenario, parsed.count)
    print(f"\n{run.dataset}, {run.profile_name}, {parsed.defense}, seed {run.seed}: {parsed.count} models\n")
    print(worst_case_markdown(*rows))
    print(f"\nJSON rows: {run.results_dir('clean')}")
