"""`python -m common.protect`: folders in, protected classifier and an audit with two columns out."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Answer, Call, refusal
from diffusers import DDPMScheduler
from plugged import images, write_images
from torch import nn
from torchvision.transforms import Normalize

from common.attacks import NNOptions
from common.audit import audit, page
from common.config import DDPM
from common.diffence.ddpm import build_unet
from common.diffence.protect import ProtectedClassifier
from common.protect import __main__ as command
from common.protect import answers, before_after
from common.serve import __main__ as serve

SIZE = (8, 8)
NAMES = ("ant", "bee", "cat")
COUNT = 36  # images of each side


class Overconfident(nn.Module):
    """It is sure of bright first pixels, which the members of this test have, and returns three logits."""

    def __init__(self, slope: int = 20) -> None:
        super().__init__()
        self.slope = slope
        torch.manual_seed(2)
        self.linear = nn.Linear(3 * 8 * 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1)) * (1 + self.slope * x[:, :, :2, :2].mean((1, 2, 3)))[:, None]


def side_images(side: str) -> torch.Tensor:
    """The images of a side; the first pixels of members are white, those of others black."""
    x = images(COUNT, int(side == "others"), SIZE)
    x[:, :, :2, :2] = float(side == "members")
    return x


def export(net: nn.Module, path: Path) -> None:
    batches = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(net.eval(), (images(2, size=SIZE),), dynamic_shapes=batches), path)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, a diffusion model, and a folder of images a class for members and for others."""
    folder = tmp_path_factory.mktemp("inputs")
    net = Overconfident().eval()
    export(net, folder / "net.pt2")
    torch.manual_seed(0)
    unet = build_unet(DDPM(channels=[8, 8], layers=1, attention=[], groups=4, dropout=0.0))
    unet.register_to_config(sample_size=8)
    unet.save_pretrained(folder / "unet")
    for side in ("members", "others"):
        x = side_images(side)
        for label, name in enumerate(NAMES):
            write_images(folder / side / name, x[net(x).argmax(1) == label])
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "NNOptions", lambda: NNOptions(nn_epochs=2))


@pytest.fixture
def logits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the logits takes seconds, and is left out."""
    for name, made in (("audit", {}), ("read_pictures", {}), ("render", "")):
        monkeypatch.setattr(before_after, name, lambda *_, made=made: made)
    monkeypatch.setattr(ProtectedClassifier, "save_pretrained", lambda self, folder: None)
    monkeypatch.setattr(page, "comparison_table", lambda rows: pd.DataFrame())


def run(call: Call, inputs: Path, out: Path, *options: Any) -> Answer:
    given = ("--classifier", inputs / "net.pt2", "--unet", inputs / "unet", "--members", inputs / "members")
    settings = ("--non-members", inputs / "others", "--out", out, "--n", 3, "--t", 100, "--device", "cpu")
    return call(command.main, inputs, *given, *settings, *options)


def outputs(out: Path, audit: str, side: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(out / audit / f"{side}.npz") as stored:
        return stored["logits"], stored["labels"]


def test_one_command_answers_what_diffence_would_do(call: Call, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "protected"
    answer = run(call, inputs, out)
    assert answer.code == 0, answer.err
    net = Overconfident().eval()
    for side in ("members", "non_members"):
        (before, labels), (after, _) = (outputs(out, name, side) for name in ("before", "after"))
        assert len(labels) == COUNT - 12  # a third is for fitting
        np.testing.assert_array_equal(before.argmax(1), after.argmax(1))
        assert (np.abs(before - after).max(1) > 1e-3).mean() > 0.3
        every = net(side_images("members" if side == "members" else "others")).detach().numpy()
        for row, label in zip(before, labels, strict=True):  # each is that of one image, with its folder's class
            nearest = np.abs(every - row).max(1).argmin()
            np.testing.assert_allclose(every[nearest], row, atol=1e-4)
            assert every[nearest].argmax() == label
    html = (out / "audit.html").read_text()
    for heading in ("Without Diffence", "With Diffence"):
        assert html.count(f"<h2>{heading}</h2>") == 1
    assert html.count("<section>") == 2
    assert html.count("data:image/png;base64,") == 4
    assert "It changed the predicted label of 0 of 48 audited images." in html
    audits = json.loads((out / "audit.json").read_text())["audits"]
    best = [audits[name]["attacks"][audits[name]["best"]]["auc"] for name in ("Without Diffence", "With Diffence")]
    for auc in best:
        assert f"{auc:.3f} (" in html
        assert f"{auc:.3f} (" in answer.out
    assert best[0] > 0.9  # as planted
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)  # it loads nothing


def test_what_it_writes_serves_with_the_interval_that_was_fitted(call: Call, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "protected"
    assert run(call, inputs, out, "--scenario", "2").code == 0
    made = ProtectedClassifier.from_pretrained(out, device="cpu")
    sentences = json.loads((out / "audit.json").read_text())["sentences"]
    interval = f"{made.selector.low:.3f} to {made.selector.high:.3f}"
    assert any(line.endswith(f"{interval}, was fitted on 12 other members.") for line in sentences)
    assert json.loads((out / "protected.json").read_text())["diffusion"]["seed"] > 1000  # random: nobody can guess the noise
    assert (made.selector.scenario, made.n, made.size, made.classes) == ("2", 3, SIZE, list(NAMES))
    answer = call(serve.main, out, out, "--images", inputs / "others", "--output", tmp_path / "p.csv", "--device", "cpu")
    assert f"{COUNT} predictions" in answer.out


@pytest.mark.usefixtures("logits_only")
def test_a_killed_run_continues(call: Call, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(call, inputs, tmp_path / "whole").code == 0
    all_logits, drawn = ProtectedClassifier.all_logits, 0

    def killed(self: ProtectedClassifier, x: torch.Tensor, queries: torch.Tensor) -> Any:
        nonlocal drawn
        drawn += len(x)
        if drawn == 3 * answers.SHARD:
            raise KeyboardInterrupt
        return all_logits(self, x, queries)

    with monkeypatch.context() as patch:
        patch.setattr(ProtectedClassifier, "all_logits", killed)
        patch.setattr(answers, "SHARD", 4)
        assert run(call, inputs, tmp_path / "cut").code == 130
    drawn = 0

    def counted(self: ProtectedClassifier, x: torch.Tensor, queries: torch.Tensor) -> Any:
        nonlocal drawn
        drawn += len(x)
        return all_logits(self, x, queries)

    monkeypatch.setattr(ProtectedClassifier, "all_logits", counted)
    monkeypatch.setattr(answers, "SHARD", 4)
    assert run(call, inputs, tmp_path / "cut").code == 0
    assert drawn == 2 * COUNT - (3 * 4 - 4)
    for side in ("members", "non_members"):
        found, expected = (outputs(tmp_path / name, "after", side)[0] for name in ("cut", "whole"))
        np.testing.assert_allclose(found, expected, atol=1e-4)
    drawn = 0
    assert run(call, inputs, tmp_path / "cut", "--scenario", "3").code == 0  # another scenario needs no new candidates
    assert drawn == 0
    DDPMScheduler(prediction_type="v_prediction").save_pretrained(inputs / "unet")
    assert run(call, inputs, tmp_path / "cut").code == 0
    (inputs / "unet" / "scheduler_config.json").unlink()
    assert drawn == 2 * COUNT
    export(Overconfident(slope=5), tmp_path / "net.pt2")  # the same parameters, another constant
    for path, total in ((inputs / "net.pt2", 4 * COUNT), (tmp_path / "net.pt2", 6 * COUNT)):
        shutil.copy(path, tmp_path / "copy.pt2")
        assert run(call, inputs, tmp_path / "cut", "--classifier", tmp_path / "copy.pt2").code == 0
        assert drawn == total


@pytest.mark.usefixtures("logits_only")
def test_edited_code_gets_new_logits(call: Call, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a classifier with the same weights, and of a denoiser without weights. Another rounding keeps the logits."""
    all_logits, forward = ProtectedClassifier.all_logits, Overconfident.forward
    drawn, rounding = 0, 0.0

    def counted(self: ProtectedClassifier, x: torch.Tensor, queries: torch.Tensor) -> Any:
        nonlocal drawn
        drawn += len(x)
        return all_logits(self, x, queries)

    monkeypatch.setattr(ProtectedClassifier, "all_logits", counted)
    monkeypatch.setattr(Overconfident, "forward", lambda self, x: forward(self, x) + rounding)
    monkeypatch.syspath_prepend(tmp_path)
    for slope, scale, offset, total in ((20, 0.9, 0, 1), (20, 0.9, 1e-5, 1), (5, 0.9, 0, 2), (5, 0.8, 0, 3), (5, 0.8, 0, 3)):
        rounding = offset
        (tmp_path / "edited.py").write_text(
            "from common.diffence.sources import edm_model\nfrom test_protect_command import Overconfident\n"
            f"def net():\n    return Overconfident(slope={slope})\n"
            f"def unet():\n    return edm_model(lambda x, sigma: {scale} * x, 8)\n"
        )
        monkeypatch.delitem(sys.modules, "edited", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        answer = run(call, inputs, tmp_path / "out", "--classifier", "edited:net", "--unet", "edited:unet")
        assert answer.code == 0, answer.err
        assert drawn == total * 2 * COUNT


@pytest.mark.usefixtures("logits_only")
def test_damaged_files_and_hidden_folders_are_left_out(
    call: Call, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first file that is drawn is damaged, and alone in its shard."""
    monkeypatch.setattr(answers, "SHARD", 1)
    members = shutil.copytree(inputs / "members", tmp_path / "members")
    write_images(members / ".thumbnails", images(1, size=(3, 3)))
    drawn = before_after.draw_files(members, list(NAMES), "members", 0).files
    drawn[0].write_bytes(b"no image")
    answer = run(call, inputs, tmp_path / "out", "--members", members)
    assert answer.code == 0, answer.err
    assert f"left out: {drawn[0]} is damaged" in answer.err
    assert [len(outputs(tmp_path / "out", "before", side)[1]) for side in ("members", "non_members")] == [23, 24]
    for path in drawn:
        path.write_bytes(b"no image")
    assert f"none of {COUNT} members, such as {drawn[0]}, is an image" in refusal(
        run(call, inputs, tmp_path / "out", "--members", members)
    )


def test_normalisation_and_size_are_options(call: Call, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wide_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def load():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 10, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    statistics = ("--mean", 0.4, 0.5, 0.6, "--std", 0.1, 0.2, 0.3)
    options = ("--classifier", "wide_net:load", "--size", 6, 10, *statistics, "--scenario", "average", "--fit", 0)
    assert run(call, inputs, tmp_path / "out", *options).code == 0
    assert len(outputs(tmp_path / "out", "after", "members")[1]) == COUNT  # none is needed for an interval
    made = ProtectedClassifier.from_pretrained(tmp_path / "out", device="cpu")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 10, 3))
    x = images(2, size=(6, 10))
    torch.testing.assert_close(made.classifier(x), net(Normalize((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))(x)))


def test_refusals(call: Call, inputs: Path, tmp_path: Path) -> None:
    def refused(*options: Any) -> str:
        return refusal(run(call, inputs, tmp_path / "out", *options))

    assert "--known-fraction and --fpr must lie between 0 and 1" in refused("--fpr", 0)
    assert not (tmp_path / "out").exists()
    assert "unknown scenario '5'" in refused("--scenario", "5")
    assert "leave 3 known and 3 scored" in refused("--fit", 30)
    assert f"--fit 500 leaves nothing to audit of {COUNT} images" in refused("--fit", 500)
    assert "--fit must be at least 1, not 0" in refused("--fit", 0)
    assert "--fit must be at least 0, not -1" in refused("--fit", -1, "--scenario", "3")
    assert "--mean and --std belong together" in refused("--mean", 0, 0, 0)
    assert "--size takes H = W, or H and W" in refused("--size", 1, 2, 3)
    assert "the classifier fails on an image of 9 x 9" in refused("--size", 9)
    assert "T must lie in 1..1000, not 1001" in refused("--t", 1001)
    assert "holds no folders" in refused("--members", inputs / "members" / "ant")
    assert "is no folder" in refused("--non-members", inputs / "nowhere")
    write_images(tmp_path / "four" / "dog", images(40, size=SIZE))
    assert "has a folder dog, which the members' folder lacks" in refused("--non-members", tmp_path / "four")
    both = ("--members", tmp_path / "four", "--non-members", tmp_path / "four")
    assert "is named for both sides: name images never trained on" in refused(*both)
    write_images(tmp_path / "other" / "dog", images(40, size=SIZE))
    both = ("--members", tmp_path / "four", "--non-members", tmp_path / "other")
    assert "has 1 folders and the classifier 3 outputs" in refused(*both)
    assert "is no file here" in refused("--classifier", "nowhere.pt2")


def test_a_classifier_that_cannot_be_saved_is_refused_at_once(
    call: Call, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not after all reconstructions."""
    monkeypatch.setattr(ProtectedClassifier, "all_logits", None)
    answer = run(call, inputs, tmp_path / "out", "--classifier", "test_saved:OneByOne")
    assert "cannot follow the classifier for batches of any size" in refusal(answer)
