"""`python -m common.report`: make all tables from the rows in results/, and nothing else.

    python -m common.report collect cifar10 synthetic    # first copy what was measured there to results/<data set>/<setting>/
    python -m common.report                              # results/README.md has every table; README.md and docs/ have a few

A row is copied only if it was made from a commit. A row that nobody else can make again is no result.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import ROOT, run_script


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. `folder` is the repository's root."""
    parser = argparse.ArgumentParser(
        prog="python -m common.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="collect")
    collecting = commands.add_parser("collect", help="copy measured rows and pictures into results/ first")
    collecting.add_argument("datasets", nargs="+", metavar="DATASET", help="cifar10, cifar100, svhn, synthetic, or your own")
    parsed = parser.parse_args(arguments)
    from common.files import write_text  # imports PyTorch, for which --help does not wait
    from common.report.collect import collect
    from common.report.pages import fill_pages

    for dataset in parsed.datasets if parsed.command else []:
        print(f"{len(collect(dataset))} rows of {dataset} are in results/")
    for path, text in fill_pages(folder).items():
        write_text(path, text)
        print(f"{path.relative_to(folder)}: tables made from results/")


if __name__ == "__main__":
    run_script(main, ROOT)
