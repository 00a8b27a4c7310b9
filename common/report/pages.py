"""The tables of README.md and of results/README.md, as Markdown, from the rows in results/ alone."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from common.attacks.shadow import SHADOW_ATTACKS
from common.errors import UserError
from common.files import read_json
from common.metrics.intervals import mean_and_sd
from common.report.experiments import label_only_markdown, repeated_queries_markdown
from common.report.rows import SCENARIO_TITLES, accuracy_delta, as_markdown, markdown, names, read_row, warnings_of

ORDER = ("undefended", "selena", "advreg", "hamp", "relaxloss", "dpsgd", "memguard")  # of the paper's Table III; then others
PREFACE = """# Measured

Made by `python -m common.report` from the rows beside this page. *best* is the best of the paper's five attacks, with DeLong's
95% interval: it covers the draw of the scored points, not of the model. *best ACC* is at thresholds fitted on known points,
*oracle ACC* at those of the scored points, as the paper has it. TPR is a count that some threshold attains (Clopper-Pearson
intervals are in the rows). *gap floor*: the attack that calls every correctly classified image a member. *null AUC*: what the
same harness finds under shuffled membership. *no match*: images none of whose N candidates kept the label; *draws*: the
candidates that a query needs when they are drawn one by one."""

Rows = list[dict[str, Any]]


# The tables between `<!-- NAME -->` and `<!-- end of NAME -->` in each page.
MARKED = {"README.md": ("headline",), "docs/findings.md": ("tables",), "docs/cost.md": ("cost",)}


def fill_pages(root: Path) -> dict[Path, str]:
    """Every page with tables, with its tables made from the rows in `root`/results."""
    makers = {"headline": headline_table, "tables": headlines, "cost": cost_of}
    pages = {}
    for name, markers in MARKED.items():
        pages[root / name] = (root / name).read_text()
        for marker in markers:
            pages[root / name] = fill(pages[root / name], marker, makers[marker](root), name)
    return pages | {root / "results" / "README.md": results_page(root)}


def fill(page: str, marker: str, content: str, name: str) -> str:
    """`page` with `content` between its marks. UserError names the file `name` where it lacks them."""
    before, start, rest = page.partition(f"<!-- {marker} -->\n")
    _, end, after = rest.partition(f"<!-- end of {marker} -->")
    if not (start and end):
        raise UserError(f"{name} lacks its marks <!-- {marker} --> and <!-- end of {marker} -->: restore them.")
    return f"{before}{start}{content}\n{end}{after}"


def setting(row: dict[str, Any]) -> str:
    """The folder of a row under results/<data set>/: profile, protocol, seed and what --set changed."""
    return "-".join([row["profile"], row["protocol"], f"seed{row['seed']}", *row["overrides"]])


def rows_of_kind(root: Path, kind: str) -> Rows:
    """The rows of one kind under `root`/results, in the order of their files."""
    rows = map(read_row, sorted((root / "results").glob("*/*/*.json")))
    return [row for row in rows if row["kind"] == kind]


def load_rows(root: Path) -> dict[tuple[str, str], Rows]:
    """The evaluations under `root`/results by (data set, setting), in the order of the paper's Table III."""
    by_setting: dict[tuple[str, str], Rows] = {}
    for row in rows_of_kind(root, "evaluation"):
        by_setting.setdefault((row["dataset"], setting(row)), []).append(row)
    order = [None, *SCENARIO_TITLES]

    def place(row: dict[str, Any]) -> tuple[int, str, int]:
        defense = row["defense"]
        rank = ORDER.index(defense) if defense in ORDER else len(ORDER)
        return rank, defense, order.index(row["diffence"]["scenario"] if row["diffence"] else None)

    return {key: sorted(rows, key=place) for key, rows in by_setting.items()}


def headline_table(root: Path) -> str:
    """README's one table: the undefended classifier without Diffence and with it, for every profile with seed 0.

    The last line is the average of the paper's Table III over its three data sets.
    """
    lines = []
    for (dataset, _), rows in load_rows(root).items():
        first = rows[0]
        if first["seed"] or first["overrides"] or first["protocol"] != "clean" or first["defense"] != "undefended":
            continue
        undefended = [row for row in rows if row["defense"] == "undefended"]
        changed = sum(sum(row["diffence"]["labels_changed"].values()) for row in undefended if row["diffence"])
        lines.append(
            {
                "data set, profile": f"{dataset}, {first['profile']}",
                "members": f"{first['config']['data']['members']:,}",
                "test accuracy": f"{100 * first['accuracy']['non_members']:.1f}%",
                **{names(row)["Diffence"]: f"{row['best']['auc']:.3f}" for row in undefended},
                "gap floor": f"{first['gap_floor']:.3f}",
                "labels changed": str(changed),
            }
        )
    published = [row for row in paper_table(root).to_dict("records") if row["defense"] == "undefended"]
    paper = {row["scenario"]: f"{row['auc'] / 100:.3f}" for row in published}
    lines.append({"data set, profile": "the paper's average", "members": "25,000", **paper, "labels changed": "0"})
    return as_markdown(pd.DataFrame(lines).fillna("-"))


def headlines(root: Path) -> str:
    """README's tables: the best AUCs of every unchanged setting of seed 0, and what shadow models find where they were used."""
    parts = []
    for (dataset, name), rows in load_rows(root).items():
        first = rows[0]
        scored = "{members:,} + {non_members:,}".format(**first["scored"])
        title = f"**{dataset}, {name.replace('-', ', ')}**, scored {scored}"
        shadows = first["config"]["attack"]["shadows"]
        if first["seed"] == 0 and not first["overrides"]:
            paper = paper_table(root) if stands_beside_the_paper(first) else None
            beside = "; ours / Table III of the paper, whose sizes differ" if paper is not None else ""
            parts.append(f"{title}: best AUC of the paper's five attacks{beside}.\n\n{as_markdown(headline(rows, paper))}")
        elif shadows and first["overrides"] == [f"attack.shadows={shadows}"]:
            rate = f"{100 * first['config']['attack']['fpr']:g}%"
            parts.append(f"{title}: AUC (TPR at {rate} FPR) with {shadows} shadow models.\n\n{as_markdown(stronger(rows))}")
            parts += warnings_of(rows)
    return "\n\n".join(parts)


def headline(rows: Rows, paper: pd.DataFrame | None) -> pd.DataFrame:
    """A line a defense: test accuracy, the best AUC without Diffence and in each scenario, and what bounds it from below.

    With `paper` (of `paper_table`) its AUC stands behind ours.
    """
    published = {} if paper is None else {(one["defense"], one["scenario"]): one["auc"] for one in paper.to_dict("records")}
    lines = []
    for defense in dict.fromkeys(row["defense"] for row in rows):
        same = [row for row in rows if row["defense"] == defense]
        line = {"defense": defense, "test acc %": f"{100 * same[0]['accuracy']['non_members']:.1f}"}
        for row in same:
            theirs = published.get((defense, names(row)["Diffence"]))
            line[names(row)["Diffence"]] = f"{row['best']['auc']:.3f}" + (f" / {theirs / 100:.3f}" if theirs else "")
        lines.append(line | {"gap floor": f"{same[0]['gap_floor']:.3f}", "null AUC": null_range(same)})
    return pd.DataFrame(lines).fillna("-")


def stronger(rows: Rows) -> pd.DataFrame:
    """AUC, and TPR in parentheses, of the best of the paper's five attacks and of those with shadow models, a line a row."""
    lines = []
    for row in rows:
        found = {"best of five": row["attacks"][row["best"]["attack"]]}
        found |= {name: row["attacks"][name] for name in SHADOW_ATTACKS}
        cells = {title: f"{one['auc']:.3f} ({100 * one['tpr_at_fpr']['rate']:.1f}%)" for title, one in found.items()}
        lines.append({**names(row), **cells, "gap floor": f"{row['gap_floor']:.3f}", "null AUC": null_range([row])})
    return pd.DataFrame(lines)


def null_range(rows: Rows) -> str:
    """The smallest and the largest AUC of any attack under shuffled membership."""
    found = [attack["auc"] for row in rows for attack in row["null"]["attacks"].values()]
    return f"{min(found):.3f} .. {max(found):.3f}"


def results_page(root: Path) -> str:
    """results/README.md: a pair of tables a setting, the paper's Table III beside ours, means over seeds, experiments."""
    parts, settings = [], load_rows(root)
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
        if stands_beside_the_paper(first):
            parts.append(beside_the_paper(rows, paper_table(root)))
    every = [row for rows in settings.values() for row in rows]
    return "\n\n".join([PREFACE, *parts, *over_seeds(every), *experiments(root)]) + "\n"


def experiments(root: Path) -> list[str]:
    """The tables of label-only attacks and of attacks on Diffence itself."""
    parts = []
    for kind, title, markdown_of in (
        ("label_only", "label-only attacks", label_only_markdown),
        ("repeated_queries", "attacks on Diffence itself", repeated_queries_markdown),
    ):
        for row in rows_of_kind(root, kind):
            sides = "{members:,} + {non_members:,}".format(**row["scored"])
            queries = f", M = {row['m']} queries an image" if "m" in row else ""
            where = f"{row['dataset']}, {setting(row).replace('-', ', ')}, {row['defense']}"
            parts.append(f"**{title}: {where}**: scored {sides}{queries}; commit {row['commit']}.\n\n{markdown_of(row)}")
    return parts


def paper_table(root: Path) -> pd.DataFrame:
    """The paper's Table III: defense, scenario, accuracy_delta (points), auc and accuracy (percent)."""
    path = root / "results" / "paper_table3.csv"
    if not path.is_file():
        raise UserError(f"{path} is missing. Get it back with: git checkout results")
    return pd.read_csv(path, comment="#")


def stands_beside_the_paper(row: dict[str, Any]) -> bool:
    """Whether a row belongs to the run that is compared with Table III: CIFAR-10, profile small, nothing changed."""
    return row["dataset"] == "cifar10" and row["profile"] == "small" and not row["overrides"]


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
                    "null AUC": f"{row['null']['best']['auc']:.3f}",
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
