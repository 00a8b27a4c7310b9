"""AdvReg's game: the penalty and its gradient in closed form, two networks that leave each other alone."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, defense_run, random_split, same, snapshot
from torch import nn

from common.config import Data
from common.defenses.advreg import AdvReg, InferenceNet, Options
from common.run import Run
from common.training.loop import Objective, fit
from common.training.targets import options_of, target_classifier

CPU = torch.device("cpu")
DATA = Data(members=48, reference=40, non_members=24, fit=4, known=4, scored=4)
QUICK = {"attack_batches": 2, "defender_batches": 1, "warmup_attack_passes": 1}


def make_run(folder: Path, **options: Any) -> Run:
    return defense_run(folder, "advreg", DATA, QUICK | options, epochs=3)


def game(run: Run) -> AdvReg:
    split = random_split(DATA)
    return AdvReg(
        target_classifier(run),
        InferenceNet(CLASSES, seed=5),
        split.members,
        split.reference,
        run.config.train,
        CPU,
        options_of(run, "advreg", Options),
    )


def loud(attacker: InferenceNet) -> InferenceNet:
    """With default-sized weights: the published N(0, 0.01) leaves the output at 1/2 and its gradient at about 1e-9."""
    torch.manual_seed(11)
    for module in attacker.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return attacker


def test_the_inference_network_as_published() -> None:
    net = InferenceNet(100, seed=0)
    shapes = [tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight")]
    output, label = [(1024, 100), (512, 1024), (64, 512)], [(128, 100), (64, 128)]
    assert shapes == [*output, *label, (512, 128), (256, 512), (128, 256), (64, 128), (1, 64)]
    weights = torch.cat([p.flatten() for name, p in net.named_parameters() if name.endswith("weight")])
    assert weights.std().item() == pytest.approx(0.01, rel=0.01)
    assert all((p == 0).all() for name, p in net.named_parameters() if name.endswith("bias"))
    assert same(net.state_dict(), InferenceNet(100, seed=0).state_dict())
    assert not same(net.state_dict(), InferenceNet(100, seed=1).state_dict())


def test_every_layer_of_the_inference_network_but_the_last_is_rectified() -> None:
    """The forward pass once more, from the layers' weights alone."""
    net, logits, labels = loud(InferenceNet(CLASSES, 0)), torch.randn(6, CLASSES), torch.arange(6)

    def rectified(x: torch.Tensor, tower: nn.Sequential) -> torch.Tensor:
        for layer in tower:
            if isinstance(layer, nn.Linear):
                x = (x @ layer.weight.T + layer.bias).clamp_min(0)
        return x

    towers = rectified(logits, net.output), rectified(F.one_hot(labels, CLASSES).float(), net.label)
    expected = rectified(torch.cat(towers, dim=1), net.head) @ net.score.weight[0] + net.score.bias
    torch.testing.assert_close(net(logits, labels), expected)


def test_the_inference_network_reads_logits_and_label() -> None:
    net, logits = loud(InferenceNet(CLASSES, 0)), torch.randn(6, CLASSES)
    labels = torch.arange(6)
    assert net(logits, labels).shape == (6,)
    assert not torch.allclose(net(logits, labels), net(logits, labels + 1))
    assert not torch.allclose(net(logits, labels), net(2 * logits, labels))


@pytest.mark.parametrize("penalty", ["linear", "log_gain"])
def test_an_undecided_attacker_adds_nothing(tmp_path: Path, penalty: str) -> None:
    """h = 1/2 everywhere: the penalty is 0 and the gradient of f is that of cross-entropy."""
    objective = game(make_run(tmp_path, penalty=penalty))
    nn.init.zeros_(objective.attacker.score.weight)
    logits = torch.randn(8, CLASSES, requires_grad=True)
    labels, index = torch.arange(8), torch.arange(8)
    assert objective.penalty(logits, labels).item() == pytest.approx(0, abs=1e-6)
    (made,) = torch.autograd.grad(objective.loss(logits, labels, index, epoch=1), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    torch.testing.assert_close(made, plain, atol=1e-7, rtol=0)


def test_alpha_0_trains_as_undefended_bit_for_bit(tmp_path: Path) -> None:
    run = make_run(tmp_path, alpha=0.0)
    plain = Objective(target_classifier(run), random_split(DATA).members, run.config.train, CPU)
    fit(game(run), tmp_path / "advreg.pt", {}, 0, "")
    fit(plain, tmp_path / "plain.pt", {}, 0, "")
    made = [torch.load(tmp_path / f"{name}.pt", weights_only=True)["model"] for name in ("advreg", "plain")]
    assert same(*made)


@pytest.mark.parametrize("penalty", ["linear", "log_gain"])
def test_gradient_of_the_penalty(tmp_path: Path, penalty: str) -> None:
    """linear: alpha / B * h (1 - h) * dpre/dlogit; log_gain: alpha / B * (1 - h) * dpre/dlogit."""
    objective = game(make_run(tmp_path, penalty=penalty, alpha=3.0))
    attacker = loud(objective.attacker).double()
    logits = torch.randn(5, CLASSES, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(5)
    (made,) = torch.autograd.grad(objective.penalty(logits, labels), logits)
    pre = attacker(logits, labels)
    (slope,) = torch.autograd.grad(pre.sum(), logits)
    h = pre.detach().sigmoid()[:, None]
    torch.testing.assert_close(made, 3.0 / 5 * (h * (1 - h) if penalty == "linear" else 1 - h) * slope)
    assert made.abs().max() > 1e-6
    step = 1e-6 * torch.eye(CLASSES, dtype=torch.float64)[4]
    with torch.no_grad():
        rise = (objective.penalty(logits + step, labels) - objective.penalty(logits - step, labels)) / 2e-6
    assert made[:, 4].sum().item() == pytest.approx(rise.item(), rel=1e-5)


def test_penalty_values(tmp_path: Path) -> None:
    for penalty, gain in (("linear", 0.9 - 0.5), ("log_gain", math.log(0.9 / 0.5))):
        objective = game(make_run(tmp_path, penalty=penalty, alpha=2.0))
        nn.init.zeros_(objective.attacker.score.weight)
        nn.init.constant_(objective.attacker.score.bias, math.log(9))  # h = 0.9
        assert objective.penalty(torch.randn(4, CLASSES), torch.arange(4)).item() == pytest.approx(2 * gain, rel=1e-5)


def test_attack_loss_calls_a_member_1(tmp_path: Path) -> None:
    member = torch.tensor([True, True, True, False])
    for penalty, expected in (("linear", (3 * 0.01 + 0.81) / 4), ("log_gain", -(3 * math.log(0.9) + math.log(0.1)) / 4)):
        objective = game(make_run(tmp_path, penalty=penalty))
        nn.init.zeros_(objective.attacker.score.weight)
        nn.init.constant_(objective.attacker.score.bias, math.log(9))
        loss = objective.attack_loss(torch.randn(4, CLASSES), torch.arange(4), member)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("penalty", ["linear", "log_gain"])
def test_a_step_on_the_penalty_alone_lowers_the_attackers_score(tmp_path: Path, penalty: str) -> None:
    objective = game(make_run(tmp_path, penalty=penalty, alpha=1.0))
    loud(objective.attacker).double()
    model, labels = objective.model.eval().double(), objective.members.labels[:16]
    images = objective.members.pixels(slice(16)).double()
    before = objective.attacker(model(images), labels).sigmoid().mean()
    objective.penalty(model(images), labels).backward()
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    after = objective.attacker(model(images), labels).sigmoid().mean()
    assert after < before


def test_the_two_networks_leave_each_other_alone(tmp_path: Path) -> None:
    """The attacker's steps change neither f's parameters nor its BatchNorm buffers; f's step does not change h."""
    objective = game(make_run(tmp_path))
    loud(objective.attacker)
    objective.model.train()
    batch = next(iter(objective.batches()))
    f, h = snapshot(objective.model), snapshot(objective.attacker)
    assert any("running_mean" in name for name in f)
    objective.train_attacker(3)
    assert same(snapshot(objective.model), f)
    assert not same(snapshot(objective.attacker), h)
    assert objective.model.training
    assert all(p.grad is None for p in objective.model.parameters())

    h = snapshot(objective.attacker)
    for parameter in objective.attacker.parameters():
        parameter.grad = None
    objective.step(batch, epoch=0)  # warm-up: no attack before it
    objective.loss(objective.model(objective.members.pixels(batch)), objective.members.labels[batch], batch, 1).backward()
    assert same(snapshot(objective.attacker), h)
    assert all(p.grad is None for p in objective.attacker.parameters())
    changed = {name for name, value in snapshot(objective.model).items() if not torch.equal(value, f[name])}
    assert {name for name, _ in objective.model.named_parameters()} <= changed


def trained_on(objective: AdvReg, features: Callable[[int], torch.Tensor]) -> tuple[float, float]:
    """Squared error and accuracy of h on fresh points after training on `features(n)`, the first half being members."""
    loud(objective.attacker).requires_grad_(True)
    optimizer = torch.optim.Adam(objective.attacker.parameters(), 1e-3)
    member = torch.arange(128) < 64
    for _ in range(60):
        optimizer.zero_grad()
        objective.attack_loss(features(128), torch.zeros(128, dtype=torch.int64), member).backward()
        optimizer.step()
    truth = torch.arange(4000) < 2000
    with torch.no_grad():
        h = objective.attacker(features(4000), torch.zeros(4000, dtype=torch.int64)).sigmoid()
    return F.mse_loss(h, truth.float()).item(), ((h > 0.5) == truth).float().mean().item()


def test_nothing_to_learn_leaves_the_attacker_at_chance(tmp_path: Path) -> None:
    torch.manual_seed(3)
    error, accuracy = trained_on(game(make_run(tmp_path)), lambda n: torch.randn(n, CLASSES))
    assert 0.249 < error < 0.27
    assert accuracy == pytest.approx(0.5, abs=3 * math.sqrt(0.25 / 4000))
    shifted = lambda n: torch.randn(n, CLASSES) + (torch.arange(n) < n // 2)[:, None]  # noqa: E731
    error, accuracy = trained_on(game(make_run(tmp_path)), shifted)
    assert error < 0.1
    assert accuracy > 0.9


def test_the_attacker_has_a_learning_rate_of_its_own_and_batches_that_both_sides_can_fill(tmp_path: Path) -> None:
    run = make_run(tmp_path, attack_lr=0.02)
    assert [group["lr"] for group in game(run).attack_optimizer.param_groups] == [0.02]
    split, options = random_split(DATA), options_of(run, "advreg", Options)
    sizes = [
        AdvReg(
            target_classifier(run),
            InferenceNet(CLASSES, seed=5),
            split.members.take(slice(members)),
            split.reference.take(slice(reference)),
            run.config.train,
            CPU,
            options,
        ).attack_batch_size
        for members, reference in ((48, 40), (10, 40), (48, 9))
    ]
    assert sizes == [16, 10, 9]
