"""Results as files: the paper's text format (Figures 15 and 16), a JSON row beside it with all that reproduces it, the
scores of every attack, and tables made from rows.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.attacks import Scores
from common.files import atomic_write, write_json

# In the order of the paper's Figure 16.
PRINTED = ("nn", "m-entropy", "confidence", "entropy", "loss")
SCENARIO_TITLES = {"1": "scenario 1", "2": "scenario 2", "3": "scenario 3", "average": "average"}


def result_name(row: dict[str, Any]) -> str:
    """The file name of a row: `selena`, `selena_w_Diffence` (scenario 1), `selena_w_Diffence_scenario3` ..."""
    return result_file(row["defense"], row["diffence"]["scenario"] if row["diffence"] else None)


def result_file(defense: str, scenario: str | None) -> str:
    """The file name of a result; scenario None is without Diffence."""
    if scenario is None:
        return defense
    return f"{defense}_w_Diffence" + ("" if scenario == "1" else "_" + SCENARIO_TITLES[scenario].replace(" ", ""))


def write_result(folder: Path, row: dict[str, Any], scores: dict[str, Scores]) -> None:
    """Write a row's text file, its JSON and, under `scores/`, a .npy [n + m, 2] of score and membership per attack."""
    name = result_name(row)
    for attack, points in scores.items():
        membership = np.repeat([1.0, 0.0], [len(points.members), len(points.non_members)])
        content = np.stack([np.concatenate([points.members, points.non_members]), membership], axis=1)
        path = folder / "scores" / f"{attack}-based-{name}.npy"
        atomic_write(path, lambda file, content=content: np.save(file, content))  # type: ignore[misc]
    atomic_write(folder / name, lambda file: file.write(result_text(row).encode()))
    write_json(folder / f"{name}.json", row)


def result_text(row: dict[str, Any]) -> str:
    """The text of Figures 15 and 16, and below it what they leave out."""
    name = result_name(row)
    suffix = ".best.pt" if row["protocol"] == "released" else ".pt"
    path = f"./final-all-models/{row['profile']}/seed{row['seed']}/{row['model']}/{row['defense']}{suffix}"
    accuracy, fpr = row["accuracy"], row["config"]["attack"]["fpr"]
    lines = [
        f"{path} | train acc {100 * accuracy['members']:.4f} | test acc {100 * accuracy['non_members']:.4f}",
        "",
        f"====> NN-based attack {path}",
    ]
    lines += [f"====> {attack}-based-{name}.npy: {_attack_text(row['attacks'][attack], fpr)}" for attack in PRINTED]
    lines += [
        f"Best Attack AUC: {row['best']['auc']:.4f}",
        f"Best Attack ACC: {row['best']['accuracy']:.4f}",
        "",
        f"====> gap attack (the floor): {_attack_text(row['attacks']['correctness'], fpr)}",
        f"Protocol {row['protocol']}, seed {row['seed']}, commit {row['commit']}; "
        f"scored {row['scored']['members']} members and {row['scored']['non_members']} non-members; ECE {row['ece']:.4f}",
    ]
    if row["diffence"]:
        lines += _diffence_text(row["diffence"])
    return "\n".join(lines) + "\n"


def _attack_text(attack: dict[str, Any], fpr: float) -> str:
    tpr, tnr = attack["tpr_at_fpr"], attack["tnr_at_fnr"]
    return (
        f"TPR {100 * tpr['rate']:.2f}% @{100 * fpr:.2f}%FPR | TNR {100 * tnr['rate']:.2f}% @{100 * fpr:.2f}%FNR | "
        f"AUC {attack['auc']:.4f} | ACC {attack['accuracy']:.4f}"
    )


def _diffence_text(facts: dict[str, Any]) -> list[str]:
    interval = "none" if facts["interval"] is None else "[{:.3f}, {:.3f}]".format(*facts["interval"])
    sides = "{members} members and {non_members} non-members"
    drawn = "{members:.2f} a member and {non_members:.2f} a non-member".format(**facts["draws"])
    return [
        f"Diffence {SCENARIO_TITLES[facts['scenario']]}: N {facts['n']}, T {facts['t']}, steps {facts['steps']}, "
        f"forward {facts['forward']}, interval of phi {interval}",
        f"Labels changed: {sides.format(**facts['labels_changed'])}",
        f"No candidate kept the label: {sides.format(**facts['no_match'])}",
        f"Candidates when drawn one by one: {drawn}",
    ]


def table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One line a row: what a reader compares first."""
    lines = []
    for row in rows:
        facts = row["diffence"]
        lines.append(
            {
                "defense": row["defense"],
                "Diffence": "without" if facts is None else SCENARIO_TITLES[facts["scenario"]],
                "test acc %": 100 * row["accuracy"]["non_members"],
                "labels changed": "-" if facts is None else sum(facts["labels_changed"].values()),
                "best AUC": row["best"]["auc"],
                "best ACC": row["best"]["accuracy"],
                **{f"{name} AUC": row["attacks"][name]["auc"] for name in PRINTED if name != "confidence"},
                "gap floor": row["gap_floor"],
                "no match (mem./non)": "-" if facts is None else "{members} / {non_members}".format(**facts["no_match"]),
                "draws": "-" if facts is None else f"{np.mean(list(facts['draws'].values())):.1f}",
            }
        )
    return pd.DataFrame(lines)


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """The table as Markdown; loss and confidence rank alike, so confidence is left out."""
    return table(rows).to_markdown(index=False, floatfmt=".3f")
