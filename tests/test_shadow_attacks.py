"""LiRA and RMIA in an evaluation: shared reconstructions, the answers of shadow models, rows, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Call, defense_run, planted_memguard, random_split, refusal, tiny_run
from scipy.special import logit

from common.attacks.contract import Scores, shuffled_scores
from common.attacks.shadow import SHADOW_ATTACKS, ShadowOutputs, possible_attacks
from common.attacks.shadow import shadow_attacks as attacks_on
from common.commands import evaluate_mia, train_shadows
from common.config import Attack, Data
from common.data.partition import Examples, Split, evaluation_pools, load_split
from common.defenses import DEFENSES
from common.diffence.candidates import StoredCandidates, draw_all, query_ids, shards
from common.diffence.reconstruct import DiffusionReconstructor
from common.diffence.select import Selector
from common.experiments import shadow_scores as shadow_attacks
from common.experiments.collect import collect
from common.experiments.shadow_models import train_shadow
from common.experiments.shadow_scores import Queries, model_phi
from common.files import save_checkpoint
from common.metrics.privacy import Floats, phi
from common.pair import Pair
from common.run import Run
from common.training.targets import load_target, model_path, target_classifier


def test_queries_name_side_position_and_view() -> None:
    """Even for members and odd for non-members; 2^40 more for mirrored images."""
    assert query_ids("members", [0, 3]).tolist() == [0, 6]
    assert query_ids("non_members", range(2)).tolist() == [1, 3]
    assert query_ids("non_members", [3], mirrored=True).tolist() == [7 + 2**40]


def test_stored_candidates_are_those_that_were_drawn(copied_drawn: Path, tiny: Path) -> None:
    run = tiny_run(copied_drawn, tiny)
    stored, drawn = StoredCandidates(run), {side: next(shards(run, side, 100)) for side in ("members", "non_members")}
    for side, images in drawn.items():
        found = stored(images[:, 0], query_ids(side, [3, 99]), torch.tensor([0, 2]))
        assert torch.equal(found, torch.stack([images[3, 0], images[99, 2]]))
    draw_all(run, load_split(run), "clean", mirrored=True)
    mirrored = StoredCandidates(run)(images[:, 0], query_ids("members", [3], mirrored=True), torch.tensor([0]))
    own, other = (
        float((mirrored[0] - view).abs().mean()) for view in (drawn["members"][3, 0].flip(-1), drawn["members"][3, 0])
    )
    assert own < other  # a reconstruction of the mirrored image, with noise of its own
    assert own > 0


@pytest.mark.parametrize("defense", ["undefended", "memguard"])
def test_the_target_is_asked_as_the_other_attacks_ask_it(defense: str, copied_drawn: Path, tiny: Path) -> None:
    """Drawn lazily through ProtectedClassifier, or all at once from stored logits: the same phi, behind MemGuard as well."""
    run = tiny_run(copied_drawn, tiny, "defenses.memguard={steps: 20, epsilon: 2.0}")
    split, asked = load_split(run), np.arange(40, 90)
    post_inference = planted_memguard(run) if defense == "memguard" else None
    sides = collect(run, "undefended", "clean", load_target(run, "undefended", "clean", target_classifier(run)), split)
    bare = []
    for selector in (None, Selector("3"), Selector("1", 0.5, 1.0)):
        (got,) = model_phi(run, defense, "clean", Queries(split, asked, [selector], StoredCandidates(run)), False)
        expected = []
        for name, side in sides.as_dict().items():
            logits = side.original if selector is None else selector.release(side.candidates, side.original)
            bare.append(phi(logits[asked], side.labels[asked]))
            if post_inference is not None:
                logits = post_inference.release(torch.from_numpy(logits), query_ids(name, range(len(logits)))).numpy()
            expected.append(phi(logits[asked], side.labels[asked]))
        np.testing.assert_allclose(got, np.concatenate(expected), atol=1e-3)
        assert (np.abs(got - np.concatenate(bare[-2:])).max() > 0.1) == (defense == "memguard")


def test_all_scenarios_share_what_a_model_is_asked(copied_drawn: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they get the answers that each gets alone, and no candidate is classified twice."""
    run = tiny_run(copied_drawn, tiny, "diffence.fallback=reorder")
    split, asked = load_split(run), np.arange(40, 90)
    monkeypatch.setattr(shadow_attacks, "DRAWS", 1)
    looked_up: list[tuple[int, int]] = []

    class Counted(StoredCandidates):
        def __call__(self, images: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            looked_up.extend(zip(queries.tolist(), numbers.tolist(), strict=True))
            return super().__call__(images, queries, numbers)

    def ask(*selectors: Selector | None) -> Floats:
        for path in run.outputs_dir.glob("*-phi-*"):
            path.unlink()
        looked_up.clear()
        return model_phi(run, "undefended", "clean", Queries(split, asked, selectors, Counted(run)), False)

    selectors = (
        None,
        Selector("1", -1.7, -1.4, "reorder"),
        Selector("2", -1.8, -1.2, "reorder"),
        Selector("3"),
        Selector("average"),
    )
    alone, counts = [], []
    for selector in selectors:
        alone.append(ask(selector)[0])
        counts.append(len(looked_up))
    assert counts[0] == 0 and counts[3] < counts[2] <= counts[1] < counts[4] == 4 * 100  # N = 4
    assert len({values.tobytes() for values in alone}) == 5
    np.testing.assert_allclose(ask(*selectors), np.stack(alone), atol=1e-4)
    assert len(looked_up) == len(set(looked_up)) == counts[4]
    np.testing.assert_allclose(ask(*selectors[:4]), np.stack(alone[:4]), atol=1e-4)
    assert len(looked_up) == len(set(looked_up)) < counts[1] + counts[2] + counts[3]
    kept = len(looked_up)
    again = model_phi(run, "undefended", "clean", Queries(split, asked, selectors[:4], Counted(run)), False)
    np.testing.assert_allclose(again, np.stack(alone[:4]), atol=1e-4)
    assert len(looked_up) == kept  # stored


def test_kept_answers_serve_the_same_question_alone(copied_drawn: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another interval, N, set of images or other weights is another question; the same one is not classified again."""
    run = tiny_run(copied_drawn, tiny)
    split, asked = load_split(run), np.arange(40, 90)

    def ask(selector: Selector | None, asked: np.ndarray = asked, run: Run = run) -> Floats:
        queries = Queries(split, asked, [selector], StoredCandidates(run))
        return model_phi(run, "undefended", "clean", queries, False)[0]

    low, high = Selector("1", -4.0, -3.0), Selector("1", 0.5, 1.0)
    first, other = ask(high), ask(low)
    assert (first != other).any()
    np.testing.assert_array_equal(ask(high), first)
    fewer = replace(run, config=replace(run.config, diffence=replace(run.config.diffence, n=1)))  # more have no match
    kept, reordered = (ask(replace(high, fallback=fallback), run=fewer) for fallback in ("original", "reorder"))
    assert (kept != reordered).any()
    np.testing.assert_array_equal(ask(high), first)
    assert (ask(high, run=fewer) != first).any()
    everything = ask(None, np.arange(100))
    for others in (asked, np.append(30, asked[1:]), asked, np.append(asked[:-1], 95), asked, np.append(asked[0], asked[2:])):
        np.testing.assert_allclose(ask(None, others), everything[np.append(others, 100 + others)], atol=1e-5)
    bare = ask(None, asked)
    with monkeypatch.context() as patched:
        patched.setattr(shadow_attacks, "load_defended_model", None)
        np.testing.assert_array_equal(ask(None), bare)
    path = model_path(run, "undefended")
    stored = torch.load(path, weights_only=True)
    stored["model"] = {name: -value if name.endswith("weight") else value for name, value in stored["model"].items()}
    save_checkpoint(path, stored)
    assert (ask(None) != bare).any()


def test_a_mirrored_question_is_about_the_image_flipped_left_to_right(copied_drawn: Path, tiny: Path) -> None:
    run = tiny_run(copied_drawn, tiny)
    split, asked = load_split(run), np.arange(40, 60)
    model = load_target(run, "undefended", "clean", target_classifier(run))
    plain, got = (
        model_phi(run, "undefended", "clean", Queries(split, asked, [None], StoredCandidates(run)), mirrored)[0]
        for mirrored in (False, True)
    )
    assert (got != plain).all()
    sides = [side.take(torch.from_numpy(asked)) for side in split.evaluated]
    with torch.inference_mode():
        expected = [phi(model(side.pixels(slice(None)).flip(3)).numpy(), side.labels.numpy()) for side in sides]
    np.testing.assert_allclose(got, np.concatenate(expected), atol=1e-3)


def test_an_evaluation_with_shadow_models(copied_drawn: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--defense", "undefended", "--profile", tiny)
    with monkeypatch.context() as patched:
        patched.setattr("common.experiments.evaluate.attack", None)  # a missing model is named before any attack is trained
        missing = refusal(call(evaluate_mia, copied_drawn, *options, "--scenario", "3", "--shadows", 4))
    assert "train_shadows.py --defense undefended --index 0" in missing
    assert call(train_shadows, copied_drawn, *options, "--count", 4).code == 0

    mirrored = call(evaluate_mia, copied_drawn, *options, "--scenario", "3", "--shadows", 4, "--set", "attack.mirror=true")
    assert mirrored.code == 0, mirrored.err

    def no_network(*arguments: object) -> None:
        raise AssertionError("the reconstructions are shared: shadow models cost classifier passes only")

    monkeypatch.setattr(DiffusionReconstructor, "forward", no_network)
    done = call(evaluate_mia, copied_drawn, *options, "--scenario", "3", "--shadows", 4)
    assert done.code == 0, done.err
    found: dict[bool, list[float]] = {True: [], False: []}
    for path in sorted((copied_drawn / "evaluate_MIAs" / "results").rglob("undefended*.json")):
        row = json.loads(path.read_text())
        found[row["config"]["attack"]["mirror"]].append(row["attacks"]["lira-online"]["auc"])
        assert set(SHADOW_ATTACKS) <= set(row["attacks"])
        assert set(SHADOW_ATTACKS) <= set(row["null"]["attacks"])
        # 4 shadow models say something: members were fitted, at 8 epochs, better than by a model that never saw them.
        assert row["attacks"]["lira-online"]["auc"] > 0.5
        assert row["config"]["attack"]["shadows"] == 4
        assert any(sentence.startswith("RMIA's population are the 60 known") for sentence in row["warnings"])
    assert len(found[True]) == len(found[False]) == 2
    assert all(one != two for one, two in zip(found[True], found[False], strict=True))  # a second question, other scores


def test_the_null_keeps_scores_and_forgets_membership() -> None:
    scores = Scores(Pair(np.arange(100.0), np.arange(100.0) - 200), Pair(np.arange(50.0), np.arange(50.0) - 100))
    null = shuffled_scores(scores, 0)
    for before, after in ((scores.scored, null.scored), (scores.known, null.known)):
        assert sorted(np.concatenate([*after])) == sorted(np.concatenate([*before]))
        assert list(after.map(len)) == list(before.map(len))
    assert 30 < (null.scored.members < 0).sum() < 70
    np.testing.assert_array_equal(shuffled_scores(scores, 0).scored.members, null.scored.members)
    assert not np.array_equal(shuffled_scores(scores, 1).scored.members, null.scored.members)


# scores worked out by hand


def names(examples: Examples) -> list[bytes]:
    """Every image by its pixels."""
    return [image.numpy().tobytes() for image in examples.images]


MIRRORED_SHIFT = 1  # of the target's phi where the mirrored image is asked about


@pytest.fixture
def mirror() -> bool:
    """Whether the attacker also asks about the mirrored images."""
    return False


@pytest.fixture
def planted_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: bool) -> tuple[dict[str, Scores], Scores]:
    """Scores of every attack, and the target's phi of the same points, with four shadow models whose phi are planted.

    phi of a shadow model is 2 where it was trained on the image, else 0, plus 1 for the models 0 and 1 and minus 1 for 2 and
    3. Of both pairs one model was trained on an image and one was not: IN phi are 3 and 1, OUT phi 1 and -1.
    """
    data = Data(members=24, reference=0, non_members=30, fit=6, known=8, scored=10)
    run, split, pools = defense_run(tmp_path, "undefended", data, {}), random_split(data), evaluation_pools(data, "clean")
    run = replace(run, config=replace(run.config, attack=Attack(shadows=4, rmia_gamma=1.0, mirror=mirror)))
    trained: list[list[bytes]] = []

    def record(shadow: Run, own: Split) -> torch.nn.Module:
        trained.append(names(own.members))
        return torch.nn.Identity()

    monkeypatch.setitem(DEFENSES, "undefended", replace(DEFENSES["undefended"], train=record))
    for index in range(4):
        train_shadow(run, split, "undefended", index)
    targets = np.random.default_rng(0).normal(size=2 * 18)

    def planted(run: Run, *arguments: Any) -> Floats:
        if run.shadow is None:
            return targets[None] + MIRRORED_SHIFT * arguments[3]
        model, asked = run.shadow[0], torch.from_numpy(arguments[2].index)
        images = names(split.members.take(asked)) + names(split.non_members.take(asked))
        return np.array([[2.0 * (image in trained[model]) + (1 if model < 2 else -1) for image in images]])

    monkeypatch.setattr(shadow_attacks, "model_phi", planted)
    (found,) = shadow_attacks.shadow_scores(run, "undefended", "clean", split, pools, [None])
    known, scored = slice(8), slice(8, 18)  # of the 18 points of a side that are asked about
    sides = Pair(targets[:18], targets[18:])
    return found, Scores(sides.map(lambda side: side[scored]), sides.map(lambda side: side[known]))


@pytest.mark.parametrize("mirror", [False, True])
def test_lira_takes_every_image_for_in_where_the_model_was_trained_on_it(
    planted_scores: tuple[dict, Scores], mirror: bool
) -> None:
    """log N(x; 2, 1) - log N(x; 0, 1) = 2x - 2, for members and non-members alike, scored and known.

    The mirrored image's is 2 (x + 1) - 2; the mean of both views 2x - 1.
    """
    scores, target = planted_scores[0]["lira-online"], planted_scores[1]
    centre = 1 if mirror else 2
    for found, phi_of_target in ((scores.scored, target.scored), (scores.known, target.known)):
        for side, points in zip(found, phi_of_target, strict=True):
            np.testing.assert_allclose(side, 2 * points - centre)


def test_every_attack_with_shadow_models_says_the_labels_of_its_scores(planted_scores: tuple[dict, Scores]) -> None:
    """Known are 8 points from position 6 on, scored the 10 that follow, on both sides."""
    split = random_split(Data(members=24, reference=0, non_members=30, fit=6, known=8, scored=10))
    members, others = split.members.labels.numpy(), split.non_members.labels.numpy()
    for scores in planted_scores[0].values():
        assert scores.scored_labels is not None and scores.known_labels is not None
        expected = members[14:24], others[14:24], members[6:14], others[6:14]
        for labels, own in zip((*scores.scored_labels, *scores.known_labels), expected, strict=True):
            np.testing.assert_array_equal(labels, own)


def test_rmia_compares_with_the_known_non_members(planted_scores: tuple[dict, Scores]) -> None:
    """P_out is 1/2 everywhere: at gamma 1 a score is the share of known non-members of which the target is less sure."""
    scores, target = planted_scores[0]["rmia-offline"], planted_scores[1]
    for found, points in zip(scores.scored, target.scored, strict=True):
        np.testing.assert_array_equal(found, (points[:, None] > target.known.non_members).mean(axis=1))
    assert len(np.unique([*scores.scored])) > 3


@pytest.mark.parametrize(
    ("keep", "names"),
    [
        ([[0, 0]], ["rmia-offline"]),
        ([[0, 0], [0, 0]], ["lira-offline", "rmia-offline"]),
        ([[0, 1], [1, 0]], ["rmia-online", "rmia-offline"]),
        ([[1, 1], [1, 1], [0, 0]], ["rmia-online", "rmia-offline"]),  # one OUT model of each point: no spread
        ([[0, 1], [0, 1], [1, 0]], list(SHADOW_ATTACKS)),
        ([[0, 1], [0, 0], [0, 0]], ["lira-offline", "rmia-offline"]),  # no IN model of the first point
    ],
)
def test_an_attack_is_possible_where_every_point_has_the_models_that_it_needs(keep: list, names: list[str]) -> None:
    assert possible_attacks(np.array(keep, dtype=bool)) == names


def outputs_of(target: list[float], shadow: list[list[float]], keep: list[list[bool]]) -> ShadowOutputs:
    """One view of n points from probabilities of the true class; the last point is RMIA's population."""
    last = np.array([len(target) - 1])
    return ShadowOutputs(logit([target]), logit(shadow)[:, None], np.array(keep), np.zeros(len(target), np.int64), last)


def score_of_the_first(name: str, outputs: ShadowOutputs, options: Attack) -> float:
    first, others = np.array([0]), np.arange(1, len(outputs.labels))
    return float(attacks_on(outputs, Pair(first, others), Pair(first, others), options)[name].scored.members[0])


def test_models_that_trained_on_a_population_point_are_no_out_models_of_it() -> None:
    """r(x) = .4 / .5 lies below r(z) = .5 / .5; with the model that trained on z, r(z) would be .5 / .7."""
    outputs = outputs_of([0.4, 0.5], [[0.5, 0.9], [0.5, 0.5]], [[False, True], [False, False]])
    assert score_of_the_first("rmia-offline", outputs, Attack(rmia_gamma=1.0, rmia_a=1.0)) == 0


@pytest.mark.parametrize(("a", "score"), [(0.4, 1), (0.3, 0)])
def test_rmia_is_given_its_a(a: float, score: float) -> None:
    """r(x) = .6 / ((1 + a) / 4 + (1 - a) / 2) is .923 at a = .4 and .889 at .3; r(z) is .9."""
    outputs = outputs_of([0.6, 0.9], [[0.5, 1 - 1e-15]], [[False, False]])
    assert score_of_the_first("rmia-offline", outputs, Attack(rmia_gamma=1.0, rmia_a=a)) == score


@pytest.mark.parametrize(("gamma", "score"), [(1.1, 1), (1.3, 0)])
def test_rmia_is_given_its_gamma(gamma: float, score: float) -> None:
    """r(x) / r(z) = (.6 / .5) / (.5 / .5) = 1.2."""
    outputs = outputs_of([0.6, 0.5], [[0.5, 0.5]], [[False, False]])
    assert score_of_the_first("rmia-offline", outputs, Attack(rmia_gamma=gamma, rmia_a=1.0)) == score


@pytest.mark.parametrize(("tail", "score"), [("one-sided", -3), ("reference", 4.5 + np.log(2 * np.pi) / 2)])
def test_lira_is_given_its_tail(tail: Any, score: float) -> None:
    """OUT = N(0, 1) and the target's phi is -3: three deviations below, and an unusual value."""
    ones = np.array([-1.0, 1.0])[:, None, None] + np.zeros(2)
    outputs = ShadowOutputs(np.array([[-3.0, 0.0]]), ones, np.zeros((2, 2), bool), np.zeros(2, np.int64), np.array([1]))
    assert score_of_the_first("lira-offline", outputs, Attack(lira_tail=tail)) == pytest.approx(score)


@pytest.mark.parametrize(("variance", "score"), [("example", 1.0), ("global", 1 / np.sqrt(5))])
def test_lira_is_given_its_variance(variance: Any, score: float) -> None:
    """OUT spreads of two points are 1 and 3, of all residuals sqrt(5); the target's phi is 1."""
    spread = np.array([-1.0, 1.0])[:, None, None] * [1.0, 3.0]
    outputs = ShadowOutputs(np.array([[1.0, 0.0]]), spread, np.zeros((2, 2), bool), np.zeros(2, np.int64), np.array([1]))
    assert score_of_the_first("lira-offline", outputs, Attack(lira_variance=variance)) == pytest.approx(score)


@pytest.mark.parametrize("count", [2, 3, -4])
def test_an_odd_number_and_too_few_are_refused(count: int, copied_drawn: Path, tiny: Path, call: Call) -> None:
    answer = call(evaluate_mia, copied_drawn, "--defense", "undefended", "--profile", tiny, "--shadows", count)
    assert refusal(answer) == f"attack.shadows must be an even number from 4, or 0 for none, not {count}."
