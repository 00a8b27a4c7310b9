"""Rules over rows that say whether a setting bears out a claim of the paper.

A rule is a function of `Results` that returns an `Evidence` for every setting with the rows it needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SCENARIOS = ("1", "2", "3")
REDUCTIONS = {"undefended": 0.140, "hamp": 0.144, "relaxloss": 0.114, "selena": 0.100}  # Section IV-B1

Rows = dict[tuple[str, str | None], dict[str, Any]]  # by defense and scenario; None is without Diffence


@dataclass(frozen=True)
class Evidence:
    """What one setting shows: where, the figures, and whether they meet the claim's rule."""

    where: str
    figures: str
    holds: bool


@dataclass
class Results:
    """Rows by what rules ask for. Keys of `evaluations` and `with_shadows` are settings such as "cifar10, small"."""

    evaluations: dict[str, Rows] = field(default_factory=dict)
    with_shadows: dict[str, Rows] = field(default_factory=dict)  # evaluations with LiRA and RMIA
    stronger: dict[str, Rows] = field(default_factory=dict)  # evaluations with a stronger diffusion model
    tuned: dict[str, list[Rows]] = field(default_factory=dict)  # evaluations of one defense whose own settings were changed
    by_kind: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # rows of further experiments


Rule = Callable[[Results], list[Evidence]]


def place(row: dict[str, Any]) -> str:
    """The setting of a row as a reader sees it: "cifar10, small", with the seed if it is not 0."""
    return f"{row['dataset']}, {row['profile']}" + (f", seed {row['seed']}" if row["seed"] else "")


def auc_text(row: dict[str, Any]) -> str:
    """The best AUC of a row, with its interval."""
    low, high = row["attacks"][row["best"]["attack"]]["auc_interval"]
    return f"{row['best']['auc']:.3f} [{low:.3f}, {high:.3f}]"


def defenses_with(rows: Rows, *scenarios: str | None) -> list[str]:
    """The defenses of which a setting has rows without Diffence and in all of `scenarios`."""
    names = dict.fromkeys(defense for defense, _ in rows)
    return [name for name in names if all((name, scenario) in rows for scenario in (None, *scenarios))]


def labels_stay(results: Results) -> list[Evidence]:
    evidence = []
    for where, rows in results.evaluations.items():
        changed = [row["diffence"]["labels_changed"] for (_, scenario), row in rows.items() if scenario in SCENARIOS]
        if changed:
            total = sum(count for counts in changed for count in counts.values())
            evidence.append(Evidence(where, f"{total} labels changed in {len(changed)} rows", total == 0))
    return evidence


def auc_falls(scenario: str) -> Callable[[Results], list[Evidence]]:
    """The best AUC falls in `scenario` for every defense."""

    def find(results: Results) -> list[Evidence]:
        evidence = []
        for where, rows in results.evaluations.items():
            names = defenses_with(rows, scenario)
            fallen = [name for name in names if rows[name, scenario]["best"]["auc"] < rows[name, None]["best"]["auc"]]
            figures = "; ".join(f"{name} {auc_text(rows[name, None])} -> {auc_text(rows[name, scenario])}" for name in names)
            if names:
                evidence.append(
                    Evidence(where, f"{len(fallen)} of {len(names)} defenses ({figures})", len(fallen) == len(names))
                )
        return evidence

    return find


def scenarios_in_order(results: Results) -> list[Evidence]:
    evidence = []
    for where, rows in results.evaluations.items():
        names = defenses_with(rows, *SCENARIOS)
        if names:
            mean = {one: sum(rows[name, one]["best"]["auc"] for name in names) / len(names) for one in SCENARIOS}
            figures = f"mean over {len(names)} defenses: " + ", ".join(
                f"scenario {one} {mean[one]:.3f}" for one in ("1", "3", "2")
            )
            evidence.append(Evidence(where, figures, min(mean["3"] - mean["1"], mean["2"] - mean["3"]) >= 0.005))
    return evidence


def auc_falls_by(results: Results) -> list[Evidence]:
    evidence = []
    for where, rows in results.evaluations.items():
        for name in defenses_with(rows, "1"):
            if name in REDUCTIONS:
                fall = 1 - rows[name, "1"]["best"]["auc"] / rows[name, None]["best"]["auc"]
                figures = f"{100 * fall:.1f}% (the paper's average: {100 * REDUCTIONS[name]:.1f}%)"
                evidence.append(Evidence(f"{where}, {name}", figures, fall >= 0.1))
    return evidence


def confidences_alike(results: Results) -> list[Evidence]:
    evidence = []
    for where, rows in results.evaluations.items():
        if "undefended" in defenses_with(rows, "1"):
            before, after = (rows["undefended", one]["attacks"]["entropy"]["auc"] for one in (None, "1"))
            evidence.append(Evidence(where, f"{before:.3f} -> {after:.3f}", abs(after - 0.5) <= abs(before - 0.5) / 2))
    return evidence


def calibration_stays(results: Results) -> list[Evidence]:
    evidence = []
    for where, rows in results.evaluations.items():
        if "undefended" in defenses_with(rows, *SCENARIOS):
            before, *after = (rows["undefended", one]["utility"]["ece"] for one in (None, *SCENARIOS))
            figures = f"ECE {before:.3f}, in scenarios 1, 2 and 3 {', '.join(f'{one:.3f}' for one in after)}"
            evidence.append(Evidence(where, figures, all(one - before <= 0.02 for one in after)))
    return evidence


def compare(
    first: str, second: str, what: str, value: Callable[[dict[str, Any]], float], rule: Callable[[float, float], bool]
) -> Callable[[Results], list[Evidence]]:
    """Compare a number of two defenses, both without Diffence."""

    def find(results: Results) -> list[Evidence]:
        evidence = []
        for where, rows in results.evaluations.items():
            if (first, None) in rows and (second, None) in rows:
                a, b = (value(rows[name, None]) for name in (first, second))
                evidence.append(Evidence(where, f"{what} of {first} {a:.3f}, of {second} {b:.3f}", rule(a, b)))
        return evidence

    return find


def best_auc(row: dict[str, Any]) -> float:
    """The best AUC of a row."""
    return float(row["best"]["auc"])


def advreg_protects(results: Results) -> list[Evidence]:
    evidence = []
    for where, rows in results.evaluations.items():
        for settings in (rows, *results.tuned.get(where, [])):
            if ("advreg", None) in settings and ("undefended", None) in rows:
                options = settings["advreg", None]["config"]["defenses"]["advreg"]
                if (options["alpha"], options["attack_batches"] or options["schedule"]) in ((6, 26), (6, "released")):
                    pair = settings["advreg", None], rows["undefended", None]
                    (a, b), (kept, had) = map(best_auc, pair), (row["accuracy"]["non_members"] for row in pair)
                    figures = f"best AUC {a:.3f} at test accuracy {100 * kept:.1f}%, undefended {b:.3f} at {100 * had:.1f}%"
                    evidence.append(Evidence(where, figures, a <= b - 0.05 and kept >= had - 0.1))
    return evidence


def low_rates_halve(rate: str, title: str) -> Callable[[Results], list[Evidence]]:
    """The largest TPR, or TNR, of any attack with shadow models among them at least halves in scenario 3."""

    def find(results: Results) -> list[Evidence]:
        evidence = []
        for where, rows in results.with_shadows.items():
            for name in defenses_with(rows, "3"):
                most = [max(attack[rate]["rate"] for attack in rows[name, one]["attacks"].values()) for one in (None, "3")]
                figures = f"largest {title} {100 * most[0]:.1f}% -> {100 * most[1]:.1f}%"
                evidence.append(Evidence(f"{where}, {name}", figures, most[1] <= most[0] / 2))
        return evidence

    return find


def gap_attack_stays(results: Results) -> list[Evidence]:
    evidence = []
    for where, rows in results.evaluations.items():
        names = defenses_with(rows, *SCENARIOS)
        same = [name for name in names if len({rows[name, one]["gap_floor"] for one in (None, *SCENARIOS)}) == 1]
        if names:
            figures = f"the same AUC of the gap attack with and without Diffence on {len(same)} of {len(names)} defenses"
            evidence.append(Evidence(where, figures, len(same) == len(names)))
    return evidence


def selena_is_best(results: Results) -> list[Evidence]:
    evidence = []
    accurate = ("undefended", "hamp", "relaxloss", "memguard", "selena")
    for where, rows in results.evaluations.items():
        names = [name for name in defenses_with(rows, "1") if name in accurate]
        if "selena" in names and len(names) > 2:
            lowest = min(names, key=lambda name: rows[name, "1"]["best"]["auc"])
            figures = ", ".join(f"{name} {rows[name, '1']['best']['auc']:.3f}" for name in names)
            evidence.append(Evidence(where, figures, lowest == "selena"))
    return evidence


def dpsgd_costs_most(results: Results) -> list[Evidence]:
    evidence = []
    for where, rows in results.evaluations.items():
        accuracy = {name: row["accuracy"]["non_members"] for (name, scenario), row in rows.items() if scenario is None}
        published = {name: value for name, value in accuracy.items() if not name.startswith("dpsgd-")}
        if "dpsgd" in published and len(published) > 3:
            figures = ", ".join(f"{name} {100 * value:.1f}%" for name, value in published.items())
            evidence.append(Evidence(where, figures, min(published, key=published.__getitem__) == "dpsgd"))
    return evidence


def averages_are_more_accurate(results: Results) -> list[Evidence]:
    evidence = []
    for where, rows in results.stronger.items():
        names = defenses_with(rows, "average")
        changes = {name: _accuracy(rows[name, "average"]) - _accuracy(rows[name, None]) for name in names}
        if changes:
            figures = ", ".join(f"{name} {100 * change:+.1f} points" for name, change in changes.items())
            evidence.append(Evidence(where, figures, min(changes.values()) > 0))
    return evidence


def _accuracy(row: dict[str, Any]) -> float:
    return float(row["accuracy"]["non_members"])
