"""The paper's claims: verdicts follow from the evidence, rules tell rows apart, and no claim lacks its rows."""

from typing import Any

import pytest
from conftest import ROOT

from common.report import claim_rules as rules
from common.report import experiment_rules
from common.report.claim_rules import Evidence, Results
from common.report.claims import CLAIMS, Claim
from common.report.claims_page import claims_page, evidence_for, load_results, of_first_seeds, verdict
from common.report.load import read_rows

MET, MISSED = Evidence("here", "1", True), Evidence("there", "0", False)
DIFFENCE_CLAIM = Claim("a claim", "Section I", "A test.", lambda results: [])


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ([], "not measured yet"),
        ([MET, MET], "holds"),
        ([MET, MISSED], "holds in part"),
        ([MISSED], "does not hold here"),
    ],
)
def test_the_verdict_follows_from_the_evidence(evidence: list[Evidence], expected: str) -> None:
    assert verdict(DIFFENCE_CLAIM, evidence) == expected


def test_an_untestable_claim_has_no_rule_and_says_why() -> None:
    for claim in CLAIMS:
        assert (claim.rule is None) == bool(claim.untestable), claim.title
        assert (verdict(claim, []) == "cannot be tested here") == bool(claim.untestable)


def row(auc: float = 0.8, floor: float = 0.6, changed: int = 0, scenario: str | None = None, **more: Any) -> dict[str, Any]:
    """A row with the best AUC and whatever else a rule reads."""
    return {
        "best": {"attack": "nn", "auc": auc},
        "attacks": {"nn": {"auc": auc, "auc_interval": [auc - 0.02, auc + 0.02]}, "entropy": {"auc": auc}},
        "gap_floor": floor,
        "accuracy": {"non_members": 0.5},
        "utility": {"ece": 0.1},
        "diffence": scenario and {"scenario": scenario, "labels_changed": {"members": changed, "non_members": 0}},
    } | more


def setting(**aucs: list[float]) -> Results:
    """One setting: for each defense the best AUC without Diffence and in scenarios 1, 2 and 3."""
    rows = {
        (defense, scenario): row(auc, scenario=scenario)
        for defense, values in aucs.items()
        for scenario, auc in zip((None, "1", "2", "3"), values, strict=True)
    }
    return Results({"cifar10, small": rows})


def holds(rule: rules.Rule, results: Results) -> list[bool]:
    return [one.holds for one in rule(results)]


def test_a_fall_of_the_auc_is_a_fall_for_every_defense() -> None:
    results = setting(undefended=[0.8, 0.7, 0.7, 0.7], hamp=[0.8, 0.7, 0.81, 0.8])
    assert [holds(rules.auc_falls(scenario), results) for scenario in ("1", "2", "3")] == [[True], [False], [False]]


def test_the_order_of_scenarios_is_that_of_the_mean() -> None:
    """Means .65, .75 and .70; then scenario 2 below scenario 3; then the order within noise."""
    assert holds(rules.scenarios_in_order, setting(undefended=[0.9, 0.6, 0.7, 0.7], hamp=[0.9, 0.7, 0.8, 0.7])) == [True]
    assert holds(rules.scenarios_in_order, setting(undefended=[0.9, 0.6, 0.65, 0.7])) == [False]
    assert holds(rules.scenarios_in_order, setting(undefended=[0.9, 0.696, 0.71, 0.7])) == [False]


def test_a_tenth_is_relative() -> None:
    assert holds(rules.auc_falls_by, setting(undefended=[0.8, 0.719, 1, 1], selena=[0.8, 0.721, 1, 1])) == [True, False]


def test_advreg_is_judged_in_the_papers_setting_only() -> None:
    def advreg(
        auc: float, alpha: float = 6, attack_batches: int = 0, schedule: str = "released", accuracy: float = 0.45
    ) -> Results:
        results = setting(undefended=[0.8, 0.7, 0.7, 0.7], advreg=[auc, 0.7, 0.7, 0.7])
        options = {"alpha": alpha, "attack_batches": attack_batches, "schedule": schedule}
        results.evaluations["cifar10, small"]["advreg", None]["config"] = {"defenses": {"advreg": options}}
        results.evaluations["cifar10, small"]["advreg", None]["accuracy"] = {"non_members": accuracy}
        return results

    assert holds(rules.advreg_protects, advreg(0.74)) == [True]
    assert holds(rules.advreg_protects, advreg(0.76, attack_batches=26)) == [False]
    assert holds(rules.advreg_protects, advreg(0.5, accuracy=0.39)) == [False]  # it has learned too little
    for other in (advreg(0.74, alpha=2), advreg(0.74, attack_batches=2), advreg(0.74, schedule="paper")):
        assert holds(rules.advreg_protects, other) == []
    both = advreg(0.76, alpha=2)
    both.tuned = {
        "cifar10, small": list(advreg(0.74).evaluations.values()),
        "cifar10, narrow": [*setting(advreg=[0] * 4).evaluations.values()],
    }
    assert holds(rules.advreg_protects, both) == [True]


def test_a_single_changed_label_is_a_change() -> None:
    results = setting(undefended=[0.8, 0.7, 0.7, 0.7])
    assert holds(rules.labels_stay, results) == [True]
    results.evaluations["cifar10, small"]["undefended", "2"] = row(changed=1, scenario="2")
    assert holds(rules.labels_stay, results) == [False]


def test_confidences_are_alike_when_the_entropy_attack_loses_half() -> None:
    assert holds(rules.confidences_alike, setting(undefended=[0.8, 0.65, 0.7, 0.7])) == [True]
    assert holds(rules.confidences_alike, setting(undefended=[0.8, 0.66, 0.7, 0.7])) == [False]


@pytest.mark.parametrize(("ece", "expected"), [(0.115, True), (0.125, False), (0.075, True)])
def test_calibration_worsens_by_two_hundredths_at_most(ece: float, expected: bool) -> None:
    results = setting(undefended=[0.8, 0.7, 0.7, 0.7])
    results.evaluations["cifar10, small"]["undefended", "3"]["utility"]["ece"] = ece
    assert holds(rules.calibration_stays, results) == [expected]


@pytest.mark.parametrize(("rate", "expected"), [(0.05, True), (0.06, False)])
def test_low_rates_are_those_of_the_best_attack(rate: float, expected: bool) -> None:
    def attacks(*rates: float) -> dict[str, Any]:
        return {str(i): {"tpr_at_fpr": {"rate": one}} for i, one in enumerate(rates)}

    rows = {
        ("hamp", None): row(attacks=attacks(0.02, 0.10)),
        ("hamp", "3"): row(scenario="3", attacks=attacks(rate, 0.01)),
    }
    assert holds(rules.low_rates_halve("tpr_at_fpr", "TPR"), Results(with_shadows={"cifar10, small": rows})) == [expected]


def test_selena_leaks_least_or_not() -> None:
    others = {"hamp": [0.9, 0.7, 0.7, 0.7], "relaxloss": [0.9, 0.65, 0.7, 0.7], "dpsgd": [0.6, 0.5, 0.5, 0.5]}
    assert holds(rules.selena_is_best, setting(selena=[0.7, 0.6, 0.6, 0.6], **others)) == [True]
    assert holds(rules.selena_is_best, setting(selena=[0.7, 0.68, 0.6, 0.6], **others)) == [False]


def test_intervals_are_judged_by_rank_correlation_and_by_later_hits() -> None:
    def intervals(correlation: float, later: float) -> Results:
        draws = [{"share": 0.5, "later_hits": later}, {"share": 0.9, "later_hits": None}]
        facts = {"dataset": "cifar10", "profile": "small", "seed": 0, "defense": "undefended"}
        facts |= {"n": 30, "t": 160, "intervals": []}
        return Results(by_kind={"intervals": [facts | {"rank_correlation": {"js_and_auc": correlation}, "draws": draws}]})

    assert holds(experiment_rules.divergence_predicts_auc, intervals(0.31, 0)) == [True]
    assert holds(experiment_rules.divergence_predicts_auc, intervals(-0.9, 0)) == [False]
    assert holds(experiment_rules.later_draws_rarely_hit, intervals(0, 0.49)) == [True]
    assert holds(experiment_rules.later_draws_rarely_hit, intervals(0, 0.51)) == [False]


def test_averages_of_a_stronger_model_are_more_accurate_for_every_defense() -> None:
    def stronger(*accuracies: float) -> Results:
        pairs = zip(("undefended", "hamp"), accuracies, strict=True)
        rows = {(name, one): row(scenario=one) for name in ("undefended", "hamp") for one in (None, "average")}
        for name, accuracy in pairs:
            rows[name, "average"]["accuracy"] = {"non_members": accuracy}
        return Results(stronger={"cifar10, narrow": rows})

    assert holds(rules.averages_are_more_accurate, stronger(0.51, 0.52)) == [True]
    assert holds(rules.averages_are_more_accurate, stronger(0.51, 0.5)) == [False]


def test_n_and_t_help_only_where_both_do() -> None:
    facts = {"dataset": "cifar10", "profile": "small", "seed": 0, "defense": "undefended"}
    facts |= {"n_values": [2, 9], "t_values": [40, 90]}

    def grid(by_n: float, by_t: float) -> Results:
        cells = [
            {"scenario": "1", "n": n, "t": t, "best": {"auc": 0.8 - by_n * (n == 9) - by_t * (t == 90)}}
            for n in (2, 9)
            for t in (40, 90)
        ]
        return Results(by_kind={"n_and_t": [facts | {"cells": cells}]})

    assert holds(experiment_rules.n_and_t_help, grid(0.01, 0.05)) == [True]
    assert holds(experiment_rules.n_and_t_help, grid(-0.01, 0.05)) == [False]
    assert holds(experiment_rules.n_and_t_help, grid(0.01, -0.05)) == [False]


def test_every_scenario_must_be_cheaper_than_memguard() -> None:
    def times(**ms: float) -> Results:
        def row(defense: str, answers: dict[str | None, float]) -> dict[str, Any]:
            listed = [
                {"scenario": one, "batch": 1, "draws_at_once": one and 1, "wall_ms": {"mean": value}}
                for one, value in answers.items()
            ]
            facts = {"dataset": "cifar10", "profile": "small", "seed": 0, "device": "cpu"}
            return {**facts, "defense": defense, "answers": listed}

        ours = row("undefended", {None: 1.0, "1": ms["first"], "3": ms["third"]})
        return Results(by_kind={"overhead": [ours, row("memguard", {None: 70.0})]})

    assert holds(experiment_rules.queries_cost_less_than_memguard, times(first=60, third=30)) == [True]
    assert holds(experiment_rules.queries_cost_less_than_memguard, times(first=80, third=30)) == [False]
    without_scenarios = times(first=60, third=30)
    del without_scenarios.by_kind["overhead"][0]["answers"][1:]
    assert holds(experiment_rules.queries_cost_less_than_memguard, without_scenarios) == []


def test_a_setting_is_judged_by_its_first_seed() -> None:
    """Another setting, such as a stronger diffusion model, has a first seed of its own, which its evidence names."""
    facts = {"dataset": "cifar10", "profile": "small", "protocol": "clean", "defense": "hamp", "overrides": []}
    changed = ["ddpm.name=stronger"]
    rows = [facts | {"seed": 1}, facts | {"seed": 0}, *(facts | {"overrides": changed, "seed": seed} for seed in (2, 1))]
    kept = of_first_seeds(rows)
    assert [(one["seed"], one["overrides"]) for one in kept] == [(0, []), (1, changed)]
    assert [rules.place(one) for one in kept] == ["cifar10, small", "cifar10, small, seed 1"]


def test_rows_are_told_apart_by_what_was_changed() -> None:
    facts = {"kind": "evaluation", "dataset": "cifar10", "profile": "small", "protocol": "clean", "seed": 0, "diffence": None}

    def evaluated(defense: str, *changed: str, shadows: int = 0, **more: Any) -> dict[str, Any]:
        return facts | {"defense": defense, "overrides": list(changed), "config": {"attack": {"shadows": shadows}}} | more

    plain, exposed = evaluated("hamp"), evaluated("hamp", "attack.shadows=16", shadows=16)
    better = evaluated("hamp", "ddpm.name=stronger", "ddpm.steps=4")
    tuned, again = (evaluated("advreg", "defenses.advreg.alpha=6", f"defenses.advreg.attack_batches={k}") for k in (26, 52))
    ignored = [
        evaluated("hamp", "defenses.advreg.alpha=6"),
        evaluated("hamp", "defenses.hamp.gamma=0.5", "diffence.n=2"),
        evaluated("hamp", "diffence.n=2"),
        evaluated("hamp", protocol="released"),
    ]
    results = load_results([plain, exposed, better, tuned, again, *ignored])
    assert results.evaluations == {"cifar10, small": {("hamp", None): plain}}
    assert results.with_shadows == {"cifar10, small": {("hamp", None): exposed}}
    assert results.stronger == {"cifar10, small": {("hamp", None): better}}
    assert results.tuned == {"cifar10, small": [{("advreg", None): tuned}, {("advreg", None): again}]}


def test_no_claim_with_a_rule_lacks_rows() -> None:
    """Should the rows of a claim get lost, this fails; that docs/claims.md is not stale, test_tables.py shows."""
    results = load_results(read_rows(ROOT))
    assert not [claim.title for claim in CLAIMS if claim.rule and not evidence_for(claim, results)]


def test_the_page_has_every_claim_with_its_verdict() -> None:
    page = claims_page(read_rows(ROOT))
    for number, claim in enumerate(CLAIMS, start=1):
        assert f"[{number}. {claim.title}](#claim-{number})" in page
    assert page.count("\nVerdict: **") == len(CLAIMS)
