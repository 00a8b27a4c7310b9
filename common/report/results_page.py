"""The page results/README.md, with a table of every row."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from common.metrics.intervals import mean_and_sd, mean_interval
from common.report.experiments import intervals_markdown, label_only_markdown, repeated_queries_markdown
from common.report.load import Rows, by_setting, of_kind
from common.report.paper import PaperLines, is_compared_with_paper, paper_comparison
from common.report.rows import as_markdown, name_columns, setting_title, tables_markdown
from common.report.worst_case import worst_case_tables

PREFACE = """# Results

`python -m common.report` makes this page from the rows beside it. The columns are:

- *best AUC* is that of the best of the paper's five attacks. Its 95% interval is DeLong's. It covers the draw of the scored
  points, not the training of another model.
- *best ACC* is the largest accuracy of the five, at thresholds that are fitted on the known points. It may be that of another
  attack than the best AUC. *oracle ACC* is the same at the best thresholds of the scored points, as in the paper.
- *TPR* is that of the attack with the best AUC, a count that some threshold attains. Another attack may find more. The rows
  hold its Clopper-Pearson intervals.
- *gap floor* is the AUC of the attack that calls every correctly classified image a member.
- *null AUC* is the largest AUC of the five under shuffled membership, where there is nothing to find.
- *no match* counts the images of which none of the N candidates keeps the label.
- *draws* is the mean number of candidates that a query needs if they are drawn one by one."""


def results_page(rows: Rows, published: PaperLines) -> str:
    """results/README.md: the tables of every setting, the comparison with the paper, means over seeds, further experiments."""
    parts, settings = [PREFACE], by_setting(rows)
    for (dataset, _), evaluations in settings.items():
        first = evaluations[0]
        facts = next((row["diffence"] for row in evaluations if row["diffence"]), None)
        diffence = f"; N = {facts['n']}, T = {facts['t']}" if facts else ""
        commits = dict.fromkeys(row["commit"] for row in evaluations)
        parts.append(
            f"**{dataset}, {setting_title(first)}**: {first['config']['data']['members']:,} members, scored "
            f"{first['scored']['members']:,} + {first['scored']['non_members']:,}, train accuracy of scored members "
            f"{100 * first['accuracy']['members']:.1f}%{diffence}; commit {' '.join(commits)}, torch {first['torch']}, "
            f"{first['device']}, {first.get('threads', 'unknown')} thread(s).\n\n{tables_markdown(evaluations)}"
        )
        if is_compared_with_paper(first):
            parts.append(paper_comparison(evaluations, published))
    in_order = [row for evaluations in settings.values() for row in evaluations]
    return "\n\n".join([*parts, *seed_tables(in_order), *experiment_tables(rows), *worst_case_tables(rows)]) + "\n"


def seed_tables(rows: Rows) -> list[str]:
    """Mean ± sample standard deviation over seeds, as Markdown: a table for each setting with several seeds.

    Two rows are of one setting if data set, profile, protocol, overrides and the whole config are the same, but for the options
    of defenses. Two rows are of one line if the options of their defense are the same too.
    """
    if not rows:
        return []
    setting_keys, line_keys = ["dataset", "setting", "config"], ["defense", "Diffence", "options"]
    cells: dict[str, Callable[..., str]] = {"seeds": ", ".join, "test acc %": partial(mean_and_sd_text, digits=1)}
    cells |= dict.fromkeys(("best AUC", "best ACC", "gap floor", "null AUC", "ECE"), partial(mean_and_sd_text, digits=3))
    cells |= {"minus undefended [95%]": difference_text}
    parts = []
    for (dataset, name, _), frame in pd.DataFrame(map(_seed_columns, rows)).groupby(setting_keys, sort=False):
        undefended = frame[frame["defense"] == "undefended"].set_index(["Diffence", "seeds"])["best AUC"]
        same = undefended.reindex(pd.MultiIndex.from_frame(frame[["Diffence", "seeds"]]))  # Diffence and seed
        others = frame["defense"] != "undefended"
        frame = frame.assign(**{"minus undefended [95%]": (frame["best AUC"] - same.to_numpy()).where(others)})
        several_seeds = frame.groupby(line_keys).filter(lambda line_rows: len(line_rows) > 1)
        if not several_seeds.empty:
            title = (
                f"**{dataset}, {name}, over seeds**: mean ± standard deviation (n - 1) of models from several seeds. The last "
                "column is the difference of the best AUC from that of the undefended classifier of the same seed, with "
                "Student's interval of its mean. An interval that contains 0 is a difference that may be noise."
            )
            table = several_seeds.groupby(line_keys, sort=False).agg(cells).reset_index().drop(columns="options")
            parts.append(f"{title}\n\n{as_markdown(table)}")
    return parts


def _seed_columns(row: dict[str, Any]) -> dict[str, Any]:
    """The setting of a row, and its numbers in a table over seeds."""
    return {
        "dataset": row["dataset"],
        "setting": ", ".join([row["profile"], row["protocol"], *row["overrides"]]),
        "config": json.dumps({**row["config"], "defenses": None}, sort_keys=True),
        "options": json.dumps(row["config"]["defenses"].get(row["defense"]), sort_keys=True),
        **name_columns(row),
        "seeds": str(row["seed"]),
        "test acc %": 100 * row["accuracy"]["non_members"],
        "best AUC": row["best"]["auc"],
        "best ACC": row["best"]["accuracy"],
        "gap floor": row["gap_floor"],
        "null AUC": row["null"]["best"]["auc"],
        "ECE": row["utility"]["ece"],
    }


def mean_and_sd_text(values: pd.Series, digits: int) -> str:
    """Mean ± sample standard deviation of a metric over seeds."""
    mean, deviation = mean_and_sd(values.tolist())
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def difference_text(values: pd.Series) -> str:
    """The mean of differences over seeds with its interval; "-" where fewer than two seeds have both classifiers."""
    differences = values.dropna().tolist()
    if len(differences) < 2:
        return "-"
    low, high = mean_interval(differences)
    return f"{mean_and_sd(differences)[0]:+.3f} [{low:+.3f}, {high:+.3f}]"


def experiment_tables(rows: Rows) -> list[str]:
    """The tables of each row of the experiments beside the evaluations, as Markdown."""
    parts = []
    for kind, title, as_table in (
        ("label_only", "label-only attacks", label_only_markdown),
        ("repeated_queries", "attacks on Diffence itself", repeated_queries_markdown),
        ("intervals", "intervals of scenario 1", intervals_markdown),
    ):
        for row in of_kind(rows, kind):
            scored = "{members:,} + {non_members:,}".format(**row["scored"])
            queries = f", M = {row['m']} queries an image" if "m" in row else ""
            caption = f"**{title}: {row['dataset']}, {setting_title(row)}, {row['defense']}**: scored {scored}{queries}"
            parts.append(f"{caption}; commit {row['commit']}.\n\n{as_table(row)}")
    return parts
