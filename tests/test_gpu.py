"""The whole path on a GPU, compared with the CPU: the same weights give the same answers, and a training there is as good."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script, tiny_run

from common.diffence.candidates import shards

DEVICE = "cuda"
DEFENSE = ("--defense", "undefended")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture(scope="module")
def twins(trained: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Two copies of the workspace with the weights trained on the CPU, evaluated on the CPU and on DEVICE."""
    folders = {}
    for name, device in (("cpu", "cpu"), ("other", DEVICE)):
        root = tmp_path_factory.mktemp(name) / "tree"
        ignored = shutil.ignore_patterns("candidates", "outputs", "results")
        shutil.copytree(trained.parent, root, ignore=ignored)
        arguments = (*DEFENSE, "--scenario", "1", "3", "--profile", tiny, "--device", device)
        answer = run_script(root, "synthetic/evaluate_MIAs/evaluate_mia.sh", *arguments, gpu=True)
        assert answer.code == 0, answer.err
        folders[name] = root / "synthetic"
    yield folders


def test_the_same_weights_draw_the_same_candidates(twins: dict[str, Path], tiny: Path) -> None:
    """Noise is drawn on the CPU on every device. Convolutions may be computed in TF32, which has 10 bits."""
    cpu, other = (next(shards(tiny_run(folder, tiny), "members", 20)) for folder in twins.values())
    assert float((cpu - other).abs().max()) < 0.05
    assert float((cpu - other).abs().mean()) < 0.005


def test_the_same_weights_give_the_same_rows(twins: dict[str, Path], tiny: Path) -> None:
    for name in ("undefended", "undefended_w_Diffence", "undefended_w_Diffence_scenario3"):
        cpu, other = (
            json.loads((tiny_run(folder, tiny).results_dir("clean") / f"{name}.json").read_text()) for folder in twins.values()
        )
        assert other["accuracy"] == pytest.approx(cpu["accuracy"], abs=0.03)
        for attack in ("loss", "entropy", "m-entropy", "correctness"):
            assert other["attacks"][attack]["auc"] == pytest.approx(cpu["attacks"][attack]["auc"], abs=0.05), (name, attack)
        assert other["device"] != "cpu"


def test_a_training_there_is_as_good(trained: Path, tiny: Path, tmp_path: Path) -> None:
    """Weights differ, since rounding does, but batches and initial weights are the same, and so is what is learnt."""
    root = Path(shutil.copytree(trained.parent, tmp_path / "tree", ignore=shutil.ignore_patterns("final-all-models")))
    for script, arguments in (("train_defense.py", DEFENSE), ("diff_defense/train_ddpm.py", ())):
        answer = run_script(root, f"synthetic/{script}", *arguments, "--profile", tiny, "--device", DEVICE, gpu=True)
        assert answer.code == 0, answer.err
    logs = [next((folder / "final-all-models").rglob("undefended.log.csv")) for folder in (trained, root / "synthetic")]
    loss = [np.genfromtxt(log, delimiter=",", names=True)["loss"] for log in logs]
    np.testing.assert_allclose(loss[1], loss[0], rtol=0.1, atol=0.05)
