"""`python -m common.tables`: copy measured rows and pictures into results/, and make README's tables from results/ alone.

    python -m common.tables collect cifar10 synthetic    # what was measured there joins results/<data set>/<setting>/
    python -m common.tables                              # README's tables, from the rows in results/

A row is taken only if it was made from a commit: what nobody else can run again is no result.
"""

import json
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
from common.report import (
    SCENARIO_TITLES,
    accuracy_delta,
    as_markdown,
    label_only_markdown,
    markdown,
    names,
    questions_markdown,
)
from common.uncertainty import mean_and_sd

ROOT = Path(__file__).parents[1]
DATASETS = ("cifar10", "cifar100", "svhn", "synthetic")
ORDER = ("undefended", "selena", "advreg", "hamp", "relaxloss", "dpsgd", "memguard")  # of the paper's Table III; then others

Rows = list[dict[str, Any]]


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


def setting(row: dict[str, Any]) -> str:
    """The folder of a row under results/<data set>/: profile, protocol, seed and what --set changed."""
    return "-".join([row["profile"], row["protocol"], f"seed{row['seed']}", *row["overrides"]])


def measured(root: Path) -> dict[tuple[str, str], Rows]:
    """The evaluations under `root`/results by (data set, setting), in the order of the paper's Table III."""
    found: dict[tuple[str, str], Rows] = {}
    for path in sorted((root / "results").glob("*/*/*.json")):
        row = read_json(path, "git checkout results")
        if "best" in row:  # other experiments' rows, of attacks on Diffence itself say, have none
            found.setdefault((row["dataset"], setting(row)), []).append(row)
    order = [None, *SCENARIO_TITLES]

    def place(row: dict[str, Any]) -> tuple[int, str, int]:
        defense = row["defense"]
        rank = ORDER.index(defense) if defense in ORDER else len(ORDER)
        return rank, defense, order.index(row["diffence"]["scenario"] if row["diffence"] else None)

    return {key: sorted(rows, key=place) for key, rows in found.items()}


def text_of(root: Path) -> str:
    """All tables as Markdown: a pair for each setting, the paper's Table III beside ours, and means over seeds."""
    parts = []
    settings = measured(root)
    for (dataset, name), rows in settings.items():
        first = rows[0]
        facts = next((row["diffence"] for row in rows if row["diffence"]), None)
        diffence = f"; N = {facts['n']}, T = {facts['t']}" if facts else ""
        commits = dict.fromkeys(row["commit"] for row in rows)
        parts.append(
            f"**{dataset}, {name.replace('-', ', ')}**: {first['config']['data']['members']:,} members, scored "
            f"{first['scored']['members']:,} + {first['scored']['non_members']:,}, train accuracy of scored members "
            f"{100 * first['accuracy']['members']:.1f}%{diffence}; commit {' '.join(commits)}, torch {first['torch']}, "
            f"{first['device']}.\n\n{markdown(rows)}"
        )
        if dataset == "cifar10" and first["profile"] == "small" and not first["overrides"]:
            parts.append(beside_the_paper(rows, paper_table(root)))
    every = [row for rows in settings.values() for row in rows]
    return "\n\n".join([*parts, *over_seeds(every), *experiments(root)])


def experiments(root: Path) -> list[str]:
    """The tables of label-only attacks and of attacks on Diffence itself, whose rows have a file name prefix."""
    parts = []
    for prefix, title, markdown_of in (
        ("label_only", "label-only attacks", label_only_markdown),
        ("attack_diffence", "attacks on Diffence itself", questions_markdown),
    ):
        for path in sorted((root / "results").glob(f"*/*/{prefix}-*.json")):
            row = read_json(path, "git checkout results")
            sides = "{members:,} + {non_members:,}".format(**row["scored"])
            asked = f", M = {row['m']} questions an image" if "m" in row else ""
            where = f"{row['dataset']}, {setting(row).replace('-', ', ')}, {row['defense']}"
            parts.append(f"**{title}: {where}**: scored {sides}{asked}; commit {row['commit']}.\n\n{markdown_of(row)}")
    return parts


def paper_table(root: Path) -> pd.DataFrame:
    """The paper's Table III: defense, scenario, accuracy_delta (points), auc and accuracy (percent)."""
    path = root / "results" / "paper_table3.csv"
    if not path.is_file():
        raise UserError(f"{path} is missing. Get it back with: git checkout results")
    return pd.read_csv(path, comment="#")


def beside_the_paper(rows: Rows, paper: pd.DataFrame) -> str:
    """Our rows beside those of `paper_table`; rows that the paper does not have are left out."""
    published = {(line["defense"], line["scenario"]): line for line in paper.to_dict("records")}
    lines = []
    for row in rows:
        called, change = names(row), accuracy_delta(row, rows)
        theirs = published.get((called["defense"], called["Diffence"]))
        if theirs is not None:
            lines.append(
                {
                    **called,
                    "delta acc": "-" if change is None else f"{change:+.1f}",
                    "paper: delta acc": f"{theirs['accuracy_delta']:+.1f}",
                    "best AUC": f"{row['best']['auc']:.3f}",
                    "paper: best AUC": f"{theirs['auc'] / 100:.3f}",
                    "best ACC": f"{row['best']['accuracy']:.3f}",
                    "oracle ACC": f"{row['best']['accuracy_oracle']:.3f}",
                    "paper: best ACC": f"{theirs['accuracy'] / 100:.3f}",
                }
            )
    caption = (
        f"The rows above ({setting(rows[0]).replace('-', ', ')}) beside the paper's Table III. Sizes differ, so compare "
        "directions, not values: the paper's are averages over CIFAR-10, CIFAR-100 and SVHN of a full ResNet18 with 25,000 "
        "members (SVHN: 5,000), and its accuracies are at oracle thresholds."
    )
    return f"{caption}\n\n{as_markdown(pd.DataFrame(lines))}"


def over_seeds(rows: Rows) -> list[str]:
    """Tables of mean ± sample standard deviation of the rows that differ in their seed alone, one for each such setting."""
    groups: dict[tuple[str, str, str], dict[tuple[str, ...], Rows]] = {}
    for row in rows:
        name = ", ".join([row["profile"], row["protocol"], *row["overrides"]])
        group = groups.setdefault((row["dataset"], name, json.dumps(row["config"], sort_keys=True)), {})
        group.setdefault(tuple(names(row).values()), []).append(row)
    parts = []
    for (dataset, name, _), by_name in groups.items():
        lines = [
            {
                **names(same[0]),
                "seeds": ", ".join(str(row["seed"]) for row in same),
                "test acc %": _spread([100 * row["accuracy"]["non_members"] for row in same], 1),
                "best AUC": _spread([row["best"]["auc"] for row in same], 3),
                "best ACC": _spread([row["best"]["accuracy"] for row in same], 3),
                "gap floor": _spread([row["gap_floor"] for row in same], 3),
                "null AUC": _spread([row["null"]["best"]["auc"] for row in same], 3),
                "ECE": _spread([row["utility"]["ece"] for row in same], 3),
            }
            for same in by_name.values()
            if len(same) > 1
        ]
        if lines:
            title = f"**{dataset}, {name}, over seeds**: mean ± standard deviation (n - 1) of models from several seeds."
            parts.append(f"{title}\n\n{as_markdown(pd.DataFrame(lines))}")
    return parts


def _spread(values: list[float], digits: int) -> str:
    mean, deviation = mean_and_sd(values)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


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
            "precision": run["precision"],
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
