"""`python -m common.tables`: copy measured rows and pictures into results/, and make all tables from results/ alone.

    python -m common.tables collect cifar10 synthetic    # what was measured there joins results/<data set>/<setting>/
    python -m common.tables                              # results/README.md has every table, README.md a few

A row is taken only if it was made from a commit: what nobody else can run again is no result.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from common import cli
from common.data import DATASETS
from common.errors import UserError, check_name
from common.files import atomic_write, read_json
from common.pages import cost_of, headlines, results_page, setting

ROOT = Path(__file__).parents[1]


def collect(dataset: str) -> list[Path]:
    """Copy a data set's rows and pictures to results/<data set>/<setting>/; returns the rows' files."""
    source = ROOT / check_name("data set", dataset, DATASETS) / "evaluate_MIAs" / "results"
    copied = []
    for path in sorted(source.rglob("*.json")):
        row = read_json(path, f"bash {dataset}/evaluate_MIAs/evaluate_mia.sh --defense NAME")
        if not re.fullmatch(r"[0-9a-f]{12}", row["commit"]):
            raise UserError(f"{path} was made from uncommitted code ({row['commit']}): commit, and run the evaluation again.")
        target = ROOT / "results" / dataset / setting(row)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.name)
        diffusion = ROOT / dataset / "diff_defense" / "diff_models" / row["profile"] / f"seed{row['seed']}"
        pictures = [path.with_name(f"{path.stem}_roc.png")]
        pictures += [path.with_name(f"{row['defense']}_{kind}.png") for kind in ("phi", "reliability")]
        for picture in (*pictures, diffusion / "reconstructions.png"):
            if picture.is_file():
                shutil.copy(picture, target / picture.name)
        copied.append(target / path.name)
    return copied


def fill(readme: str, root: Path) -> str:
    """`readme` with the text between its `<!-- tables -->` and `<!-- cost -->` markers made anew from `root`/results."""
    for name, make in (("tables", headlines), ("cost", cost_of)):
        before, start, rest = readme.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if not (start and end):
            raise UserError(f"README.md lacks its markers <!-- {name} --> and <!-- end of {name} -->: restore them.")
        readme = f"{before}{start}{make(root)}\n{end}{after}"
    return readme


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line; `folder` is the repository's root."""
    if arguments and (arguments[0] != "collect" or len(arguments) == 1):
        print(__doc__)
        sys.exit(0 if arguments[0] in ("-h", "--help") else 2)
    for dataset in arguments[1:]:
        print(f"{len(collect(dataset))} rows of {dataset} are in results/")
    pages = {folder / "README.md": fill((folder / "README.md").read_text(), folder)}
    pages[folder / "results" / "README.md"] = results_page(folder)
    for path, text in pages.items():
        atomic_write(path, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        print(f"{path.relative_to(folder)}: tables made from results/")


if __name__ == "__main__":
    cli.run_script(main, ROOT)
