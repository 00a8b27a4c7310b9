"""`python -m common.report`: make all tables from the rows in results/.

    python -m common.report                              # make the tables of results/README.md, README.md and docs/
    python -m common.report collect cifar10 synthetic    # the same, after copying the rows of these data sets to results/

Rows are copied to results/<data set>/<setting>/. A row that was made from uncommitted code is refused, because nobody could
reproduce it.
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
    collecting = commands.add_parser("collect", help="first copy rows and pictures of data sets to results/")
    collecting.add_argument("datasets", nargs="+", metavar="DATASET", help="cifar10, cifar100, svhn, synthetic, or your own")
    parsed = parser.parse_args(arguments)
    from common.files import write_text  # not above: it imports PyTorch, which would make --help slow
    from common.report.collect import collect
    from common.report.pages import fill_pages

    for dataset in parsed.datasets if parsed.command else []:
        print(f"{len(collect(dataset))} rows of {dataset} are in results/")
    for path, text in fill_pages(folder).items():
        write_text(path, text)
        print(f"{path.relative_to(folder)}: tables made from results/")


if __name__ == "__main__":
    run_script(main, ROOT)
