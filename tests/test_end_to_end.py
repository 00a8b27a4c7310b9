"""From partition to pictures through the real scripts, with a profile of seconds; and what a second defense costs."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import ROOT, Answer, Call, run_script, tiny_run
from sklearn.metrics import roc_auc_score

from common.commands import evaluate_mia, train_defense
from common.diffence.reconstruct import DiffusionReconstructor
from common.run import environment

SCENARIOS = ("1", "2", "3", "average")
NAMES = {
    None: "undefended",
    "1": "undefended_w_Diffence",
    "2": "undefended_w_Diffence_scenario2",
    "3": "undefended_w_Diffence_scenario3",
    "average": "undefended_w_Diffence_average",
}
ATTACKS = ("nn", "m-entropy", "confidence", "entropy", "loss", "correctness")

# The paper's Figures 15 and 16, number for number.
RATES = r"TPR \d+\.\d\d% @0\.10%FPR \| TNR \d+\.\d\d% @0\.10%FNR \| AUC [01]\.\d{4} \| ACC [01]\.\d{4}\n"
FIGURES = (
    r"\./final-all-models/\S+/undefended\S*\.pt \| train acc \d+\.\d{4} \| test acc \d+\.\d{4}\n\n"
    r"====> NN-based attack \./final-all-models/\S+\.pt\n"
    + "".join(rf"====> {attack}-based-NAME\.npy: {RATES}" for attack in ATTACKS[:5])
    + r"Best Attack AUC: [01]\.\d{4}\nBest Attack ACC: [01]\.\d{4}\n"
)


def evaluate(workspace: Path, script: str, *arguments: object) -> Answer:
    return run_script(
        workspace, f"synthetic/evaluate_MIAs/{script}", "--defense", "undefended", "--profile", "tiny.yaml", *arguments
    )


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def reproducible(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its time, and without its commit, which the copied tree does not know."""
    return {key: value for key, value in row.items() if key not in ("time", "commit")}


@pytest.fixture(scope="module")
def evaluated(workspace: Path, trained: Path) -> tuple[Path, Answer]:
    """The results folder of the clean protocol, and what the script printed."""
    answer = evaluate(workspace, "evaluate_mia.sh", "--scenario", *SCENARIOS)
    assert answer.code == 0, answer.err
    return trained / "evaluate_MIAs" / "results" / "tiny", answer


def test_the_files_of_an_evaluation(evaluated: tuple[Path, Answer]) -> None:
    folder, answer = evaluated
    expected = {f"{name}{end}" for name in NAMES.values() for end in ("", ".json", "_roc.png")}
    expected |= {"undefended_phi.png", "undefended_reliability.png", "scores", ".lock"}
    assert {path.name for path in folder.iterdir()} == expected
    scores = {f"{attack}-based-{name}.npy" for attack in ATTACKS for name in NAMES.values()}
    assert {path.name for path in (folder / "scores").iterdir()} == scores
    assert str(folder) in answer.out
    assert answer.err == ""
    for scenario in ("without", "scenario 1", "scenario 2", "scenario 3", "average"):
        assert re.search(rf"^\| undefended +\| {scenario} +\|", answer.out, flags=re.MULTILINE)


@pytest.mark.parametrize("name", NAMES.values())
def test_the_text_is_that_of_the_paper(evaluated: tuple[Path, Answer], name: str) -> None:
    text, row = (evaluated[0] / name).read_text(), json.loads((evaluated[0] / f"{name}.json").read_text())
    assert re.match(FIGURES.replace("NAME", name), text), text
    accuracy, best = row["accuracy"], row["best"]
    assert f"train acc {100 * accuracy['members']:.4f} | test acc {100 * accuracy['non_members']:.4f}" in text
    assert f"Best Attack AUC: {best['auc']:.4f}\nBest Attack ACC: {best['accuracy']:.4f}\n" in text
    for attack in ATTACKS[:5]:
        (line,) = (line for line in text.splitlines() if line.startswith(f"====> {attack}-based"))
        assert line.endswith(f"AUC {row['attacks'][attack]['auc']:.4f} | ACC {row['attacks'][attack]['accuracy']:.4f}")
    assert ("Labels changed: 0 members and 0 non-members" in text) == (name not in (NAMES[None], NAMES["average"]))


def test_rows_say_everything_that_reproduces_them(evaluated: tuple[Path, Answer], trained: Path, tiny: Path) -> None:
    rows, config = rows_of(evaluated[0]), tiny_run(trained, tiny).config.as_dict()
    assert set(rows) == set(NAMES.values())
    for scenario, name in NAMES.items():
        row = rows[name]
        assert (row["dataset"], row["profile"], row["protocol"], row["defense"]) == ("synthetic", "tiny", "clean", "undefended")
        assert (row["seed"], row["model"], row["device"], row["threads"]) == (0, "resnet18", "cpu", 1)
        assert row["torch"] == torch.__version__
        assert row["commit"]
        assert row["scored"] == {"members": 100, "non_members": 100}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["time"])
        assert {key: row["config"][key] for key in config if key != "defenses"} == {
            key: config[key] for key in config if key != "defenses"
        }
        assert set(row["attacks"]) == set(ATTACKS)
        assert row["training"]["epoch"] == 8
        if scenario is None:
            assert row["diffence"] is None
            continue
        facts = row["diffence"]
        assert (facts["scenario"], facts["n"], facts["t"], facts["steps"], facts["forward"]) == (scenario, 4, 100, 1, "paper")
        assert (facts["interval"] is None) == (scenario in ("3", "average"))
        for side in ("members", "non_members"):
            assert 0 <= facts["no_match"][side] <= 100
            assert 1 <= facts["draws"][side] <= 4


def test_predictions_never_change(evaluated: tuple[Path, Answer]) -> None:
    rows = rows_of(evaluated[0])
    for scenario in ("1", "2", "3"):
        row = rows[NAMES[scenario]]
        assert row["diffence"]["labels_changed"] == {"members": 0, "non_members": 0}
        assert row["accuracy"] == rows["undefended"]["accuracy"]
        assert row["gap_floor"] == rows["undefended"]["gap_floor"]
        assert row["attacks"]["loss"] != rows["undefended"]["attacks"]["loss"]
    low, high = rows[NAMES["1"]]["diffence"]["interval"]
    assert low < high
    assert rows[NAMES["2"]]["diffence"]["interval"] != [low, high]


def test_metrics_follow_from_the_stored_scores(evaluated: tuple[Path, Answer]) -> None:
    for name, row in rows_of(evaluated[0]).items():
        for attack, metrics in row["attacks"].items():
            scores = np.load(evaluated[0] / "scores" / f"{attack}-based-{name}.npy")
            assert scores.shape == (200, 2)
            assert scores[:, 1].tolist() == [1.0] * 100 + [0.0] * 100
            assert metrics["auc"] == pytest.approx(roc_auc_score(scores[:, 1], scores[:, 0]), abs=1e-12)
            if metrics["threshold"] is not None:
                guessed = scores[:, 0] >= metrics["threshold"]
                assert metrics["accuracy"] == pytest.approx((guessed == scores[:, 1]).mean(), abs=1e-12)
        best = [row["attacks"][attack] for attack in ATTACKS[:5]]
        assert row["best"]["auc"] == max(metrics["auc"] for metrics in best)
        assert row["best"]["accuracy"] == max(metrics["accuracy"] for metrics in best)
        assert row["gap_floor"] == row["attacks"]["correctness"]["auc"]


def test_pictures_can_be_read(evaluated: tuple[Path, Answer], trained: Path) -> None:
    pictures = [*evaluated[0].glob("*.png"), trained / "diff_defense/diff_models/tiny/seed0/reconstructions.png"]
    assert len(pictures) == 8
    for path in pictures:
        image = matplotlib.image.imread(path)
        assert min(image.shape[:2]) > 200, path
        assert image[..., :3].std() > 0.02, path


def test_evaluating_again_gives_the_same_rows(evaluated: tuple[Path, Answer], trained: Path, tiny: Path, call: Call) -> None:
    """In another process: nothing is drawn or classified again, and the rows are the same apart from their time."""
    made = [
        path
        for place in ("diff_defense/candidates", "evaluate_MIAs/outputs")
        for path in (trained / place / "tiny" / "seed0").rglob("*")
    ]
    files = {path: path.stat().st_mtime_ns for path in made if path.suffix in (".npy", ".npz")}
    assert len(files) == 6
    before = rows_of(evaluated[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the script has
    try:
        answer = call(evaluate_mia, trained, "--defense", "undefended", "--profile", tiny, "--scenario", *SCENARIOS)
    finally:
        torch.set_num_threads(threads)
    assert answer.code == 0, answer.err
    after = rows_of(evaluated[0])
    for name in before:
        assert reproducible(after[name]) == reproducible(before[name])
        assert after[name]["time"] > before[name]["time"]
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_the_released_protocol(evaluated: tuple[Path, Answer], trained: Path, tiny: Path, call: Call) -> None:
    """The epoch best on the test set; known points are scored too, but not by the attack that was trained on them."""
    folder = trained / "evaluate_MIAs" / "results" / "tiny-released"
    arguments = ["--defense", "undefended", "--profile", tiny, "--protocol", "released", "--scenario", "1", "3"]
    answer = call(evaluate_mia, trained, *arguments, "--device", "cpu")
    assert (answer.code, answer.err) == (0, "")
    rows = rows_of(folder)
    assert set(rows) == {NAMES[None], NAMES["1"], NAMES["3"]}
    best = torch.load(trained / "final-all-models/tiny/seed0/resnet18/undefended.best.pt", weights_only=True)
    for row in rows.values():
        assert row["protocol"] == "released"
        assert row["training"]["epoch"] == best["history"][-1]["epoch"]
        for attack, metrics in row["attacks"].items():
            scores = np.load(folder / "scores" / f"{attack}-based-{NAMES[row['diffence'] and row['diffence']['scenario']]}.npy")
            assert len(scores) == (2 * 40 if attack == "nn" else 2 * 100)
            assert metrics["accuracy"] == metrics["accuracy_oracle"]
    assert reproducible(rows_of(evaluated[0])["undefended"]) != reproducible(rows["undefended"])


def test_a_second_defense_draws_no_candidates(
    evaluated: tuple[Path, Answer], trained: Path, tmp_path: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are shared: the diffusion model is not evaluated once. Without one shard it is, on that shard's images alone."""
    evaluations: list[int] = []
    forward = DiffusionReconstructor.forward

    def counted(self: DiffusionReconstructor, images: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        evaluations.append(len(images))
        return forward(self, images, *rest)

    monkeypatch.setattr(DiffusionReconstructor, "forward", counted)
    copied = Path(shutil.copytree(trained, tmp_path / "synthetic"))
    candidates = copied / "diff_defense/candidates/tiny/seed0/t100-steps1-paper"
    files = {path: path.stat().st_mtime_ns for path in candidates.iterdir()}
    assert len(files) == 5
    options = ["--defense", "hamp", "--profile", tiny, "--device", "cpu", "--set", "train.epochs=1"]
    made = call(train_defense, copied, *options)
    assert (made.code, made.err) == (0, "")
    attacked = call(evaluate_mia, copied, *options, "--scenario", "1", "2", "3")
    assert (attacked.code, attacked.err) == (0, "")
    assert evaluations == []
    assert files == {path: path.stat().st_mtime_ns for path in candidates.iterdir()}
    rows = rows_of(copied / "evaluate_MIAs/results/tiny-train.epochs=1")
    assert {row["diffence"] and row["diffence"]["scenario"] for row in rows.values()} == {None, "1", "2", "3"}
    assert {row["defense"] for row in rows.values()} == {"hamp"}

    (candidates / "members_000100.npy").unlink()
    assert call(evaluate_mia, copied, *options).code == 0
    assert sum(evaluations) == 100 * 4


def test_the_commit_of_a_row(trained: Path, tiny: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no clone")
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    commit = environment(tiny_run(trained, tiny))["commit"]
    assert head.startswith(commit.removesuffix("+changes"))
    assert len(commit.removesuffix("+changes")) == 12


def test_git_is_not_needed(trained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment(tiny_run(trained, tiny))["commit"] == "unknown"
