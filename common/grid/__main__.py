"""`python -m common.grid cifar10 --defense hamp --profile small`: train a defense at every point of a grid of its options.

The paper tunes HAMP and RelaxLoss by grid search and picks the settings by hand (Appendix E). This command writes a table with
a row for each setting, and a picture of test accuracy against the best attack's AUC without Diffence, from which a setting can
be picked. Both are measured on the points that protocol `clean` does not score (the defender's and the attacker's, `data.fit`
and `data.known`), because a pick on the scored points would make the results look too good. The attacks are those that train
nothing. A finished setting is not trained again: the same command continues a search, and a larger grid adds to a smaller one.
The models of a setting lie in <data set>/final-all-models/<profile>/seed0/<model>/grid/<defense>/<setting>/.
"""

import signal
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from common.cli import ROOT, make_parser, run_script
from common.config import require
from common.errors import check_name

# The grids of the released code, as words of --grid. For CIFAR-100 the released grid of RelaxLoss has 2 as well.
GRIDS: dict[str, list[str]] = {
    "hamp": ["gamma=0.5,0.6,0.7,0.8,0.9,0.95,0.99", "alpha=0.0005,0.001,0.005,0.01"],
    "relaxloss": ["alpha=0.00001,0.00005,0.0001,0.0005,0.001,0.005,0.01,0.05,0.07,0.1,0.2,0.3,0.4,0.5,1"],
}


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. `folder` is the repository's root; the data set is the first argument."""
    wants_help = any(word in ("-h", "--help") for word in arguments)
    dataset = "cifar10" if wants_help else "".join(arguments[:1])
    description = "Train a defense at every point of a grid and draw its utility and its privacy."
    parser = make_parser(folder / dataset, description, prog="python -m common.grid")
    parser.add_argument("dataset", help="cifar10, cifar100, svhn, synthetic, or your own; named first")
    parser.add_argument("--defense", required=True, help=f"{' or '.join(GRIDS)}; others with --grid")
    parser.add_argument(
        "--grid", nargs="+", default=[], metavar="OPTION=VALUE,VALUE", help="as in --grid gamma=0.5,0.8 alpha=0.001"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many minutes; a rerun continues")
    if wants_help:
        parser.parse_args(arguments)
    from common.data import DATASETS  # imports PyTorch, for which --help does not wait
    from common.data.partition import load_split
    from common.defenses import DEFENSES, with_options
    from common.grid.search import grid_runs, read_grid, search, write_table
    from common.run import open_run

    check_name("data set (named first)", dataset, DATASETS)
    parsed = parser.parse_args(arguments)
    check_name("defense", parsed.defense, DEFENSES)
    require(parsed.minutes > 0, f"--minutes must be positive, not {parsed.minutes}.")
    run = with_options(open_run(folder / dataset, parsed))
    grid = parsed.grid or GRIDS.get(parsed.defense, [])
    names = " and ".join(GRIDS)
    require(bool(grid), f"there is no default grid for {parsed.defense} (only for {names}): name one, as in --grid alpha=3,6.")
    runs = grid_runs(run, parsed.defense, read_grid(grid))
    if isfinite(parsed.minutes):  # stop as Ctrl-C does; a stopped training can be continued
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 60 * parsed.minutes)
    split, results = load_split(run), run.results_dir("clean")
    options = [word.split("=")[0] for word in runs[0].setting]
    for table in search(run, runs, split):
        if len(table) > 1:
            write_table(results, f"{run.dataset}, {run.profile_name}, {parsed.defense}", table, options)
    columns = ["defense", *options, "pareto", "test_accuracy", "train_accuracy", "best_auc", "gap_floor", "null_auc"]
    ranked = table.sort_values("test_accuracy", ascending=False)[columns]
    print(ranked.to_markdown(index=False, floatfmt=".3f", disable_numparse=range(1, 1 + len(options))))
    print(f"\n{results / parsed.defense}_grid.csv and .png. What you pick goes into {folder / dataset / 'configs'}.")


if __name__ == "__main__":
    run_script(main, ROOT)
