"""DP-SGD tuned for accuracy: gradients over views, clipping, the moving average, standardised weights, epsilon, resuming."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALLEST, defense_run, random_split, same, stop_after
from opacus.accountants import RDPAccountant
from torch import nn

from common.config import Data, Model
from common.defenses import DEFENSES, dpsgd_strong
from common.defenses.dpsgd import DPSGD
from common.defenses.dpsgd_strong import Options, StandardisedConv2d, StrongDPSGD, augmented, standardised
from common.errors import UserError
from common.run import Run
from common.training.targets import load_target, options_of

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

CPU = torch.device("cpu")
MEMBERS = 48
DATA = Data(members=MEMBERS, reference=8, non_members=24, fit=4, known=4, scored=4)
SETTING: dict[str, Any] = {"groups": 4, "batch_size": 16, "epochs": 3, "views": 2, "noise_multiplier": 0.3}
NO_NOISE: dict[str, Any] = {"noise_multiplier": 0.0, "shift": 0, "flip": False}


def make_run(folder: Path, model: Model = SMALLEST, **options: Any) -> Run:
    return defense_run(folder, "dpsgd-strong", DATA, {**SETTING, **options}, model=model)


def strong(run: Run) -> StrongDPSGD:
    options = options_of(run, "dpsgd-strong", Options)
    return StrongDPSGD(dpsgd_strong.build(run), random_split(DATA).members, run.config.train, CPU, options)


def gradient(objective: DPSGD) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in objective.dp_optimizer.params])


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_identical_views_give_the_gradient_of_plain_dpsgd(tmp_path: Path, views: int, clip: float) -> None:
    run = make_run(tmp_path, views=views, max_grad_norm=clip, **NO_NOISE)
    made = strong(run)
    plain = DPSGD(dpsgd_strong.build(run), made.members, made.config, CPU, made.options)
    plain.model.train()
    index = torch.arange(12)
    assert made.step(index, 0) == pytest.approx(plain.step(index, 0), rel=1e-5)
    torch.testing.assert_close(gradient(made), gradient(plain), atol=1e-7, rtol=1e-4)
    assert gradient(made).norm() > 0


@pytest.mark.parametrize("model", [SMALLEST, Model("vit", width=8, depth=1)])
def test_the_mean_over_views_is_clipped(tmp_path: Path, model: Model) -> None:
    """Against autograd, one example at a time: the mean over its views first, then the clipping, then the sum."""
    run = make_run(tmp_path, model, **{**NO_NOISE, "views": 3, "shift": 2, "flip": True, "max_grad_norm": 0.8})
    made, by_hand = strong(run), dpsgd_strong.build(run)
    for module in [*made.trained.modules(), *by_hand.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    index = torch.arange(6)
    images, labels = made.members.pixels(index), made.members.labels[index]
    torch.manual_seed(5)
    views = torch.stack([augmented(images, 2, True) for _ in range(3)])
    assert not torch.equal(views[0], views[1])
    expected, norms = 0, []
    for number in range(6):
        loss = torch.stack([F.cross_entropy(by_hand(view[number, None]), labels[number, None]) for view in views]).mean()
        flat = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(by_hand.parameters()))])
        norms.append(flat.norm().item())
        expected = expected + flat * min(1, 0.8 / norms[-1])
    assert max(norms) > 0.8  # clipping is at work
    torch.manual_seed(5)
    made.step(index, 0)
    torch.testing.assert_close(gradient(made) * 16, expected, atol=1e-5, rtol=1e-3)


def test_the_average_of_the_weights(tmp_path: Path) -> None:
    """w0, then the closed form sum_s (1 - d_s) prod_{r > s} d_r w_s with d_s = min(0.25, (1 + s) / (10 + s))."""
    made = strong(make_run(tmp_path, ema_decay=0.25))
    weights = [torch.cat([p.detach().flatten() for p in made.model.parameters()])]
    for _ in range(3):
        made.step(torch.arange(16), 0)
        weights.append(torch.cat([p.detach().flatten() for p in made.trained.parameters()]))
    decays = [0.0, 2 / 11, 0.25, 0.25]
    factors = [(1 - decays[s]) * math.prod(decays[s + 1 :]) for s in range(4)]
    expected = sum(factor * weight for factor, weight in zip(factors, weights, strict=True))
    average = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    torch.testing.assert_close(average, expected, atol=1e-6, rtol=1e-5)
    assert (average - weights[-1]).abs().max() > 1e-4


def test_standardised_convolutions(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 3 + 5 * torch.randn(6, 4, 3, 3, generator=generator)
    made = standardised(weight)
    torch.testing.assert_close(made.mean((1, 2, 3)), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(made.var((1, 2, 3), correction=0), torch.full((6,), 1 / 36), atol=0, rtol=1e-5)
    layer = StandardisedConv2d(4, 6, 3, stride=2, padding=1)
    layer.weight.data = weight
    images = torch.rand(2, 4, 9, 9, generator=generator)
    by_hand = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), correction=0, keepdim=True) / 6
    torch.testing.assert_close(layer(images), F.conv2d(images, by_hand, layer.bias, 2, 1), atol=1e-5, rtol=1e-5)
    convolutions = [module for module in dpsgd_strong.build(make_run(tmp_path)).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) > 5 and all(isinstance(module, StandardisedConv2d) for module in convolutions)


def test_views_are_shifted_and_mirrored_images() -> None:
    images = torch.rand(40, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augmented(images, 0, False), images)
    torch.manual_seed(0)
    mirrored = augmented(images, 0, True)
    flags = [torch.equal(view, image.flip(2)) for view, image in zip(mirrored, images, strict=True)]
    assert all(flag or torch.equal(view, image) for flag, view, image in zip(flags, mirrored, images, strict=True))
    assert 8 < sum(flags) < 32
    padded = F.pad(images, [1] * 4, mode="reflect")
    corners = {(i, j): padded[:, :, i : i + 8, j : j + 10] for i in range(3) for j in range(3)}
    shifted = augmented(images, 1, False)
    found = [{at for at, view in corners.items() if torch.equal(view[n], shifted[n])} for n in range(40)]
    assert all(len(at) == 1 for at in found)
    assert len(set().union(*found)) > 6
    assert shifted.is_contiguous()


def test_epsilon_is_that_of_opacus(tmp_path: Path) -> None:
    run = make_run(tmp_path, noise_multiplier=0.9)
    dpsgd_strong.train(run, random_split(DATA))
    facts = torch.load(run.models_dir / "dpsgd-strong.pt", weights_only=True)["facts"]
    accountant = RDPAccountant()
    for _ in range(9):
        accountant.step(noise_multiplier=0.9, sample_rate=16 / MEMBERS)
    assert facts["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
    assert (facts["steps"], facts["sample_rate"], facts["noise_multiplier"]) == (9, 16 / MEMBERS, 0.9)


def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, killed = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    made = dpsgd_strong.train(straight, random_split(DATA))
    for _ in range(2):  # after the first epoch, then after the second
        with monkeypatch.context() as patch:
            patch.setattr(StrongDPSGD, "batches", stop_after(1, StrongDPSGD.batches))
            with pytest.raises(KeyboardInterrupt):
                dpsgd_strong.train(killed, random_split(DATA))
    dpsgd_strong.train(killed, random_split(DATA))
    a, b = (torch.load(run.models_dir / "dpsgd-strong.pt", weights_only=True) for run in (straight, killed))
    assert same(a["model"], b["model"])
    assert a["facts"] == b["facts"]
    assert [row["loss"] for row in a["history"]] == [row["loss"] for row in b["history"]]
    assert same(made.state_dict(), load_target(killed, "dpsgd-strong", "clean", dpsgd_strong.build(killed)).state_dict())
    assert not any(hasattr(parameter, "grad_sample") for parameter in made.parameters())


def test_it_is_a_defense_of_its_own(tmp_path: Path) -> None:
    assert DEFENSES["dpsgd-strong"].options is Options
    assert {*asdict(Options())} - {*asdict(DEFENSES["dpsgd"].options())} == {
        *("batch_size", "epochs", "lr", "views", "shift", "flip", "ema_decay")
    }


@pytest.mark.parametrize(
    "options",
    [{"views": 0}, {"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"shift": -1}, {"ema_decay": 1.0}, {"delta": 0.0}],
)
def test_refusals(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"defenses\.dpsgd-strong\.{next(iter(options))} "):
        options_of(make_run(tmp_path, **options), "dpsgd-strong", Options)


def test_a_batch_larger_than_the_members(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size = 49 exceeds the 48 members"):
        strong(make_run(tmp_path, batch_size=49))
