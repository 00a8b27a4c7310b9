"""A row's numbers: best attack, null, warnings, counts over the scored images, the interval of a scenario."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import planted

from common.attacks import ATTACKS, NNOptions, Outputs, Scores, suite
from common.config import Attack, Config, Data, Diffence
from common.data.partition import Pools, evaluation_pools
from common.defenses import DefendedModel
from common.diffence.select import Selector
from common.errors import UserError
from common.experiments import evaluate
from common.experiments.collect import LabelledLogits
from common.experiments.evaluate import DefendedOutputs
from common.metrics import privacy as metrics
from common.pair import Pair
from common.report import measure
from common.run import Run

# a row's numbers


def scores_of(members: list[float], non_members: list[float], labels: Pair[np.ndarray] | None = None) -> Scores:
    """The same points are scored and known."""
    points = Pair(np.array(members, dtype=float), np.array(non_members, dtype=float))
    return Scores(points, points, labels, labels)


def every(scores: Scores, **others: Scores) -> dict[str, Scores]:
    return dict.fromkeys(ATTACKS, scores) | {name.replace("_", "-"): one for name, one in others.items()}


def test_best_is_of_the_papers_five() -> None:
    weak, strong, half = scores_of([0, 1], [0, 1]), scores_of([2, 3], [0, 1]), scores_of([1, 3], [0, 2])
    row = measure.measure(every(weak, m_entropy=half, correctness=strong), every(weak), "clean", Attack())
    assert row["best"] == {"attack": "m-entropy", "auc": 0.75, "accuracy": 0.75, "accuracy_oracle": 0.75}
    assert row["gap_floor"] == 1.0
    assert row["null"]["best"]["auc"] == 0.5
    assert row["null"]["attacks"]["m-entropy"] == {"auc": 0.5, "accuracy": 0.5, "accuracy_oracle": 0.5}
    assert [sentence[:3] for sentence in row["warnings"]] == ["TPR", "TNR"]
    assert measure.measure(every(weak), every(weak), "clean", Attack(fpr=0.5))["warnings"] == []


@pytest.mark.parametrize("name", ["nn", "m-entropy", "loss", "confidence", "entropy"])
def test_each_of_the_papers_five_may_be_the_best(name: str) -> None:
    weak, strong = scores_of([0, 1], [0, 1]), scores_of([2, 3], [0, 1])
    row = measure.measure(every(weak) | {name: strong}, every(weak), "clean", Attack())
    assert row["best"] == {"attack": name, "auc": 1.0, "accuracy": 1.0, "accuracy_oracle": 1.0}


def test_the_released_protocol_fits_on_the_scored_points_and_keeps_rates_below_the_bound() -> None:
    """The scored points separate at 1, the known ones at 3. At a bound of .5 one error in two is allowed, or none below it."""
    points = [np.array(side, dtype=float) for side in ([1, 2], [0, 0], [3, 4], [1, 2])]
    scores = every(Scores(Pair(*points[:2]), Pair(*points[2:])))
    clean, released = (measure.measure(scores, scores, protocol, Attack(fpr=0.5)) for protocol in ("clean", "released"))
    assert (clean["attacks"]["loss"]["accuracy"], released["attacks"]["loss"]["accuracy"]) == (0.5, 1.0)
    assert (clean["null"]["attacks"]["loss"]["accuracy"], released["null"]["attacks"]["loss"]["accuracy"]) == (0.5, 1.0)
    assert clean["warnings"] == []
    assert [sentence[:3] for sentence in released["warnings"]] == ["TPR", "TNR"]


def test_rmia_warns_of_a_population_that_cannot_show_the_error_rate() -> None:
    """100 known non-members are enough at 1%, 99 are not; without RMIA nobody asks."""

    def warned(known: int, *more: str) -> list[str]:
        scores = Scores(Pair(np.arange(500.0), np.arange(500.0)), Pair(np.arange(3.0), np.arange(float(known))))
        return measure.measure(every(scores) | dict.fromkeys(more, scores), every(scores), "clean", Attack(fpr=0.01))[
            "warnings"
        ]

    (sentence,) = warned(99, "rmia-online")
    assert "99 known non-members" in sentence
    assert "TPR at 1% FPR" in sentence
    assert warned(100, "rmia-online") == warned(99, "lira-online") == warned(99) == []


def test_thresholds_per_class_are_an_option() -> None:
    """Class 0 separates at 10 and class 1 at 1: no single threshold does that."""
    labels = Pair(np.array([0, 1]), np.array([0, 1]))
    scores = every(scores_of([10, 1], [9, 0], labels))
    plain, asked = (measure.measure(scores, scores, "clean", Attack(per_class=on))["best"] for on in (False, True))
    assert "accuracy_per_class" not in plain
    assert (asked["accuracy"], asked["accuracy_per_class"]) == (0.75, 1.0)


def test_every_attack_says_the_labels_of_its_scores() -> None:
    by_name = evaluate.attack(run_of(), clean_pools(), exposed(), "clean")
    for scores in by_name.values():
        assert scores.scored_labels is not None and scores.known_labels is not None
        assert list(scores.scored_labels.map(len)) == list(scores.scored.map(len))
        assert list(scores.known_labels.map(len)) == list(scores.known.map(len))
    assert len(by_name["nn"].known.members) == 8  # the held-out fifth of the known points


# the interval of a scenario


def logits_with_phi(values: list[list[float]]) -> LabelledLogits:
    """Two classes, of which the first is predicted: phi of candidate j of image i is `values[i][j]`."""
    phi = np.array(values)
    candidates = np.stack([phi, np.zeros_like(phi)], axis=-1)
    return LabelledLogits(candidates[:, 0], candidates, np.zeros(len(phi), dtype=np.int64))


@pytest.mark.parametrize(("scenario", "interval"), [("2", [1, 3]), ("1", [1, 9])])
def test_the_interval_is_fitted_on_the_defenders_points_and_no_others(scenario: str, interval: list[float]) -> None:
    """Scenario 2: [min, mean] of the members' 1, 2, 3 and 6. Scenario 1 on a grid of 1: [min of members, max of others]."""
    pools = Pools(fit=range(2), known=range(2, 4), scored=range(4, 6))
    known_and_scored = [[100.0, 200.0], [0.1, 50.0], [300.0, 0.2], [0.3, 400.0]]
    fit = Pair([[1.0, 2.0], [3.0, 6.0]], [[4.0, 9.0], [5.0, 2.0]])
    collected = fit.map(lambda points: logits_with_phi([*points, *known_and_scored]))
    run = run_of()
    run = replace(run, config=replace(run.config, diffence=Diffence(grid=1)))
    selector = evaluate.defend(run, DefendedModel(torch.nn.Identity(), None), collected, pools, scenario).selector
    assert selector is not None
    assert [selector.low, selector.high] == pytest.approx(interval)


@pytest.mark.parametrize(("bins", "first"), [(1, True), (100, False)])
def test_scenario_1_searches_with_the_bins_of_the_config(bins: int, first: bool) -> None:
    """One bin tells nothing apart, so that the first interval of the grid is as good as any; here it is not the best."""
    pools = Pools(fit=range(3), known=range(3), scored=range(3))
    fit = Pair([[4.0, 8.0], [4.0, 7.0], [5.0, 8.0]], [[9.0, 6.0], [9.5, 6.5], [9.0, 7.0]])
    run = run_of()
    run = replace(run, config=replace(run.config, diffence=Diffence(grid=4, js_bins=bins)))
    selector = evaluate.fit_on_pool(run, fit.map(logits_with_phi), pools, "1")
    assert ([selector.low, selector.high] == pytest.approx([4, 4 + 5.5 / 4])) == first


# what a row says of its predictions


def test_what_a_row_says_is_counted_over_the_scored_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes, the first predicted throughout; scored are the images 1 to 4, candidates qualify where phi lies in [2, 4].

    Members: the second candidate of image 1, none of image 2 (both lie outside), the first of image 3, and of image 4 none
    keeps the label. 2 + 2 + 1 + 2 draws. Non-members: the first of every image.
    """
    monkeypatch.setattr(evaluate, "training_facts", lambda *_: {"epoch": 8})
    pools = Pools(fit=range(1), known=range(1), scored=range(1, 5))
    members = logits_with_phi([[9.0, 9], [1.0, 3], [7.0, 8], [2.0, 1], [-1.0, -3], [9.0, 9]])
    members = replace(members, original=logits_with_phi([[9.0]] * 6).original, labels=np.array([1, 0, 0, 0, 1, 1]))
    others = replace(logits_with_phi([[3.0, 9]] * 6), labels=np.array([0, 1, 0, 1, 1, 0]))
    sides, selector = Pair(members, others), Selector("1", 2.0, 4.0)
    released = sides.map(lambda side: Outputs(selector.release(side.candidates, side.original), side.labels))
    row = evaluate.row_facts(run_of(), "undefended", "clean", DefendedOutputs(selector, released), sides, pools)
    assert row["accuracy"] == {"members": 0.75, "non_members": 0.25}
    assert row["scored"] == {"members": 4, "non_members": 4}
    assert row["training"] == {"epoch": 8}
    assert row["utility"]["label_agreement"] == {"members": 1.0, "non_members": 1.0}
    facts = row["diffence"]
    assert (facts["scenario"], facts["interval"]) == ("1", [2.0, 4.0])
    assert facts["no_match"] == {"members": 1, "non_members": 0}
    assert facts["draws"] == {"members": 7 / 4, "non_members": 1.0}
    assert facts["labels_changed"] == {"members": 0, "non_members": 0}
    without = DefendedOutputs(None, sides.map(lambda side: Outputs(side.original, side.labels)))
    bare = evaluate.row_facts(run_of(), "undefended", "clean", without, sides, pools)
    assert bare["diffence"] is None


# the attacks


def test_the_nn_attack_holds_out_the_share_that_the_config_says() -> None:
    run = run_of()
    run = replace(run, config=replace(run.config, attack=Attack(nn_epochs=1, nn_held_out=0.5)))
    scores = evaluate.attack(run, clean_pools(), exposed(), "clean")["nn"]
    assert list(scores.known.map(len)) == [20, 20]  # half of 40


def test_in_the_released_protocol_trained_attacks_leave_out_the_scored_points_that_they_know() -> None:
    """Known are 40 points, scored 140 from the same start: the NN attack trains on all 40 and scores the other 100."""
    pools = evaluation_pools(run_of().config.data, "released")
    scores = evaluate.attack(run_of(), pools, exposed(), "released")
    assert [list(pair.map(len)) for pair in (scores["nn"].scored, scores["nn"].known)] == [[100, 100], [40, 40]]
    assert [list(pair.map(len)) for pair in (scores["loss"].scored, scores["loss"].known)] == [[140, 140], [40, 40]]
    labels = scores["nn"].scored_labels
    assert labels is not None
    np.testing.assert_array_equal(labels.members, exposed().outputs.members.labels[40:140])


def test_the_released_protocol_needs_scored_points_that_are_not_known() -> None:
    enough, too_few = (Pools(range(40), range(40), range(scored)) for scored in (41, 40))
    assert list(evaluate.attack(run_of(), enough, exposed(), "released")["nn"].scored.map(len)) == [1, 1]
    with pytest.raises(UserError, match=r"raise data\.scored above data\.known"):
        evaluate.attack(run_of(), too_few, exposed(), "released")


def test_the_nn_attack_repeats_for_a_seed_and_differs_by_it() -> None:
    first, again, other = (
        evaluate.attack(run_of(seed), clean_pools(), exposed(), "clean")["nn"].scored.members for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


# the null


def exposed() -> DefendedOutputs:
    """200 points a side, of which the members give themselves away entirely."""
    return DefendedOutputs(None, Pair(planted(200, 30, seed=0), planted(200, -30, seed=1)))


def run_of(seed: int = 0) -> Run:
    data = Data(members=200, non_members=200, fit=20, known=40, scored=140)
    return Run(Path("synthetic"), "small", Config(data=data, attack=Attack(nn_epochs=20)), seed, torch.device("cpu"))


def clean_pools() -> Pools:
    return evaluation_pools(run_of().config.data, "clean")


def null_of(
    attack: str, defense: str = "undefended", seed: int = 0, protocol: str = "clean", scenario: str | None = None
) -> Scores:
    """The scores of an attack on the planted outputs, under shuffled membership."""
    pools = evaluation_pools(run_of().config.data, protocol)
    defended = DefendedOutputs(Selector(scenario) if scenario else None, exposed().outputs)
    return evaluate.attack_null(run_of(seed), defense, pools, defended, protocol)[attack]


def test_nothing_is_left_of_a_perfect_attack_under_shuffled_membership(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUC 1 becomes .5 on average, with the deviation sqrt((2n + 1) / 12) / n of a rank sum: .0346 at n = 140."""
    monkeypatch.setattr(suite, "ATTACKS", {"loss": ATTACKS["loss"]})
    real = evaluate.attack(run_of(), clean_pools(), exposed(), "clean")["loss"]
    assert metrics.auc(*real.scored) == 1.0
    aucs = [metrics.auc(*null_of("loss", seed=seed).scored) for seed in range(100)]
    assert np.mean(aucs) == pytest.approx(0.5, abs=3 * 0.0346 / 10)
    assert np.std(aucs) == pytest.approx(0.0346, rel=0.25)


def test_the_nn_attack_trains_on_shuffled_membership() -> None:
    """Its own held-out known points, which true membership would tell apart perfectly, are then no better than chance."""
    null = null_of("nn")
    real = evaluate.attack(run_of(), clean_pools(), exposed(), "clean")["nn"]
    assert metrics.auc(*real.known) == 1.0
    assert metrics.auc(*null.known) < 0.95
    assert abs(metrics.auc(*null.scored) - 0.5) < 5 * 0.0346


def test_every_point_plays_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is lost or doubled, the defender's points stay out, and a released known point keeps its role when scored."""
    monkeypatch.setattr(suite, "ATTACKS", {"loss": ATTACKS["loss"]})
    null = null_of("loss")
    known_and_scored = [-side.loss[20:200] for side in exposed().outputs]
    np.testing.assert_array_equal(
        np.sort(np.concatenate([*null.scored, *null.known])), np.sort(np.concatenate(known_and_scored))
    )
    null = null_of("loss", protocol="released")
    np.testing.assert_array_equal(null.scored.members[:40], null.known.members)
    np.testing.assert_array_equal(null.scored.non_members[:40], null.known.non_members)


def test_the_shuffle_is_the_rows_own_and_repeats() -> None:
    """Another defense, scenario or seed is another row."""
    first, again, *others = (
        null_of("loss", defense, seed, scenario=scenario).scored.members
        for defense, scenario, seed in (
            ("undefended", None, 0),
            ("undefended", None, 0),
            ("hamp", None, 0),
            ("undefended", "3", 0),
            ("undefended", None, 1),
        )
    )
    np.testing.assert_array_equal(first, again)
    assert len({scores.tobytes() for scores in (first, *others)}) == 4


@pytest.mark.parametrize(
    ("protocol", "epochs", "trained", "select_on"),
    [("clean", 20, 4, "known"), ("clean", 21, 5, "known"), ("released", 20, 20, "scored")],
)
def test_the_null_trains_a_fifth_where_nothing_is_chosen_on_scored_points(
    protocol: str, epochs: int, trained: int, select_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[NNOptions] = []

    def record(known: Pair[Outputs], scored: Pair[Outputs], options: NNOptions, seed: int) -> Scores:
        asked.append(options)
        return ATTACKS["loss"](known, scored, options, seed)

    monkeypatch.setattr(suite, "ATTACKS", {"nn": record})
    run = run_of()
    run = replace(run, config=replace(run.config, attack=Attack(nn_epochs=epochs)))
    evaluate.attack_null(run, "undefended", evaluation_pools(run.config.data, protocol), exposed(), protocol)
    assert [(options.nn_epochs, options.select_on) for options in asked] == [(trained, select_on)]
