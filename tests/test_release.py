"""The authors' files: their classifier, partition and diffusion model in files of their layout, made at random."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Answer, Call, refusal, tiny_run, write_profile
from layouts import PytorchDDPM
from torch import nn

from common.commands import evaluate_mia
from common.config import Data
from common.data import DATASETS
from common.data.partition import load_split
from common.data.sources import Source
from common.defenses import load_defended_model, with_options
from common.diffence.ddpm import load_unet
from common.release import __main__ as release
from common.release.take_over import read_array, released_indices, rename_resnet
from common.run import Run


class Block(nn.Module):
    """A basic block as the authors name its parts."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Any) -> None:
        super().__init__()
        self.residual_function = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            norm(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            norm(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.residual_function(x) + self.shortcut(x))


class AuthorsResNet(nn.Module):
    """The authors' ResNet-18, of any width and depth, for normalised images."""

    def __init__(self, width: int, depth: int, norm: Any = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), norm(width), nn.ReLU())
        inputs = width
        for stage, strides in enumerate((1, 2, 2, 2)):
            outputs = width * 2**stage
            blocks = [Block(inputs if i == 0 else outputs, outputs, strides if i == 0 else 1, norm) for i in range(depth)]
            setattr(self, f"conv{stage + 2}_x", nn.Sequential(*blocks))
            inputs = outputs
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x"):
            x = self.get_submodule(name)(x)
        return self.fc(x.mean((2, 3)))


def random_resnet(width: int, depth: int, norm: Any = nn.BatchNorm2d) -> AuthorsResNet:
    """With random statistics in its norms, so that each of them counts."""
    torch.manual_seed(0)
    network = AuthorsResNet(width, depth, norm)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2)
    return network.eval()


def group_norm(channels: int) -> nn.GroupNorm:
    """As Opacus 0.14 converts BatchNorm: at most 32 groups."""
    return nn.GroupNorm(min(32, channels), channels)


CHANGES = ("ddpm.channels=[32,32]", "ddpm.groups=32", "ddpm.attention=[1]", "data.known=30", "data.scored=50")


@pytest.fixture(autouse=True)
def generated_once(synthetic: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "synthetic", replace(DATASETS["synthetic"], load=lambda root: synthetic))


@pytest.fixture
def authors(tmp_path: Path, synthetic: Source) -> Path:
    """A data set's folder of the authors' release: permutation, three classifiers, diffusion model."""
    folder = tmp_path / "Diffence" / "synthetic"
    models = folder / "final-all-models" / "resnet"
    (models / "selena").mkdir(parents=True)
    order = np.random.default_rng(3).permutation(len(synthetic.train_labels))
    (folder / "cifar_shuffle.pkl").write_bytes(pickle.dumps(order))
    saved = {"epoch": 7, "best_acc": np.float64(81.5), "optimizer": {"state": {}, "param_groups": []}}
    torch.save(saved | {"state_dict": random_resnet(4, 1).state_dict()}, models / "undefended.pth.tar")
    prefixed = {f"module.{name}": value for name, value in random_resnet(4, 1).state_dict().items()}
    torch.save(saved | {"state_dict": prefixed}, models / "selena" / "selena.pth.tar")
    torch.save(saved | {"state_dict": random_resnet(4, 1, group_norm).state_dict()}, models / "dpsgd.pth.tar")
    torch.manual_seed(0)
    state = PytorchDDPM(1000, 32, [1, 1], attention=[1], layers=1).state_dict()
    (folder / "diff_defense" / "diff_models").mkdir(parents=True)
    torch.save({"net_model": {}, "ema_model": state}, folder / "diff_defense" / "diff_models" / "half.pt")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return with_options(tiny_run(tmp_path / "synthetic", write_profile(tmp_path / "authors.yaml", *CHANGES)))


def take(call: Call, run: Run, authors: Path, *options: Any) -> Answer:
    """Run the command; the repository is the temporary folder."""
    arguments = (run.dataset, "--from", authors, "--profile", run.profile, "--device", "cpu", *options)
    return call(release.main, run.folder.parent, *arguments)


def test_their_classifiers_and_ours_are_one_function(call: Call, run: Run, authors: Path) -> None:
    answer = take(call, run, authors)
    assert answer.code == 0, answer.err
    assert [line.split(": ")[1].split(",")[0] for line in answer.out.splitlines()] == [
        "the authors' members and non-members", "undefended", "selena", "dpsgd", "the diffusion model"
    ]  # fmt: skip
    x = torch.rand(5, 3, 32, 32)
    mean, std = torch.tensor([0.5] * 3)[:, None, None], torch.tensor([0.25] * 3)[:, None, None]
    for name, norm in (("undefended", nn.BatchNorm2d), ("selena", nn.BatchNorm2d), ("dpsgd", group_norm)):
        expected = random_resnet(4, 1, norm)((x - mean) / std)
        found = load_defended_model(run, name, "released").classifier(x)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert expected.std() > 0.1


def test_the_paper_s_size_is_mapped_whole() -> None:
    """Two blocks a stage, 122 tensors; every one has a place in ours."""
    from common.models.resnet import ResNet18

    with torch.device("meta"):
        theirs, ours = AuthorsResNet(64, 2), ResNet18(10)
    renamed = rename_resnet(dict(theirs.state_dict()), 2)
    assert {name: value.shape for name, value in renamed.items()} == {
        f"net.{name}": value.shape for name, value in ours.state_dict().items()
    }
    assert sum(value.numel() for name, value in theirs.named_parameters()) == 11_173_962


def test_the_released_pools_are_theirs() -> None:
    """As their scripts slice the arrays, at the paper's numbers."""
    data = Data(members=25_000, reference=25_000, non_members=10_000, known=1000, scored=2000)
    order = np.random.default_rng(1).permutation(50_000)
    drawn = released_indices(order, data, 50_000, 10_000)
    np.random.seed(2000)
    test = np.arange(10_000)
    np.random.shuffle(test)
    private = order[:25_000]
    for side, whole, half in (("members", private, 12_500), ("non_members", test, 5000)):
        np.testing.assert_array_equal(drawn[side][:1000], whole[:half][:1000])  # known
        np.testing.assert_array_equal(drawn[side][1000:2000], whole[half:][:1000])  # scored
        assert sorted(drawn[side]) == sorted(whole)
    np.testing.assert_array_equal(drawn["reference"], order[25_000:])


def test_evaluation_in_protocol_released(call: Call, run: Run, authors: Path, synthetic: Source) -> None:
    """The whole path: their files, then candidates, attacks and rows. A second take-over changes nothing."""
    for _ in range(2):
        assert take(call, run, authors).code == 0
    split = load_split(run)
    order = read_array(authors / "cifar_shuffle.pkl")
    positions = np.concatenate([order[:30], order[100:120]])  # 30 known, and 20 scored from the second half of 200
    np.testing.assert_array_equal(split.members.labels[:50], synthetic.train_labels[positions])
    arguments = ("--profile", run.profile, "--device", "cpu", "--protocol", "released", "--defense", "undefended")
    answer = call(evaluate_mia, run.folder, *arguments, "--scenario", "1", "--n", "1")
    assert answer.code == 0, answer.err
    assert "scenario 1" in answer.out
    theirs = PytorchDDPM(1000, 32, [1, 1], attention=[1], layers=1)
    state = torch.load(authors / "diff_defense/diff_models/half.pt", weights_only=True)["ema_model"]
    theirs.load_state_dict(state)
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        found = load_unet(run).eval()(x, 99).sample
        torch.testing.assert_close(found, theirs.eval()(x, torch.tensor([99])), atol=1e-5, rtol=1e-5)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_refusals(call: Call, run: Run, authors: Path, tmp_path: Path) -> None:
    undefended = authors / "final-all-models" / "resnet" / "undefended.pth.tar"
    shuffle = authors / "cifar_shuffle.pkl"
    good, order = undefended.read_bytes(), shuffle.read_bytes()
    assert "has no cifar_shuffle.pkl or svhn_shuffle.pkl" in refusal(take(call, run, tmp_path))
    shuffle.write_bytes(pickle.dumps(Evil()))
    assert "which is not unpickled" in refusal(take(call, run, authors))
    shuffle.write_bytes(pickle.dumps(np.array([0, 0, 1])))
    assert "holds no permutation" in refusal(take(call, run, authors))
    shuffle.write_bytes(pickle.dumps(np.arange(5)))
    assert "the permutation has 5 images" in refusal(take(call, run, authors))
    shuffle.write_bytes(order)
    torch.save({"state_dict": Evil()}, undefended)
    assert "which is not unpickled" in refusal(take(call, run, authors))
    torch.save({"weights": {}}, undefended)
    assert "has no `state_dict`" in refusal(take(call, run, authors))
    torch.save({"state_dict": random_resnet(8, 1).state_dict()}, undefended)
    assert "holds another network than undefended on synthetic has" in refusal(take(call, run, authors))
    undefended.write_bytes(good)
    assert "are ResNet-18s" in refusal(take(call, run, authors, "--set", "model.name=vgg16"))
    assert "another network than the profile's `ddpm`" in refusal(take(call, run, authors, "--set", "ddpm.layers=2"))
    assert take(call, run, authors).code == 0
    torch.save({"state_dict": random_resnet(4, 1).state_dict()}, undefended)
    assert "is another classifier than" in refusal(take(call, run, authors))
    shuffle.write_bytes(pickle.dumps(np.arange(len(read_array(shuffle)))))
    assert "has other members than the authors'" in refusal(take(call, run, authors))
    assert "unknown data set" in refusal(call(release.main, tmp_path, "cifar", "--from", authors))
