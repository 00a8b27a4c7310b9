"""The tables of label-only attacks and of attacks on Diffence itself, and what every table says that an attack reached."""

from typing import Any

import pandas as pd

from common.report.rows import SCENARIO_TITLES, as_markdown


def label_only_markdown(row: dict[str, Any]) -> str:
    """A row of common/experiments/label_only.py as a table, a line an attack, beside what shuffled membership gives."""
    lines = [
        {
            "attack": name,
            **reached(found, row["null"]["attacks"][name]["auc"]),
            "labels an image": f"{row[name]['asked_an_image']:,.0f}",
            "failed": sum(row[name]["failed"].values()) if "failed" in row[name] else "-",
        }
        for name, found in row["attacks"].items()
    ]
    return as_markdown(pd.DataFrame(lines))


def repeated_queries_markdown(row: dict[str, Any]) -> str:
    """A row of common/experiments/repeated_queries.py as a table: every attacker in every scenario."""
    titles = {"loss": "loss, once", "correctness": "gap floor"}
    found = [("without", titles[name], attack) for name, attack in row["reference"].items()]
    for run in row["runs"]:
        scenario = SCENARIO_TITLES[run["scenario"]] + (", stable" if run["stable"] else "")
        found += [(scenario, attacker, attack) for attacker, attack in run["attacks"].items()]
    lines = [
        {
            "Diffence": scenario,
            "attacker": attacker,
            **reached(attack, attack["null_auc"]),
            "candidates an image": f"{attack['draws']:.1f}",
        }
        for scenario, attacker, attack in found
    ]
    return as_markdown(pd.DataFrame(lines))


def reached(attack: dict[str, Any], null_auc: float) -> dict[str, str]:
    """What an attack reached, beside what it finds under shuffled membership."""
    return {
        "AUC": f"{attack['auc']:.3f}",
        "95% interval": "{:.3f} .. {:.3f}".format(*attack["auc_interval"]),
        "null AUC": f"{null_auc:.3f}",
        "ACC": f"{attack['accuracy']:.3f}",
    }
