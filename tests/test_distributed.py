"""torchrun with two processes: the same training as one process up to rounding, resume with another number, shared drawing."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Call, refusal, run_script, script_environment, write_profile

from common.commands import evaluate_mia, train_ddpm, train_defense
from common.training import distributed, loop
from common.training.distributed import part_of

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start(workspace: Path, *command: object) -> "subprocess.Popen[str]":
    """A script of the copied tree in two processes."""
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, *map(str, command)],
        cwd=workspace,
        env=script_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_two_processes(workspace: Path, *command: object) -> tuple[int, str, str]:
    """Exit code of torchrun, stdout and stderr of a script of the copied tree in two processes."""
    process = start(workspace, *command)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def new_profile(trained: Path, name: str, *changes: str) -> Path:
    """The tiny profile with `changes`, under another name, with the partition of `trained`."""
    folder = trained / "data" / "partition" / name
    if not folder.exists():
        shutil.copytree(trained / "data" / "partition" / "tiny", folder)
    return write_profile(trained.parent / f"{name}.yaml", *changes)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_parts_make_up_the_batch_and_weights_its_mean(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.linspace(-1, 2, 7) ** 3
    monkeypatch.setattr(distributed, "count", lambda: processes)
    for length in (7, 6, 2):
        means, taken = [], []
        for rank in range(processes):
            monkeypatch.setattr(distributed.dist, "get_rank", lambda rank=rank: rank)
            part, weight = part_of(length)
            means.append(weight * values[:length][part].mean())
            taken += torch.arange(length)[part].tolist()
        assert torch.stack(means).mean().isclose(values[:length].mean(), atol=1e-6)
        assert set(taken) == set(range(length)) and (len(taken) == length or length < processes)


def test_a_diffusion_model_is_the_same_and_resumes_with_another_number(
    trained: Path, workspace: Path, at_once: Path, call: Call
) -> None:
    """Two processes are stopped on the way, and one goes on. The losses are those of one process, up to rounding."""
    changes = ("ddpm.steps=80", "ddpm.save_every=10")
    one, two = (new_profile(trained, name, *changes) for name in ("one", "two"))
    assert call(train_ddpm, trained, "--profile", one, "--device", "cpu").code == 0
    expected, folder = (trained / "diff_defense" / "diff_models" / name / "seed0" for name in ("one", "two"))
    process = start(workspace, at_once, "synthetic/diff_defense/train_ddpm.py", "--profile", two, "--device", "cpu")
    while not (folder / "resume.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.terminate()
    process.communicate()
    assert 10 <= torch.load(folder / "resume.pt", weights_only=True)["done"] < 80
    assert call(train_ddpm, trained, "--profile", two, "--device", "cpu").code == 0

    whole, resumed = (pd.read_csv(place / "log.csv")["loss"] for place in (expected, folder))
    np.testing.assert_allclose(resumed, whole, rtol=1e-3)
    assert whole.iloc[-1] < whole.iloc[0]


PLAIN = """
import sys
from pathlib import Path
import torch
from torch import nn
from common.config import Train
from common.data.partition import Examples
from common.training import Objective, fit
from common.training.distributed import processes

cpu = torch.device("cpu")
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (101, 3, 8, 8), generator=generator, dtype=torch.uint8)
members = Examples(images, torch.randint(0, 5, (101,), generator=generator))
torch.manual_seed(1)
model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5))
with processes(cpu):
    fit(Objective(model, members, Train(epochs=3, batch_size=20), cpu), Path(sys.argv[1]), {}, 0, "")
"""


def test_a_classifier_without_batch_statistics_is_the_same(workspace: Path) -> None:
    """Its last batch is a single image, which both processes take."""
    (workspace / "plain.py").write_text(PLAIN)
    alone = run_script(workspace, "plain.py", "alone.pt")
    assert alone.code == 0, alone.err
    code, _, err = in_two_processes(workspace, "plain.py", "two.pt")
    assert code == 0, err
    expected, made = (pd.read_csv(workspace / name) for name in ("alone.log.csv", "two.log.csv"))
    np.testing.assert_allclose(made["loss"], expected["loss"], rtol=1e-5)
    assert made["train_accuracy"].tolist() == expected["train_accuracy"].tolist()
    assert not (workspace / "two.resume.pt").exists()


def test_a_classifier_with_batch_statistics_is_much_alike(trained: Path, workspace: Path) -> None:
    """Each process normalises by its part of the batch. The command trains, tests and speaks once."""
    profile = new_profile(trained, "two_train")
    command = ("synthetic/train_defense.py", "--defense", "undefended", "--profile", profile, "--device", "cpu")
    code, out, err = in_two_processes(workspace, *command)
    assert code == 0, err
    assert out.count("accuracy") == 1, out
    models = trained / "final-all-models"
    expected, made = (pd.read_csv(models / name / "seed0/resnet18/undefended.log.csv") for name in ("tiny", "two_train"))
    np.testing.assert_allclose(made["loss"], expected["loss"], rtol=0.1)


def test_candidates_are_the_same_bits(trained: Path, workspace: Path, drawn: Path) -> None:
    """`drawn` has those of one process."""
    profile = new_profile(trained, "two_draw")
    models = trained / "diff_defense" / "diff_models"
    shutil.copytree(models / "tiny", models / "two_draw")
    code, _, err = in_two_processes(
        workspace, "synthetic/diff_defense/draw_candidates.py", "--profile", profile, "--device", "cpu"
    )
    assert code == 0, err
    whole, shared = (
        sorted((root / "diff_defense" / "candidates" / name).rglob("*.npy"))
        for root, name in ((drawn, "tiny"), (trained, "two_draw"))
    )
    assert [path.name for path in shared] == [path.name for path in whole] and len(whole) >= 4
    for expected, made in zip(whole, shared, strict=True):
        assert expected.read_bytes() == made.read_bytes()


@pytest.mark.parametrize("defense", ["relaxloss", "advreg", "dpsgd"])
def test_a_defense_that_needs_the_whole_batch_is_refused(
    defense: str, trained: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "count", lambda: 2)
    answer = call(train_defense, trained, "--defense", defense, "--profile", tiny, "--device", "cpu")
    assert f"{defense} is trained in one process: run it without torchrun." in refusal(answer)


def test_a_command_for_one_process_is_refused(trained: Path, tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")  # as torchrun sets it
    answer = call(evaluate_mia, trained, "--defense", "undefended", "--profile", tiny)
    assert "run this command without it" in refusal(answer)
