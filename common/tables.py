"""`python -m common.tables`: copy measured rows and pictures into results/, and make README's tables from results/ alone.

    python -m common.tables collect cifar10 synthetic    # what was measured there joins results/<data set>/<setting>/
    python -m common.tables                              # README's tables, from the rows in results/

A row is taken only if it was made from a commit: what nobody else can run again is no result.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from common import cli
from common.errors import UserError, check_name
from common.files import atomic_write, read_json
from common.report import SCENARIO_TITLES, markdown

ROOT = Path(__file__).parents[1]
DATASETS = ("cifar10", "cifar100", "svhn", "synthetic")


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
        pictures = [path.with_name(f"{path.stem}_roc.png"), path.with_name(f"{row['defense']}_phi.png")]
        for picture in (*pictures, diffusion / "reconstructions.png"):
            if picture.is_file():
                shutil.copy(picture, target / picture.name)
        copied.append(target / path.name)
    return copied


def setting(row: dict[str, Any]) -> str:
    """The folder of a row under results/<data set>/: profile, protocol, seed and what --set changed."""
    return "-".join([row["profile"], row["protocol"], f"seed{row['seed']}", *row.get("overrides", [])])


def measured(root: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows under `root`/results by (data set, setting), in the order of the paper's Table III."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted((root / "results").glob("*/*/*.json")):
        row = read_json(path, "git checkout results")
        found.setdefault((row["dataset"], setting(row)), []).append(row)
    order = [None, *SCENARIO_TITLES]
    for rows in found.values():
        rows.sort(key=lambda row: (row["defense"], order.index(row["diffence"]["scenario"] if row["diffence"] else None)))
    return found


def text_of(root: Path) -> str:
    """All tables as Markdown."""
    parts = []
    for (dataset, name), rows in measured(root).items():
        first = rows[0]
        facts = next((row["diffence"] for row in rows if row["diffence"]), None)
        diffence = f"; N = {facts['n']}, T = {facts['t']}" if facts else ""
        parts.append(
            f"**{dataset}, {name.replace('-', ', ')}**: {first['config']['data']['members']:,} members, scored "
            f"{first['scored']['members']:,} + {first['scored']['non_members']:,}, train accuracy of scored members "
            f"{100 * first['accuracy']['members']:.1f}%{diffence}; commit {first['commit']}, torch {first['torch']}, "
            f"{first['device']}.\n\n{markdown(rows)}"
        )
    return "\n\n".join(parts)


def cost_of(root: Path) -> str:
    """The table of benchmarks/reconstruction.py as Markdown, from its JSON."""
    paths = sorted((root / "results").glob("benchmark_reconstruction*.json"))
    runs = [read_json(path, "python -m benchmarks.reconstruction") for path in paths]
    if not runs:
        raise UserError("results/ holds no benchmark. Make it with: python -m benchmarks.reconstruction")
    made = runs[0]
    drawn = made["draws_per_query"]
    lines = [
        {
            "threads": one["threads"],
            "batch": run["batch"],
            **{f"{name} (CPU s)": run[f"{name}_cpu_s"] for name in ("released", "eager", "lazy")},
            "released / eager": run["released_over_eager"],
            "released / lazy": run["released_over_lazy"],
        }
        for one in runs
        for run in one["runs"]
    ]
    work = "; ".join(
        f"{name}: {made['unet_evaluations'][name]:.3g} network evaluations, {made['query_gflop'][name]:.0f} GFLOP"
        for name in ("released", "eager", "lazy")
    )
    return (
        f"{pd.DataFrame(lines).to_markdown(index=False)}\n\n"
        f"A query costs, {work}. Lazily, scenario 3 drew {drawn['members']:.2f} candidates a member and "
        f"{drawn['non_members']:.2f} a non-member in the row `{drawn['from']}`; timed with {made['lazy_timed_with_draws']} "
        f"an image. The search of scenario 1's interval takes {1000 * made['interval_search_cpu_s']:.0f} ms of CPU for 1,000 + "
        f"1,000 points; torch {made['torch']}."
    )


def fill(readme: str, root: Path) -> str:
    """`readme` with the text between its `<!-- tables -->` and `<!-- cost -->` markers made anew from `root`/results."""
    for name, make in (("tables", text_of), ("cost", cost_of)):
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
    readme = folder / "README.md"
    text = fill(readme.read_text(), folder)
    atomic_write(readme, lambda file: file.write(text.encode()))
    print("README.md: tables made from results/")


if __name__ == "__main__":
    cli.run_script(main, ROOT)
