"""LiRA and RMIA in an evaluation: shared reconstructions, the answers of shadow models, rows, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Call, refusal, tiny_run

from common.attacks.contract import Scores, dealt_out
from common.attacks.shadow import SHADOW_ATTACKS
from common.commands import evaluate_mia, train_shadows
from common.data.partition import load_split
from common.diffence.candidates import StoredCandidates, draw_all, query_ids, shards
from common.diffence.reconstruct import DiffusionReconstructor
from common.diffence.select import Selector
from common.metrics import phi
from common.outputs import collect
from common.shadow_attacks import answers
from common.targets import load_target, target_classifier


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


def test_the_target_is_asked_as_the_other_attacks_ask_it(copied_drawn: Path, tiny: Path) -> None:
    """Drawn lazily through ProtectedClassifier, or all at once from stored logits: the same phi."""
    run = tiny_run(copied_drawn, tiny)
    split, asked = load_split(run), np.arange(40, 90)
    sides = collect(run, "undefended", "clean", load_target(run, "undefended", "clean", target_classifier(run)), split)
    for selector in (None, Selector("3"), Selector("1", 0.5, 1.0)):
        got = answers(run, "undefended", "clean", split, selector, asked, False, StoredCandidates(run))
        logits = [
            side.original[asked] if selector is None else selector.release(side.candidates, side.original)[asked]
            for side in (sides["members"], sides["non_members"])
        ]
        labels = [side.labels[asked] for side in (sides["members"], sides["non_members"])]
        np.testing.assert_allclose(got, np.concatenate([phi(z, y) for z, y in zip(logits, labels, strict=True)]), atol=1e-3)


def test_an_evaluation_with_shadow_models(copied_drawn: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--defense", "undefended", "--profile", tiny)
    with monkeypatch.context() as patched:
        patched.setattr("common.evaluate.attack_all", None)  # a missing model is named before any attack is trained
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
    scores = Scores(np.arange(100.0), np.arange(100.0) - 200, np.arange(50.0), np.arange(50.0) - 100)
    null = dealt_out(scores, 0)
    assert sorted([*null.members, *null.non_members]) == sorted([*scores.members, *scores.non_members])
    assert sorted([*null.known_members, *null.known_non_members]) == sorted([*scores.known_members, *scores.known_non_members])
    assert 30 < (null.members < 0).sum() < 70


@pytest.mark.parametrize("count", [2, 3, -4])
def test_an_odd_number_and_too_few_are_refused(count: int, copied_drawn: Path, tiny: Path, call: Call) -> None:
    answer = call(evaluate_mia, copied_drawn, "--defense", "undefended", "--profile", tiny, "--shadows", count)
    assert refusal(answer) == f"attack.shadows must be an even number from 4, or 0 for none, not {count}."
