"""`python -m common.grid cifar10 --defense hamp --profile small`: train a defense at every point of a grid of its options.

HAMP and RelaxLoss were tuned by grid search and the settings picked by hand (paper Appendix E). This writes what a person
picks from: a row a setting, and a picture of test accuracy against the best attack's AUC without Diffence. Both come from
the points that protocol `clean` does not score (the defender's and the attacker's, `data.fit` and `data.known`), and the
attacks are those that train nothing: picking on the scored points would flatter the tables. A finished setting is not
trained again, so the same command continues and a larger grid adds to a smaller one. Each setting's models lie in
<data set>/final-all-models/<profile>/seed0/<model>/grid/<defense>/<setting>/.
"""

import signal
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from common.cli import ROOT, make_parser, run_script
from common.config import require
from common.errors import check_name

# The grids of the released code, as --grid takes them (for CIFAR-100 it adds 2 to RelaxLoss's).
GRIDS: dict[str, list[str]] = {
    "hamp": ["gamma=0.5,0.6,0.7,0.8,0.9,0.95,0.99", "alpha=0.0005,0.001,0.005,0.01"],
    "relaxloss": ["alpha=0.00001,0.00005,0.0001,0.0005,0.001,0.005,0.01,0.05,0.07,0.1,0.2,0.3,0.4,0.5,1"],
}


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. `folder` is the repository's root; the data set is the first argument."""
    helping = any(word in ("-h", "--help") for word in arguments)
    dataset = "cifar10" if helping else "".join(arguments[:1])
    parser = make_parser(folder / dataset, "Train a defense at every point of a grid and draw its utility and its privacy.")
    parser.add_argument("dataset", help="cifar10, cifar100, svhn, synthetic, or your own; named first")
    parser.add_argument("--defense", required=True, help=f"{' or '.join(GRIDS)}; others with --grid")
    parser.add_argument(
        "--grid", nargs="+", default=[], metavar="OPTION=VALUE,VALUE", help="as in --grid gamma=0.5,0.8 alpha=0.001"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many minutes; a rerun continues")
    if helping:
        parser.parse_args(arguments)
    from common.data import DATASETS  # imports PyTorch, for which --help does not wait
    from common.data.partition import load_split
    from common.defenses import DEFENSES, with_options
    from common.grid.search import grid_runs, read_grid, search, write
    from common.run import open_run

    check_name("data set (named first)", dataset, DATASETS)
    parsed = parser.parse_args(arguments)
    check_name("defense", parsed.defense, DEFENSES)
    require(parsed.minutes > 0, f"--minutes must be positive, not {parsed.minutes}.")
    run = with_options(open_run(folder / dataset, parsed))
    grid = parsed.grid or GRIDS.get(parsed.defense, [])
    known = " and ".join(GRIDS)
    require(bool(grid), f"there is no default grid for {parsed.defense} (only for {known}): name one, as in --grid alpha=3,6.")
    runs = grid_runs(run, parsed.defense, read_grid(grid))
    if isfinite(parsed.minutes):  # as Ctrl-C would, which every training survives
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 60 * parsed.minutes)
    split, results = load_split(run), run.results_dir("clean")
    options = [word.split("=")[0] for word in runs[0].setting]
    for table in search(run, runs, split):
        if len(table) > 1:
            write(results, f"{run.dataset}, {run.profile_name}, {parsed.defense}", table, options)
    columns = ["defense", *options, "pareto", "test_accuracy", "train_accuracy", "best_auc", "gap_floor", "null_auc"]
    ranked = table.sort_values("test_accuracy", ascending=False)[columns]
    print(ranked.to_markdown(index=False, floatfmt=".3f", disable_numparse=range(1, 1 + len(options))))
    print(f"\n{results / parsed.defense}_grid.csv and .png. What you pick goes into {folder / dataset / 'configs'}.")


if __name__ == "__main__":
    run_script(main, ROOT)
