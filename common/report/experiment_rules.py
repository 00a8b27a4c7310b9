"""Rules of claims over the rows of further experiments, as those of claim_rules.py over evaluations."""

from typing import Any

from common.report.claim_rules import Evidence, Results, place


def label_only_countered(results: Results) -> list[Evidence]:
    evidence = []
    rows = {(place(row), row["defense"]): row for row in results.by_kind["label_only"] if not row["diffence"]}
    for (where, defense), row in rows.items():
        plain = rows.get((where, "undefended"))
        if defense in ("selena", "hamp") and plain:
            before, after = (one["attacks"]["boundary"] for one in (plain, row))
            figures = f"boundary attack: AUC {before['auc']:.3f} on the undefended classifier, {after['auc']:.3f} on {defense}"
            evidence.append(Evidence(where, figures, after["auc_interval"][1] < before["auc"]))
    return evidence


def divergence_predicts_auc(results: Results) -> list[Evidence]:
    return [
        Evidence(
            f"{place(row)}, {row['defense']}, N = {row['n']}, T = {row['t']}",
            f"Spearman's rank correlation {row['rank_correlation']['js_and_auc']:.2f} over {len(row['intervals'])} intervals",
            row["rank_correlation"]["js_and_auc"] >= 0.3,
        )
        for row in results.by_kind["intervals"]
        if row["rank_correlation"]["js_and_auc"] is not None
    ]


def later_draws_rarely_hit(results: Results) -> list[Evidence]:
    evidence = []
    for row in results.by_kind["intervals"]:
        hits = {draws["share"]: draws["later_hits"] for draws in row["draws"] if draws["later_hits"] is not None}
        figures = ", ".join(f"{100 * hit:.0f}% for an interval of {100 * share:.0f}%" for share, hit in hits.items())
        where = f"{place(row)}, {row['defense']}, N = {row['n']}, T = {row['t']}"
        evidence.append(Evidence(where, figures, all(hit < 0.5 for hit in hits.values())))
    return evidence


def n_and_t_help(results: Results) -> list[Evidence]:
    evidence = []
    for row in results.by_kind["n_and_t"]:
        cells = [cell for cell in row["cells"] if cell["scenario"] == "1"]
        ends = {key: [_mean_auc(cells, key, pick(row[f"{key}_values"])) for pick in (min, max)] for key in ("n", "t") if cells}
        if ends:
            figures = "; ".join(
                f"mean AUC {first:.3f} at the smallest {key.upper()}, {last:.3f} at the largest"
                for key, (first, last) in ends.items()
            )
            where = f"{place(row)}, {row['defense']}"
            evidence.append(Evidence(where, figures, all(last < first for first, last in ends.values())))
    return evidence


def _mean_auc(cells: list[dict[str, Any]], key: str, value: int) -> float:
    aucs = [cell["best"]["auc"] for cell in cells if cell[key] == value]
    return float(sum(aucs) / len(aucs))


def queries_cost_less_than_memguard(results: Results) -> list[Evidence]:
    evidence = []
    rows = {(place(row), row["defense"]): row for row in results.by_kind["overhead"]}
    for (where, defense), row in rows.items():
        memguard = rows.get((where, "memguard"))
        ours = {one["scenario"]: _ms(one) for one in row["answers"] if one["draws_at_once"] == 1 and one["batch"] == 1}
        if defense == "undefended" and memguard and ours:
            (theirs,) = [_ms(one) for one in memguard["answers"] if one["scenario"] is None and one["batch"] == 1]
            figures = ", ".join(f"scenario {scenario} {ms:.1f} ms" for scenario, ms in ours.items())
            evidence.append(
                Evidence(f"{where}, {row['device']}", f"{figures}; MemGuard {theirs:.1f} ms", max(ours.values()) < theirs)
            )
    return evidence


def _ms(answer: dict[str, Any]) -> float:
    return float(answer["wall_ms"]["mean"])
