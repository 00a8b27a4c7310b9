"""LiRA and RMIA in an evaluation: shared reconstructions, the answers of shadow models, rows, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Call, planted_memguard, refusal, tiny_run

from common.attacks.shadow import SHADOW_ATTACKS
from common.commands import evaluate_mia, train_shadows
from common.data.partition import load_split
from common.diffence.candidates import StoredCandidates, draw_all, query_ids, shards
from common.diffence.reconstruct import DiffusionReconstructor
from common.diffence.select import Selector
from common.experiments import shadow_scores as shadow_attacks
from common.experiments.collect import collect
from common.experiments.shadow_scores import Queries, model_phi
from common.files import save_checkpoint
from common.metrics.privacy import Floats, phi
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


@pytest.mark.parametrize("count", [2, 3, -4])
def test_an_odd_number_and_too_few_are_refused(count: int, copied_drawn: Path, tiny: Path, call: Call) -> None:
    answer = call(evaluate_mia, copied_drawn, "--defense", "undefended", "--profile", tiny, "--shadows", count)
    assert refusal(answer) == f"attack.shadows must be an even number from 4, or 0 for none, not {count}."
