"""The tables of README.md, docs/ and results/README.md. They are made from the rows in results/ alone."""

from pathlib import Path

import pandas as pd

from common.attacks.shadow import SHADOW_ATTACKS
from common.errors import UserError
from common.files import read_json
from common.report.claims_page import claims_page
from common.report.load import Rows, by_setting, read_rows
from common.report.paper import PaperLines, is_compared_with_paper, paper_lines
from common.report.results_page import results_page
from common.report.rows import as_markdown, name_columns, setting_title, warnings_of
from common.report.serving import serving_table
from common.report.worst_case import worst_case_findings


def fill_pages(root: Path) -> dict[Path, str]:
    """The text of every page with tables, by its path. The tables are made from the rows in `root`/results.

    In README.md and docs/, a table lies between `<!-- MARK -->` and `<!-- end of MARK -->`. The rest of the page is kept.
    """
    rows, published = read_rows(root), paper_lines(root)
    tables = (
        ("README.md", "headline", headline_table(rows, published)),
        ("docs/findings.md", "tables", auc_tables(rows, published)),
        ("docs/cost.md", "cost", cost_table(root)),
        ("docs/cost.md", "growth", growth_table(root)),
        ("docs/serve.md", "serving", serving_table(root)),
        ("docs/worst_case.md", "worst case", worst_case_findings(rows)),
    )
    pages: dict[Path, str] = {}
    for page, mark, table in tables:
        path = root / page
        pages[path] = fill(pages.get(path) or path.read_text(), mark, table, page)
    pages[root / "docs" / "claims.md"] = claims_page(rows)
    pages[root / "results" / "README.md"] = results_page(rows, published)
    return pages


def fill(text: str, mark: str, table: str, page: str) -> str:
    """The `text` of a page with `table` between its marks. UserError names the `page` if it lacks them."""
    before, start, rest = text.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- end of {mark} -->")
    if not (start and end):
        raise UserError(f"{page} lacks its marks <!-- {mark} --> and <!-- end of {mark} -->: restore them.")
    return f"{before}{start}{table}\n{end}{after}"


def headline_table(rows: Rows, published: PaperLines) -> str:
    """README's table: the undefended classifier without and with Diffence, in every profile with seed 0.

    The last line is the paper's average over its three data sets (Table III).
    """
    lines = []
    for (dataset, _), evaluations in by_setting(rows).items():
        first = evaluations[0]
        if first["seed"] or first["overrides"] or first["protocol"] != "clean" or first["defense"] != "undefended":
            continue
        undefended = [row for row in evaluations if row["defense"] == "undefended"]
        changed = sum(sum(row["diffence"]["labels_changed"].values()) for row in undefended if row["diffence"])
        lines.append(
            {
                "data set, profile": f"{dataset}, {first['profile']}",
                "members": f"{first['config']['data']['members']:,}",
                "test accuracy": f"{100 * first['accuracy']['non_members']:.1f}%",
                **{name_columns(row)["Diffence"]: f"{row['best']['auc']:.3f}" for row in undefended},
                "gap floor": f"{first['gap_floor']:.3f}",
                "labels changed": str(changed),
            }
        )
    averages = {
        scenario: f"{line['auc'] / 100:.3f}" for (defense, scenario), line in published.items() if defense == "undefended"
    }
    lines.append({"data set, profile": "the paper's average", **averages})
    return as_markdown(pd.DataFrame(lines).fillna("-"))


def auc_tables(rows: Rows, published: PaperLines) -> str:
    """The tables of docs/findings.md.

    A setting with seed 0 and without overrides has an `auc_table`, a setting that only adds shadow models a `shadow_table`.
    """
    parts = []
    for (dataset, _), evaluations in by_setting(rows).items():
        first = evaluations[0]
        scored = "{members:,} + {non_members:,}".format(**first["scored"])
        title = f"**{dataset}, {setting_title(first)}**, scored {scored}"
        shadows = first["config"]["attack"]["shadows"]
        if first["seed"] == 0 and not first["overrides"]:
            paper = published if is_compared_with_paper(first) else None
            beside = "; ours / Table III of the paper, whose sizes differ" if paper is not None else ""
            parts.append(
                f"{title}: best AUC of the paper's five attacks{beside}.\n\n{as_markdown(auc_table(evaluations, paper))}"
            )
        elif shadows and first["overrides"] == [f"attack.shadows={shadows}"]:
            rate = f"{100 * first['config']['attack']['fpr']:g}%"
            parts.append(
                f"{title}: AUC (TPR at {rate} FPR) with {shadows} shadow models.\n\n{as_markdown(shadow_table(evaluations))}"
            )
            parts += warnings_of(evaluations)
    return "\n\n".join(parts)


def auc_table(rows: Rows, paper: PaperLines | None) -> pd.DataFrame:
    """The best AUC without Diffence and in each scenario, with a line for each defense.

    With `paper`, the paper's AUC follows ours behind a slash.
    """
    lines = []
    for defense in dict.fromkeys(row["defense"] for row in rows):
        of_defense = [row for row in rows if row["defense"] == defense]
        first = of_defense[0]
        line = {"defense": defense, "test acc %": f"{100 * first['accuracy']['non_members']:.1f}"}
        for row in of_defense:
            scenario = name_columns(row)["Diffence"]
            published = (paper or {}).get((defense, scenario))
            line[scenario] = f"{row['best']['auc']:.3f}" + (f" / {published['auc'] / 100:.3f}" if published else "")
        lines.append(line | {"gap floor": f"{first['gap_floor']:.3f}", "null AUC": null_range(of_defense)})
    return pd.DataFrame(lines).fillna("-")


def shadow_table(rows: Rows) -> pd.DataFrame:
    """AUC, and TPR in parentheses, of LiRA, of RMIA and of the best of the paper's five attacks, with a line for each row."""
    lines = []
    for row in rows:
        attacks = {"best of five": row["attacks"][row["best"]["attack"]]}
        attacks |= {name: row["attacks"][name] for name in SHADOW_ATTACKS}
        cells = {name: f"{attack['auc']:.3f} ({100 * attack['tpr_at_fpr']['rate']:.1f}%)" for name, attack in attacks.items()}
        lines.append({**name_columns(row), **cells, "gap floor": f"{row['gap_floor']:.3f}", "null AUC": null_range([row])})
    return pd.DataFrame(lines)


def null_range(rows: Rows) -> str:
    """The smallest and the largest AUC of any attack under shuffled membership."""
    aucs = [attack["auc"] for row in rows for attack in row["null"]["attacks"].values()]
    return f"{min(aucs):.3f} .. {max(aucs):.3f}"


def cost_table(root: Path) -> str:
    """The table of docs/cost.md, from the JSON files of benchmarks/reconstruction.py, and sentences below it."""
    paths = sorted((root / "results").glob("benchmark_reconstruction*.json"))
    benchmarks = [read_json(path, "python -m benchmarks.reconstruction") for path in paths]
    if not benchmarks:
        raise UserError("results/ holds no benchmark. Make it with: python -m benchmarks.reconstruction")
    lines = [
        {
            "threads": benchmark["threads"],
            "batch": run["batch"],
            "precision": run["precision"],
            **{f"{name} (CPU s)": run[f"{name}_cpu_s"] for name in ("released", "eager", "lazy")},
            "released / eager": run["released_over_eager"],
            "released / lazy": run["released_over_lazy"],
        }
        for benchmark in benchmarks
        for run in benchmark["runs"]
    ]
    first = benchmarks[0]
    work = "; ".join(
        f"{name}: {first['unet_evaluations'][name]:.3g} network evaluations, {first['query_gflop'][name]:.0f} GFLOP"
        for name in ("released", "eager", "lazy")
    )
    draws = first["draws_per_query"]
    return (
        f"{pd.DataFrame(lines).to_markdown(index=False)}\n\n"
        f"A query costs, {work}. Lazily, scenario 3 drew {draws['members']:.2f} candidates a member and "
        f"{draws['non_members']:.2f} a non-member in the row `{draws['from']}`; timed with {first['lazy_timed_with_draws']} "
        f"an image. The search of scenario 1's interval takes {1000 * first['interval_search_cpu_s']:.0f} ms of CPU for "
        f"1,000 + 1,000 points; torch {first['torch']}."
    )


def growth_table(root: Path) -> str:
    """The table of docs/cost.md on growth, from the JSON file of benchmarks/growth.py."""
    command = "python -m benchmarks.growth"
    path = root / "results" / "benchmark_growth.json"
    if not path.is_file():
        return f"There is no measurement yet. This makes it: `{command}`"
    found = read_json(path, command)
    lines = [
        {"task": task, "size": f"{one['size']:,}", "CPU s": f"{one['cpu_s']:.1f}"}
        | {"memory (MB)": f"{one['peak_mb']:,.0f}", "of which imported": f"{one['imported_mb']:,.0f}"}
        for task, measured in found["tasks"].items()
        for one in measured
    ]
    return (
        f"{as_markdown(pd.DataFrame(lines))}\n\n{found['threads']} thread(s), torch {found['torch']}, commit {found['commit']}."
    )
