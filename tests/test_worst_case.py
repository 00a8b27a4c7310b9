"""Canaries: who gets a wrong label, leave-one-out attacks on models whose memory is known, intervals, the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Answer, Call, halves, random_split, refusal, stop_after, tiny_run

from common.attacks.leave_one_out import knowing_scores, shadow_scores_of_all
from common.commands import evaluate_mia, train_shadows, worst_case
from common.config import Attack, Data
from common.data.partition import evaluation_pools, load_split, partition_settings
from common.defenses import load_defended_model, with_options
from common.experiments import worst_case as experiment
from common.experiments.canaries import draw_canaries, plant_canaries
from common.experiments.plan import DONE, MISSING, rows_state, worst_case_rows
from common.experiments.shadow_models import in_mask, shadow_pool, shadow_run
from common.experiments.worst_case import Answers, answers_of_model, evaluated_points, seen_features, variation
from common.files import write_text
from common.metrics.bootstrap import bootstrap_tpr, decisions_report
from common.metrics.privacy import auc, tpr_at_fpr
from common.report.load import read_rows
from common.report.worst_case import worst_case_tables
from common.training.targets import settings_of

DATA = Data(members=100, reference=0, non_members=120, fit=20, known=20, scored=50, canaries=30)
LABELS = np.arange(200) % 10


# Who gets a wrong label


def test_canaries_have_a_wrong_label_and_are_neither_fitted_nor_known() -> None:
    drawn = draw_canaries(DATA, LABELS, 10)
    pools = evaluation_pools(DATA, "clean")
    scored = {*pools.scored, *(100 + np.array(pools.scored))}
    assert len({*drawn.canaries.tolist()}) == len({*drawn.controls.tolist()}) == 30
    assert {*drawn.canaries, *drawn.controls} <= scored
    assert not {*drawn.canaries} & {*drawn.controls}
    assert (drawn.wrong_labels != LABELS[drawn.canaries]).all()
    assert {*drawn.wrong_labels} <= {*range(10)}
    assert 5 < (drawn.canaries < 100).sum() < 25  # from both sides


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    data = replace(DATA, members=9_000, non_members=9_000, scored=8_000, canaries=8_000)
    drawn = draw_canaries(data, np.full(18_000, 2), 5)
    counts = np.bincount(drawn.wrong_labels, minlength=5)
    assert counts[2] == 0
    assert abs(counts[[0, 1, 3, 4]] - 2_000).max() < 5 * np.sqrt(8_000 * 0.25 * 0.75)


def test_canaries_depend_on_the_seed_of_the_data_alone() -> None:
    first, again, other = (draw_canaries(replace(DATA, seed=seed), LABELS, 10) for seed in (0, 0, 1))
    assert (first.canaries == again.canaries).all() and (first.wrong_labels == again.wrong_labels).all()
    assert (first.canaries != other.canaries).any()


def test_a_canary_is_a_member_of_half_of_the_models() -> None:
    masks = np.stack([in_mask(model, 200, 0) for model in range(8)])
    assert (masks[:, draw_canaries(DATA, LABELS, 10).canaries].sum(0) == 4).all()


def test_planting_changes_the_labels_of_canaries_and_nothing_else() -> None:
    pool = shadow_pool(random_split(DATA))
    drawn = draw_canaries(DATA, pool.labels.numpy(), 10)
    planted = plant_canaries(pool, DATA, 10)
    assert torch.equal(planted.images, pool.images)
    assert np.flatnonzero((planted.labels != pool.labels).numpy()).tolist() == drawn.canaries.tolist()
    assert (planted.labels.numpy()[drawn.canaries] == drawn.wrong_labels).all()
    assert plant_canaries(pool, replace(DATA, canaries=0), 10) is pool


def test_models_with_canaries_are_other_models_on_the_same_partition(trained: Path, tiny: Path) -> None:
    plain, planted = (tiny_run(trained, tiny, *change) for change in ([], ["data.canaries=5"]))
    assert partition_settings(plain) == partition_settings(planted)
    rows = plain.config.as_dict()  # as before there were canaries
    assert "canaries" not in rows["data"] and "fallback" not in rows["diffence"]
    assert planted.config.as_dict()["data"]["canaries"] == 5
    assert settings_of(plain, "undefended") == settings_of(planted, "undefended")  # the target has no canaries
    shadow, other = shadow_run(plain, 0), shadow_run(planted, 0)
    assert "canaries" not in settings_of(shadow, "undefended")
    assert settings_of(other, "undefended") == {**settings_of(shadow, "undefended"), "canaries": 5}
    assert other.models_dir.parent.name == "shadows-canaries5"
    assert shadow.models_dir.parent.name == "shadows"


# Models whose memory is known


def paired_halves(models: int, points: int) -> np.ndarray:
    """The membership of the models that train_shadows.py trains: bool [M, n]."""
    return np.stack([in_mask(model, points, 2) for model in range(models)])


def remembered(share: float, points: int, models: int, strength: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    """phi [M, n] of models that know a `share` of their members by heart, and the membership; the others are as non-members."""
    rng = np.random.default_rng(1)
    mask = paired_halves(models, points)
    by_heart = np.arange(points) < share * points
    return rng.normal(size=(models, points)) + rng.normal(size=points) + strength * (mask & by_heart), mask


def test_lira_finds_the_share_that_the_models_know_by_heart() -> None:
    phi, mask = remembered(0.3, 400, 16)
    known = np.arange(300, 400)
    scores = shadow_scores_of_all(phi, mask, np.zeros(400, dtype=int), known, Attack())
    assert {*scores} == {"lira-online", "lira-offline", "rmia-online", "rmia-offline"}
    report = decisions_report(scores["lira-online"], mask, (0.001, 0.01), 0)
    found = report["tpr_at"]["0.001"]
    assert found["rate"] == pytest.approx(0.3, abs=0.01)
    assert found["interval"][0] < 0.3 < found["interval"][1]
    assert found["interval"] == pytest.approx([0.3 - 1.96 * np.sqrt(0.21 / 400), 0.3 + 1.96 * np.sqrt(0.21 / 400)], abs=0.015)
    assert (found["positives"], found["negatives"]) == (16 * 200, 16 * 200)


def test_without_memory_every_attack_guesses() -> None:
    phi, mask = remembered(0.0, 400, 16)
    scores = shadow_scores_of_all(phi, mask, np.zeros(400, dtype=int), np.arange(100), Attack())
    scores["knowing"] = knowing_scores(phi[..., None], phi, mask, 0)
    for name, of_attack in scores.items():
        report = decisions_report(of_attack, mask, (0.01,), 0)
        assert report["auc"] == pytest.approx(0.5, abs=0.025), name
        assert report["tpr_at"]["0.01"]["rate"] < 0.025, name


def test_few_models_do_not_bias_an_attack_without_any_signal() -> None:
    """If the target alone were left out, its members would have fewer IN models, and LiRA an AUC of .46."""
    mask = paired_halves(8, 4_000)
    phi = np.random.default_rng(0).normal(size=mask.shape)
    found = shadow_scores_of_all(phi, mask, np.zeros(4_000, dtype=int), np.arange(100), Attack())
    for name in ("lira-online", "lira-offline"):
        assert auc(found[name][mask], found[name][~mask]) == pytest.approx(0.5, abs=0.013), name


def test_an_attacker_who_knows_uses_what_phi_does_not_tell() -> None:
    phi, mask = remembered(0.0, 200, 8)
    lost = np.random.default_rng(3).random(mask.shape) + 2 * mask  # such as the number of candidates that lose the label
    assert auc(*(knowing_scores(lost[..., None], phi, mask, 0)[side] for side in (mask, ~mask))) > 0.999


def test_the_distance_of_two_answers() -> None:
    """Half of the L1 distance of the confidences: (.5, .5) and (.9, .1) are .4 apart, disjoint answers 1, equal ones 0."""
    first, second = np.log([[0.5, 0.5], [0.2, 0.8]]), np.log([[0.9, 0.1], [0.2, 0.8]]) + 3
    assert variation(first, second) == pytest.approx([0.4, 0.0])
    assert variation(np.array([[99.0, 0.0]]), np.array([[0.0, 99.0]])) == pytest.approx([1.0])


def test_the_answers_to_mirror_images_are_the_models_own(copied_drawn: Path, tiny: Path, call: Call) -> None:
    """Model 1 alone, asked about the images and about their mirror images, without Diffence."""
    options = ("--profile", tiny, "--device", "cpu", "--set", "data.canaries=5")
    assert call(train_shadows, copied_drawn, "--defense", "undefended", "--index", 1, *options).code == 0
    run = tiny_run(copied_drawn, tiny, "data.canaries=5")
    split, pools = load_split(run), evaluation_pools(run.config.data, "clean")
    labels = shadow_pool(split).labels.numpy()
    points = evaluated_points(run, labels, pools, draw_canaries(run.config.data, labels, 10), 2)
    ((logits, kept, distance),) = answers_of_model(run, "undefended", split, points, 1, [None])
    classifier = load_defended_model(shadow_run(run, 1), "undefended", "clean").classifier
    images = torch.cat([side.pixels(slice(len(pools.used))) for side in split.evaluated])
    with torch.inference_mode():
        plain, mirrored = (classifier(view).double().numpy() for view in (images, images.flip(-1)))
    assert logits == pytest.approx(plain, abs=1e-4)
    assert distance == pytest.approx(variation(plain, mirrored), abs=1e-4)
    assert (kept == 1).all() and distance.max() > 0.05
    answers = Answers(logits[None], kept[None], distance[None])
    assert (seen_features(points, answers)[0, :, 5] == distance).all()


def test_the_targets_membership_is_not_used() -> None:
    phi, mask = remembered(0.3, 60, 8)
    changed = mask.copy()
    changed[5] = ~changed[5]
    arguments = (np.zeros(60, dtype=int), np.zeros(0, dtype=int), Attack())
    features = phi[..., None]
    assert (knowing_scores(features, phi, mask, 0)[5] == knowing_scores(features, phi, changed, 0)[5]).all()
    with_known = (arguments[0], np.arange(10), arguments[2])
    first, second = (shadow_scores_of_all(phi, kept, *with_known)["lira-online"] for kept in (mask, changed))
    assert (first[5] == second[5]).all()
    assert (first[4] == second[4]).all()  # model 5 was trained on the other half
    assert (first[3] != second[3]).any()  # to a target of another pair, model 5 is a shadow model


# Intervals of decisions that hang together


def test_rates_are_those_of_all_decisions_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 30, (6, 50)).astype(float)
    mask = halves(6, 50, 0)
    report = decisions_report(scores, mask, (0.01, 0.1), 0)
    for fpr in (0.01, 0.1):
        expected = tpr_at_fpr(scores[mask], scores[~mask], fpr)
        assert (report["tpr_at"][str(fpr)]["hits"], report["tpr_at"][str(fpr)]["errors"]) == (expected.hits, expected.errors)
    assert report["auc"] == auc(scores[mask], scores[~mask])


def test_more_models_that_decide_alike_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    few = np.repeat(rng.normal(size=(1, 300)), 2, axis=0) + 1.5 * np.array([[1.0], [0.0]])
    mask = np.repeat(np.array([[True], [False]]), 300, axis=1)
    many, many_mask = np.tile(few, (8, 1)), np.tile(mask, (8, 1))
    first, second = bootstrap_tpr(few, mask, (0.1,), 0)[0], bootstrap_tpr(many, many_mask, (0.1,), 0)[0]
    assert second == pytest.approx(first, abs=0.01)
    assert first[1] - first[0] > 0.05


def test_the_interval_covers_the_truth() -> None:
    """Members of N(2, 1), non-members of N(0, 1), M = 4: the TPR at 10% FPR is that of the normal law, .76."""
    covered = 0
    mask = halves(4, 100, 0)
    for seed in range(60):
        scores = np.random.default_rng(seed).normal(size=(4, 100)) + 2 * mask
        low, high = bootstrap_tpr(scores, mask, (0.1,), seed)[0]
        covered += low <= 0.7638 <= high
    assert covered >= 52


# The command


def test_the_command(copied_drawn: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--profile", tiny, "--device", "cpu", "--set", "data.canaries=5")
    assert call(train_shadows, copied_drawn, "--defense", "undefended", "--count", 6, *options).code == 0
    command = (worst_case, copied_drawn, "--defense", "undefended", "--count", 6, "--scenario", 1, 3, *options)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "attack_models", stop_after(1, experiment.attack_models))
        assert call(*command).code == 130
    runs = {
        fallback: with_options(tiny_run(copied_drawn, tiny, "data.canaries=5", *changes))
        for fallback, changes in (("original", []), ("reorder", ["diffence.fallback=reorder"]))
    }
    assert (
        rows_state(worst_case_rows(runs["original"], "undefended", 6), runs["original"]) == MISSING
    )  # the row without Diffence alone is not all
    for fallback, run in runs.items():
        answer = call(*command, *(word for change in run.overrides[1:] for word in ("--set", change)))
        assert answer.code == 0, answer.err
        check_rows(copied_drawn, tiny, run.results_dir("clean"), fallback, answer)
        assert rows_state(worst_case_rows(run, "undefended", 6), run) == DONE


def check_rows(data_folder: Path, tiny: Path, folder: Path, fallback: str, answer: Answer) -> None:
    """The rows in `folder` that an `answer` of worst_case.py names, and the tables from them."""
    without, behind = (
        json.loads((folder / f"worst_case-undefended{name}-6models.json").read_text()) for name in ("", "_w_Diffence_scenario3")
    )
    for row in (without, behind):
        assert (row["kind"], row["models"], row["fallback"], row["canaries"]["points"]) == ("worst_case", 6, fallback, 5)
        assert {"nn", "loss", "lira-online", "rmia-offline", "knowing", "correctness"} <= {*row["canaries"]["attacks"]}
    mirrored = [*tiny_run(data_folder, tiny).candidates_dir.rglob("*_mirrored_*.npy")]
    assert len(mirrored) == 4  # 200 images of each side, once for all models
    assert without["canaries"]["no_match"] == {"members": 0, "non_members": 0}
    # Diffence keeps every label, and what is a function of the label alone tells the same with it.
    assert behind["canaries"]["given_label"] == without["canaries"]["given_label"]
    assert behind["controls"]["attacks"]["correctness"] == without["controls"]["attacks"]["correctness"]
    assert "random images" in answer.out
    kept = data_folder / "results" / "synthetic" / folder.name
    for path in folder.glob("*.json"):
        write_text(kept / path.name, path.read_text())
    (table,) = worst_case_tables(read_rows(data_folder))
    assert table.startswith("**images with a wrong label: synthetic") and "scored 15 + 15" in table


def test_refusals(copied_drawn: Path, tiny: Path, call: Call) -> None:
    options = ("--defense", "undefended", "--profile", tiny, "--device", "cpu")
    assert "--set data.canaries=100" in refusal(call(worst_case, copied_drawn, *options))
    for count in (4, 7):
        refused = refusal(call(worst_case, copied_drawn, *options, "--count", count, "--set", "data.canaries=5"))
        assert f"even number from 6, not {count}" in refused
    missing = refusal(call(worst_case, copied_drawn, *options, "--count", 6, "--set", "data.canaries=5"))
    assert "train_shadows.py" in missing and "--set data.canaries=5" in missing
    assert "data.canaries must lie in 0.." in refusal(call(worst_case, copied_drawn, *options, "--set", "data.canaries=99999"))
    both = ("--set", "data.canaries=5", "--shadows", 4)
    assert "leave out data.canaries" in refusal(call(evaluate_mia, copied_drawn, *options, *both))
    wrong = refusal(call(worst_case, copied_drawn, *options, "--set", "diffence.fallback=reordered"))
    assert "fallback" in wrong
