"""`python -m common.report`: make all tables, figures and pages from the rows in results/.

    python -m common.report                              # everything: results/, README.md, docs/ and results/report.html
    python -m common.report collect cifar10 synthetic    # the same, after copying the rows of these data sets to results/
    python -m common.report --table III --figure 11      # these alone, in report/
    python -m common.report --dataset cifar10 --profile narrow --protocol released
    python -m common.report --rows synthetic/evaluate_MIAs/results --out my_report    # of rows that were not collected

Rows are copied to results/<data set>/<setting>/. A row that was made from uncommitted code is refused, because nobody could
reproduce it. With any option, what results/ holds is left as it is, and the tables and figures of the paper are written into
the folder --out, with report.html beside them.
"""

from collections.abc import Sequence
from pathlib import Path

from common.cli import ROOT, module_parser, run_script
from common.errors import UserError


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. `folder` is the repository's root."""
    parser = module_parser("report", __doc__)
    parser.add_argument("--table", nargs="+", default=[], metavar="III", help="these tables of the paper, III to VIII")
    parser.add_argument(
        "--figure",
        nargs="+",
        default=[],
        metavar="11",
        help="these figures of the paper, 1 and 3 to 14, frontier, worst_case",
    )
    parser.add_argument("--dataset", nargs="+", default=[], help="rows of these data sets alone")
    parser.add_argument("--profile", nargs="+", default=[], help="rows of these profiles alone")
    parser.add_argument("--protocol", nargs="+", default=[], help="rows of these protocols alone: clean, released")
    parser.add_argument("--rows", type=Path, metavar="DIR", help="take the rows of this folder, not those of results/")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write here (default: report/)")
    commands = parser.add_subparsers(dest="command", metavar="collect")
    collecting = commands.add_parser("collect", help="first copy rows and pictures of data sets to results/")
    collecting.add_argument("datasets", nargs="+", metavar="DATASET", help="cifar10, cifar100, svhn, synthetic, or your own")
    parsed = parser.parse_args(arguments)
    chosen = any((parsed.table, parsed.figure, parsed.dataset, parsed.profile, parsed.protocol, parsed.rows, parsed.out))
    if chosen and parsed.command:
        raise UserError("collect makes everything again and takes no options: leave them out.")
    from common.report.editions import Selection  # not above: it imports PyTorch, which would make --help slow
    from common.report.make import make_all, make_chosen

    if chosen:
        selection = Selection(tuple(parsed.dataset), tuple(parsed.profile), tuple(parsed.protocol))
        rows, out = parsed.rows or folder / "results", parsed.out or folder / "report"
        page = make_chosen(folder, rows, out, selection, parsed.table, parsed.figure)
    else:
        page = make_all(folder, parsed.datasets if parsed.command else [])
    print(f"Report: {page.resolve()}")


if __name__ == "__main__":
    run_script(main, ROOT)
