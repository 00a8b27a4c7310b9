"""Results as files: the paper's text format (Figures 15 and 16), a JSON row beside it with all that reproduces it, the
scores of every attack, and tables made from rows.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.attacks import Scores
from common.files import read_json, save_array, write_json, write_text

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
        membership = np.repeat([1.0, 0.0], [*points.scored.map(len)])
        content = np.stack([np.concatenate([*points.scored]), membership], axis=1)
        save_array(folder / "scores" / f"{attack}-based-{name}.npy", content)
    write_text(folder / name, result_text(row))
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
        f"scored {row['scored']['members']} members and {row['scored']['non_members']} non-members",
        *_trust_text(row, fpr),
        *_utility_text(row["utility"]),
    ]
    if row["diffence"]:
        lines += _diffence_text(row["diffence"])
    lines += [f"Warning: {sentence}" for sentence in row["warnings"]]
    return "\n".join(lines) + "\n"


def _attack_text(attack: dict[str, Any], fpr: float) -> str:
    tpr, tnr = attack["tpr_at_fpr"], attack["tnr_at_fnr"]
    return (
        f"TPR {100 * tpr['rate']:.2f}% @{100 * fpr:.2f}%FPR | TNR {100 * tnr['rate']:.2f}% @{100 * fpr:.2f}%FNR | "
        f"AUC {attack['auc']:.4f} | ACC {attack['accuracy']:.4f}"
    )


def _trust_text(row: dict[str, Any], fpr: float) -> list[str]:
    """Intervals, the other thresholds, and what the same harness finds under shuffled membership."""
    best, null = row["best"], row["null"]["best"]
    attack = row["attacks"][best["attack"]]
    rates = [
        f"{name} @{100 * fpr:.2f}%{error} of {best['attack']}: {rate['hits']}/{rate['positives']}, 95% interval "
        f"{_percents(rate['interval'])}; {error} {rate['errors']}/{rate['negatives']}, {_percents(rate['error_interval'])}"
        for name, error, rate in (("TPR", "FPR", attack["tpr_at_fpr"]), ("TNR", "FNR", attack["tnr_at_fnr"]))
    ]
    lines = [
        "Best Attack AUC is that of {}, 95% interval [{:.4f}, {:.4f}]".format(best["attack"], *attack["auc_interval"]),
        *rates,
        f"Best Attack ACC at the thresholds of the scored points (oracle): {best['accuracy_oracle']:.4f}",
    ]
    if "accuracy_per_class" in best:
        lines.append(f"Best Attack ACC at thresholds per class: {best['accuracy_per_class']:.4f}")
    found = f"best AUC {null['auc']:.4f}, best ACC {null['accuracy']:.4f}, oracle {null['accuracy_oracle']:.4f}"
    return [*lines, f"The same under shuffled membership (null): {found}"]


def _utility_text(utility: dict[str, Any]) -> list[str]:
    kept = "{members:.4f} of members and {non_members:.4f} of non-members".format(**utility["label_agreement"])
    return [
        f"Labels as without Diffence: {kept}",
        f"Test images: accuracy {utility['accuracy']:.4f}, ECE {utility['ece']:.4f}, NLL {utility['nll']:.4f} nats",
    ]


def _percents(interval: list[float]) -> str:
    return "[{:.3f}%, {:.3f}%]".format(*(100 * end for end in interval))


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


def read_row(path: Path) -> dict[str, Any]:
    """A row from its JSON file. A row of version 0.1 does not say its kind; it is inferred from what the row holds."""
    row = read_json(path, "git checkout results")
    if "kind" not in row:
        row["kind"] = "evaluation" if "best" in row else "repeated_queries" if "runs" in row else "label_only"
    return row


def table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """What an attacker learns, one line a row, as text.

    best AUC: the best of the paper's five attacks, with DeLong's 95% interval; best ACC: at thresholds fitted on known
    points; oracle ACC: at those of the scored points; TPR at the FPR asked: of the attack with the best AUC, with counts; a
    column for each attack's AUC (loss and confidence rank alike, so confidence is left out); null AUC: the best AUC under
    shuffled membership.
    """
    lines = []
    for row in rows:
        best, attacks = row["best"], row["attacks"]
        rate = attacks[best["attack"]]["tpr_at_fpr"]
        shown = [*PRINTED, *(name for name in attacks if name not in PRINTED)]
        lines.append(
            {
                **names(row),
                "test acc %": f"{100 * row['accuracy']['non_members']:.1f}",
                "best AUC [95%]": "{:.3f} [{:.3f}, {:.3f}]".format(best["auc"], *attacks[best["attack"]]["auc_interval"]),
                "best ACC": f"{best['accuracy']:.3f}",
                **({"per-class ACC": f"{best['accuracy_per_class']:.3f}"} if "accuracy_per_class" in best else {}),
                "oracle ACC": f"{best['accuracy_oracle']:.3f}",
                f"TPR @{100 * row['config']['attack']['fpr']:g}%FPR": (
                    f"{100 * rate['rate']:.1f}% ({rate['hits']}/{rate['positives']})"
                ),
                **{name: f"{attacks[name]['auc']:.3f}" for name in shown if name not in ("confidence", "correctness")},
                "gap floor": f"{row['gap_floor']:.3f}",
                "null AUC": f"{row['null']['best']['auc']:.3f}",
            }
        )
    return pd.DataFrame(lines).fillna("-")


def utility_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """What a user gets and pays, one line a row, as text.

    delta acc: points of test accuracy gained over the undefended classifier without Diffence, where it is among the rows.
    """
    rows = list(rows)
    lines = []
    for row in rows:
        facts, change = row["diffence"], accuracy_delta(row, rows)
        lines.append(
            {
                **names(row),
                "test acc %": f"{100 * row['accuracy']['non_members']:.1f}",
                "delta acc": "-" if change is None else f"{change:+.1f}",
                "labels changed": "-" if facts is None else str(sum(facts["labels_changed"].values())),
                "ECE": f"{row['utility']['ece']:.3f}",
                "NLL": f"{row['utility']['nll']:.3f}",
                "no match (mem./non)": "-" if facts is None else "{members} / {non_members}".format(**facts["no_match"]),
                "draws": "-" if facts is None else f"{np.mean(list(facts['draws'].values())):.1f}",
            }
        )
    return pd.DataFrame(lines)


def accuracy_delta(row: dict[str, Any], rows: Iterable[dict[str, Any]]) -> float | None:
    """Test accuracy over that of the undefended classifier without Diffence among `rows`, in points; None = not there."""
    for other in rows:
        if other["defense"] == "undefended" and other["diffence"] is None:
            return 100 * (row["accuracy"]["non_members"] - other["accuracy"]["non_members"])
    return None


def names(row: dict[str, Any]) -> dict[str, str]:
    """What names a row in every table: its defense, and "without" or the scenario of Diffence."""
    facts = row["diffence"]
    return {"defense": row["defense"], "Diffence": "without" if facts is None else SCENARIO_TITLES[facts["scenario"]]}


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Both tables as Markdown, and below them the warnings that any of the rows carries."""
    rows = list(rows)
    return "\n\n".join([as_markdown(table(rows)), as_markdown(utility_table(rows)), *warnings_of(rows)])


def warnings_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The warnings that any of the rows carries, each once."""
    return list(dict.fromkeys(f"Warning: {sentence}" for row in rows for sentence in row["warnings"]))


def as_markdown(frame: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    return frame.to_markdown(index=False, disable_numparse=True)
