"""A row is the result of one evaluation, as a dict. This module writes rows, reads them and makes tables of them.

A row is written as text in the paper's format (Figures 15 and 16) and as JSON with everything that is needed to reproduce it.
The scores of every attack are written beside them.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.attacks import Scores
from common.files import locked, read_json, save_array, write_json, write_text
from common.report.schema import current_row

# The attacks of a text file, in the order of the paper's Figure 16.
PRINTED_ATTACKS = ("nn", "m-entropy", "confidence", "entropy", "loss")
SCENARIO_TITLES = {"1": "scenario 1", "2": "scenario 2", "3": "scenario 3", "average": "average"}


def scenario_of(row: dict[str, Any]) -> str | None:
    """The scenario of Diffence in a row; None is without Diffence."""
    return row["diffence"]["scenario"] if row["diffence"] else None


def setting(row: dict[str, Any]) -> str:
    """The name of a row's folder under results/<data set>/: profile, protocol, seed and the changes of --set."""
    return "-".join([row["profile"], row["protocol"], f"seed{row['seed']}", *row["overrides"]])


def setting_title(row: dict[str, Any]) -> str:
    """The setting of a row in a caption: `small, clean, seed0`."""
    return setting(row).replace("-", ", ")


def result_name(row: dict[str, Any]) -> str:
    """The file name of a row, without a suffix."""
    return result_file(row["defense"], scenario_of(row))


def result_file(defense: str, scenario: str | None) -> str:
    """The file name of a result, without a suffix: `selena` (scenario None, which is without Diffence), `selena_w_Diffence`
    (scenario 1), `selena_w_Diffence_scenario2`, `selena_w_Diffence_scenario3` or `selena_w_Diffence_average`.
    """
    if scenario is None:
        return defense
    return f"{defense}_w_Diffence" + ("" if scenario == "1" else "_" + SCENARIO_TITLES[scenario].replace(" ", ""))


def write_result(folder: Path, row: dict[str, Any], scores: dict[str, Scores]) -> None:
    """Write the text file and the JSON file of a row, and for each attack a .npy file in `scores/`.

    The array of an attack is float64 [n + m, 2]: a point's score, and 1 for a member or 0 for a non-member. The n members come
    first. The folder is locked meanwhile, so that the files of a row belong together where two processes write it.
    """
    name = result_name(row)
    with locked(folder):
        for earlier in (folder / "scores").glob(f"*-based-{name}.npy"):  # of attacks that this row may not have
            earlier.unlink()
        for attack, attack_scores in scores.items():
            scored = attack_scores.scored
            membership = np.repeat([1.0, 0.0], [*scored.map(len)])
            columns = np.stack([np.concatenate([*scored]), membership], axis=1)
            save_array(folder / "scores" / f"{attack}-based-{name}.npy", columns)
        write_text(folder / name, result_text(row))
        write_json(folder / f"{name}.json", row)


def result_text(row: dict[str, Any]) -> str:
    """The text file of a row: the lines of Figures 15 and 16, then lines on intervals, utility, Diffence, and warnings."""
    name = result_name(row)
    suffix = ".best.pt" if row["protocol"] == "released" else ".pt"
    path = f"./final-all-models/{row['profile']}/seed{row['seed']}/{row['model']}/{row['defense']}{suffix}"
    accuracy, fpr = row["accuracy"], row["config"]["attack"]["fpr"]
    lines = [
        f"{path} | train acc {100 * accuracy['members']:.4f} | test acc {100 * accuracy['non_members']:.4f}",
        "",
        f"====> NN-based attack {path}",
    ]
    lines += [f"====> {attack}-based-{name}.npy: {_attack_text(row['attacks'][attack], fpr)}" for attack in PRINTED_ATTACKS]
    lines += [
        f"Best Attack AUC: {row['best']['auc']:.4f}",
        f"Best Attack ACC: {row['best']['accuracy']:.4f}",
        "",
        f"====> gap attack (the floor): {_attack_text(row['attacks']['correctness'], fpr)}",
        f"Protocol {row['protocol']}, seed {row['seed']}, commit {row['commit']}; "
        f"scored {row['scored']['members']} members and {row['scored']['non_members']} non-members",
        *_uncertainty_text(row, fpr),
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


def _uncertainty_text(row: dict[str, Any], fpr: float) -> list[str]:
    """Lines on confidence intervals, accuracies at other thresholds, and the null."""
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
    null_text = f"best AUC {null['auc']:.4f}, best ACC {null['accuracy']:.4f}, oracle {null['accuracy_oracle']:.4f}"
    return [*lines, f"The same under shuffled membership (null): {null_text}"]


def _utility_text(utility: dict[str, Any]) -> list[str]:
    agreement = "{members:.4f} of members and {non_members:.4f} of non-members".format(**utility["label_agreement"])
    return [
        f"Labels as without Diffence: {agreement}",
        f"Test images: accuracy {utility['accuracy']:.4f}, ECE {utility['ece']:.4f}, NLL {utility['nll']:.4f} nats",
    ]


def _percents(interval: list[float]) -> str:
    return "[{:.3f}%, {:.3f}%]".format(*(100 * end for end in interval))


def _diffence_text(facts: dict[str, Any]) -> list[str]:
    interval = "none" if facts["interval"] is None else "[{:.3f}, {:.3f}]".format(*facts["interval"])
    counts = "{members} members and {non_members} non-members"
    draws = "{members:.2f} a member and {non_members:.2f} a non-member".format(**facts["draws"])
    return [
        f"Diffence {SCENARIO_TITLES[facts['scenario']]}: N {facts['n']}, T {facts['t']}, steps {facts['steps']}, "
        f"forward {facts['forward']}, interval of phi {interval}",
        f"Labels changed: {counts.format(**facts['labels_changed'])}",
        f"No candidate kept the label: {counts.format(**facts['no_match'])}",
        f"Candidates when drawn one by one: {draws}",
    ]


def read_row(path: Path) -> dict[str, Any]:
    """Read a row from its JSON file. A file that has not changed since is not read again, so do not change the row.

    A row of an older schema is brought up to date. Raises UserError for a file that is no row that this version can read.
    """
    state = path.stat() if path.is_file() else None
    return _read_row(path, *((state.st_mtime_ns, state.st_size, state.st_ino) if state else ()))


@functools.lru_cache(maxsize=4096)
def _read_row(path: Path, *_state: int) -> dict[str, Any]:
    return current_row(path, read_json(path, "git checkout results"))


def privacy_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """What an attacker learns: a table of text with a line for each row.

    Columns:
    - best AUC: the largest of the paper's five attacks, with DeLong's 95% interval
    - best ACC: the largest accuracy of the five, at thresholds that are fitted on the known points
    - per-class ACC: the same at thresholds for each class, if the row has it
    - oracle ACC: the same at the best thresholds of the scored points
    - TPR: that of the attack with the best AUC, at the FPR of the config, with counts
    - a column for each attack with its AUC; confidence is left out because it ranks points as loss does
    - null AUC: the largest AUC of the five under shuffled membership
    """
    lines = []
    for row in rows:
        best, attacks = row["best"], row["attacks"]
        rate = attacks[best["attack"]]["tpr_at_fpr"]
        ordered = dict.fromkeys([*PRINTED_ATTACKS, *attacks])
        lines.append(
            {
                **name_columns(row),
                "test acc %": f"{100 * row['accuracy']['non_members']:.1f}",
                "best AUC [95%]": "{:.3f} [{:.3f}, {:.3f}]".format(best["auc"], *attacks[best["attack"]]["auc_interval"]),
                "best ACC": f"{best['accuracy']:.3f}",
                **({"per-class ACC": f"{best['accuracy_per_class']:.3f}"} if "accuracy_per_class" in best else {}),
                "oracle ACC": f"{best['accuracy_oracle']:.3f}",
                f"TPR @{100 * row['config']['attack']['fpr']:g}%FPR": (
                    f"{100 * rate['rate']:.1f}% ({rate['hits']}/{rate['positives']})"
                ),
                **{name: f"{attacks[name]['auc']:.3f}" for name in ordered if name not in ("confidence", "correctness")},
                "gap floor": f"{row['gap_floor']:.3f}",
                "null AUC": f"{row['null']['best']['auc']:.3f}",
            }
        )
    return pd.DataFrame(lines).fillna("-")


def utility_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """What a defense means for a user: a table of text with a line for each row.

    Columns:
    - delta acc: test accuracy minus that of the undefended classifier without Diffence, in points; "-" if that row is missing
    - labels changed, no match and draws: counts of `diffence_facts` in common/experiments/evaluate.py, of both sides
    """
    rows = list(rows)
    lines = []
    for row in rows:
        facts, change = row["diffence"], accuracy_delta(row, rows)
        lines.append(
            {
                **name_columns(row),
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
    """Test accuracy minus that of the undefended classifier without Diffence, in points.

    The latter is looked for among `rows`. Returns None if it is not there.
    """
    for reference in rows:
        if reference["defense"] == "undefended" and reference["diffence"] is None:
            return 100 * (row["accuracy"]["non_members"] - reference["accuracy"]["non_members"])
    return None


def name_columns(row: dict[str, Any]) -> dict[str, str]:
    """The columns that name a row in every table: its defense, and the scenario of Diffence or "without"."""
    scenario = scenario_of(row)
    return {"defense": row["defense"], "Diffence": "without" if scenario is None else SCENARIO_TITLES[scenario]}


def tables_markdown(rows: Iterable[dict[str, Any]]) -> str:
    """The privacy table, the utility table and the warnings of the rows, as Markdown."""
    rows = list(rows)
    return "\n\n".join([as_markdown(privacy_table(rows)), as_markdown(utility_table(rows)), *warnings_of(rows)])


def warnings_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The warnings of the rows, each once."""
    return list(dict.fromkeys(f"Warning: {sentence}" for row in rows for sentence in row["warnings"]))


def as_markdown(frame: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    return frame.to_markdown(index=False, disable_numparse=True)
