"""The tables of label-only attacks and of attacks on Diffence itself."""

from typing import Any

import pandas as pd

from common.report.rows import SCENARIO_TITLES, as_markdown


def label_only_markdown(row: dict[str, Any]) -> str:
    """A row of common/experiments/label_only.py as a table with a line for each attack."""
    lines = [
        {
            "attack": name,
            **attack_columns(attack, row["null"]["attacks"][name]["auc"]),
            "labels an image": f"{row[name]['asked_an_image']:,.0f}",
            "failed": sum(row[name]["failed"].values()) if "failed" in row[name] else "-",
        }
        for name, attack in row["attacks"].items()
    ]
    return as_markdown(pd.DataFrame(lines))


def repeated_queries_markdown(row: dict[str, Any]) -> str:
    """A row of common/experiments/repeated_queries.py as a table with a line for each attacker in each scenario."""
    reference_titles = {"loss": "loss, once", "correctness": "gap floor"}
    attacks = [("without", reference_titles[name], attack) for name, attack in row["reference"].items()]
    for run in row["runs"]:
        scenario = SCENARIO_TITLES[run["scenario"]] + (", stable" if run["stable"] else "")
        attacks += [(scenario, attacker, attack) for attacker, attack in run["attacks"].items()]
    lines = [
        {
            "Diffence": scenario,
            "attacker": attacker,
            **attack_columns(attack, attack["null_auc"]),
            "candidates an image": f"{attack['draws']:.1f}",
        }
        for scenario, attacker, attack in attacks
    ]
    return as_markdown(pd.DataFrame(lines))


def attack_columns(attack: dict[str, Any], null_auc: float) -> dict[str, str]:
    """The columns that every table of attacks has. `null_auc` is the AUC under shuffled membership."""
    return {
        "AUC": f"{attack['auc']:.3f}",
        "95% interval": "{:.3f} .. {:.3f}".format(*attack["auc_interval"]),
        "null AUC": f"{null_auc:.3f}",
        "ACC": f"{attack['accuracy']:.3f}",
    }


def intervals_markdown(row: dict[str, Any]) -> str:
    """A row of common/experiments/intervals.py as two tables: divergence and attack AUC by fifths, and draws until a hit."""
    points = pd.DataFrame(row["intervals"]).sort_values("js").reset_index(drop=True)
    fifth = points.index * 5 // len(points)
    by_divergence = [
        {
            "intervals": f"fifth {number + 1} by divergence",
            "mean JS divergence": f"{group['js'].mean():.4f}",
            "mean best AUC": f"{group['best_auc'].mean():.3f}",
            "mean best ACC": f"{group['best_accuracy'].mean():.3f}",
        }
        for number, group in points.groupby(fifth)
    ]
    draws = [
        {
            "interval holds": f"{100 * one['share']:.0f}% of candidates",
            "hit by the first": f"{100 * one['cdf'][0]:.1f}%",
            f"hit by one of {row['n']}": f"{100 * one['cdf'][-1]:.1f}%",
            "of those that missed at first": "-" if one["later_hits"] is None else f"{100 * one['later_hits']:.1f}%",
        }
        for one in row["draws"]
    ]
    correlation = row["rank_correlation"]["js_and_auc"]
    stated = "undefined, since they are all alike" if correlation is None else f"{correlation:.2f}"
    return "\n\n".join(
        [
            as_markdown(pd.DataFrame(by_divergence)),
            f"Spearman's rank correlation of divergence and best AUC over {len(points)} intervals: {stated}.",
            as_markdown(pd.DataFrame(draws)),
        ]
    )


def worst_case_markdown(*rows: dict[str, Any]) -> str:
    """Rows of common/experiments/worst_case.py as a table with a line for each row and group of points."""
    lines = []
    for row in rows:
        for group in ("canaries", "controls"):
            facts = row[group]
            best = best_attack(facts)
            no_match = facts["no_match"]
            lines.append(
                {
                    "defense": row["defense"],
                    "Diffence": "without" if row["scenario"] is None else SCENARIO_TITLES[row["scenario"]],
                    "points": {"canaries": "canaries", "controls": "random images"}[group],
                    "best attack": best,
                    "TPR @0.1%FPR": rate_text(tpr_of(facts, best)),
                    "TPR @1%FPR": rate_text(tpr_of(facts, best, "0.01")),
                    "AUC": f"{facts['attacks'][best]['auc']:.3f}",
                    "lira-online": rate_text(tpr_of(facts, "lira-online")),
                    "gap AUC": f"{facts['attacks']['correctness']['auc']:.3f}",
                    "no match (mem./non)": f"{100 * no_match['members']:.1f}% / {100 * no_match['non_members']:.1f}%",
                }
            )
    return as_markdown(pd.DataFrame(lines))


def best_attack(facts: dict[str, Any]) -> str:
    """The attack with the largest TPR at 0.1% FPR in the part of a row about a group of points; on ties, the larger AUC."""
    return max(facts["attacks"], key=lambda name: (tpr_of(facts, name)["rate"], facts["attacks"][name]["auc"]))


def tpr_of(facts: dict[str, Any], attack: str, fpr: str = "0.001") -> dict[str, Any]:
    """The TPR of an attack in the part of a row of worst_case about a group of points."""
    rate: dict[str, Any] = facts["attacks"][attack]["tpr_at"][fpr]
    return rate


def rate_text(rate: dict[str, Any]) -> str:
    """A rate and its interval in percent: `12.0% [8.5, 15.5]`."""
    return "{:.1f}% [{:.1f}, {:.1f}]".format(*(100 * value for value in (rate["rate"], *rate["interval"])))
