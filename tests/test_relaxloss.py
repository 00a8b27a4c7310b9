"""RelaxLoss against the closed-form gradient of each of its branches, and on data it could learn by heart."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import defense_run, random_examples, random_split
from torch import nn

from common.config import Data, Train
from common.defenses import relaxloss
from common.errors import UserError
from common.run import Run
from common.training.loop import Objective, fit, predict
from common.training.targets import load_target, options_of, settings_of, target_classifier

CPU = torch.device("cpu")
DATA = Data(members=48, reference=8, non_members=32, fit=4, known=4, scored=4)
EVEN, ODD = 0, 1  # epochs count from 0
WRONG, RIGHT = torch.tensor([0]), torch.tensor([2])  # labels of LOGITS, whose argmax is 2
LOGITS = torch.tensor([[0.5, -1.0, 1.5, 0.2, 0.0, 0.3, -0.4, 0.1, 0.9, -0.2]], dtype=torch.float64)


def make_run(folder: Path, **options: Any) -> Run:
    return defense_run(folder, "relaxloss", DATA, options, epochs=3)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))


def objective(**options: Any) -> relaxloss.RelaxLoss:
    return relaxloss.RelaxLoss(linear(), random_examples(8, 0), Train(), CPU, relaxloss.Options(**options))


def gradient(logits: torch.Tensor, labels: torch.Tensor, epoch: int, **options: Any) -> torch.Tensor:
    z = logits.clone().requires_grad_()
    objective(**options).loss(z, labels, labels, epoch).backward()
    assert z.grad is not None
    return z.grad


def parts(label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """p, y and the flattened target t (upper = 1) of LOGITS."""
    p, y = LOGITS.softmax(1), F.one_hot(label, 10).double()
    own = (p * y).sum(1, keepdim=True)
    return p, y, y * own + (1 - y) * (1 - own) / 9


def undetached_term(label: torch.Tensor) -> torch.Tensor:
    """What a gradient through the target adds: -[log p_y - mean of the other log p] * p_y * (e_y - p)."""
    p, y, _ = parts(label)
    own = (p * y).sum()
    others = (p.log() * (1 - y)).sum() / 9
    return -(own.log() - others) * own * (y - p)


# Gradients of one image's logits; its cross-entropy is about 1 with RIGHT and 2 with WRONG


@pytest.mark.parametrize("label", [WRONG, RIGHT])
@pytest.mark.parametrize(("epoch", "alpha", "sign"), [(EVEN, 0.5, 1), (EVEN, 2.3, -1), (ODD, 0.5, 1)])
def test_descent_and_ascent(label: torch.Tensor, epoch: int, alpha: float, sign: int) -> None:
    p, y, _ = parts(label)
    torch.testing.assert_close(gradient(LOGITS, label, epoch, alpha=alpha), sign * (p - y))


@pytest.mark.parametrize("detach", [False, True])
def test_cifar_flattening_of_a_right_answer_is_ascent(detach: bool) -> None:
    p, y, _ = parts(RIGHT)
    torch.testing.assert_close(gradient(LOGITS, RIGHT, ODD, alpha=2.3, detach=detach), y - p)


def test_cifar_flattening_of_a_wrong_answer_detached() -> None:
    p, y, t = parts(WRONG)
    found = gradient(LOGITS, WRONG, ODD, alpha=2.3, detach=True)
    torch.testing.assert_close(found, y - t)
    own = float(p[0, 0])
    torch.testing.assert_close(found, (1 - own) * (y - (1 - y) / 9))


def test_cifar_flattening_of_a_wrong_answer_undetached() -> None:
    _, y, t = parts(WRONG)
    found = gradient(LOGITS, WRONG, ODD, alpha=2.3)
    torch.testing.assert_close(found, y - t + undetached_term(WRONG), atol=1e-12, rtol=0)
    assert float(undetached_term(WRONG).abs().max()) > 0.01  # the two options differ


@pytest.mark.parametrize("label", [WRONG, RIGHT])
def test_non_image_flattening(label: torch.Tensor) -> None:
    p, _, t = parts(label)
    options: dict[str, Any] = {"alpha": 2.3, "flattening": "non_image"}
    torch.testing.assert_close(gradient(LOGITS, label, ODD, detach=True, **options), p - t)
    undetached = gradient(LOGITS, label, ODD, **options)
    torch.testing.assert_close(undetached, p - t + undetached_term(label), atol=1e-12, rtol=0)


@pytest.mark.parametrize("flattening", ["cifar", "non_image"])
@pytest.mark.parametrize("upper", [1.0, 0.3])
def test_flattening_against_finite_differences(flattening: Any, upper: float) -> None:
    torch.manual_seed(3)
    logits, labels = torch.randn(5, 10, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4])
    made = objective(alpha=2.3, flattening=flattening, upper=upper)
    assert torch.autograd.gradcheck(lambda z: made.flattening(z, labels), logits.requires_grad_())


@pytest.mark.parametrize("epoch", [EVEN, ODD])
@pytest.mark.parametrize("alpha", [0.5, 2.3])
@pytest.mark.parametrize("flattening", ["cifar", "non_image"])
@pytest.mark.parametrize("detach", [False, True])
def test_gradients_sum_to_zero_over_classes(epoch: int, alpha: float, flattening: str, detach: bool) -> None:
    torch.manual_seed(4)
    logits, labels = torch.randn(8, 10, dtype=torch.float64), torch.arange(8)
    found = gradient(logits, labels, epoch, alpha=alpha, flattening=flattening, detach=detach)
    torch.testing.assert_close(found.sum(1), torch.zeros(8, dtype=torch.float64), atol=1e-12, rtol=0)


# Targets and branches


def test_flattened_targets_sum_to_one_and_lead_where_the_class_beats_chance() -> None:
    torch.manual_seed(5)
    logits, labels = torch.randn(300, 10, dtype=torch.float64), torch.arange(300) % 10
    own = logits.softmax(1)[torch.arange(300), labels]
    for upper in (1.0, 0.3, 0.05):
        t = objective(upper=upper).flat_targets(logits, labels)
        torch.testing.assert_close(t.sum(1), torch.ones(300, dtype=torch.float64))
        torch.testing.assert_close(t[torch.arange(300), labels], own.clamp(max=upper))
        assert torch.equal(t.argmax(1) == labels, own.clamp(max=upper) > 0.1)
    assert (own > 0.3).any()
    assert (own < 0.1).any()


def test_uniform_predictions_below_alpha_are_pushed_up() -> None:
    """Cross-entropy log 10 = 2.3026 < 3: an even epoch ascends."""
    z, label = torch.zeros(1, 10, dtype=torch.float64), torch.tensor([1])
    assert objective(alpha=3.0).loss(z, label, label, EVEN).item() == pytest.approx(3 - math.log(10))
    torch.testing.assert_close(gradient(z, label, EVEN, alpha=3.0), F.one_hot(label, 10).double() - 0.1)


def test_the_branch_is_the_batchs_and_the_parity_the_epochs() -> None:
    """One image far above alpha takes the whole batch above it."""
    logits = torch.cat([LOGITS, 20 * F.one_hot(torch.tensor([3, 4]), 10).double()])
    labels = torch.tensor([2, 3, 5])  # mean cross-entropy about 7, though two of three lie below 2
    plain = logits.clone().requires_grad_()
    F.cross_entropy(plain, labels).backward()
    for epoch in range(4):
        torch.testing.assert_close(gradient(logits, labels, epoch, alpha=2.0), plain.grad)
    assert torch.equal(gradient(LOGITS, WRONG, 2, alpha=2.3), gradient(LOGITS, WRONG, EVEN, alpha=2.3))
    assert torch.equal(gradient(LOGITS, WRONG, 3, alpha=2.3), gradient(LOGITS, WRONG, ODD, alpha=2.3))
    assert not torch.equal(gradient(LOGITS, WRONG, 3, alpha=2.3), gradient(LOGITS, WRONG, 2, alpha=2.3))


# Training


def history(folder: Path, made: Objective) -> list[dict[str, float]]:
    rows = fit(made, folder / "model.pt", {}, 0, "")["history"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_alpha_zero_is_plain_training(tmp_path: Path) -> None:
    split, config = random_split(DATA), Train(epochs=4, batch_size=16)
    target = target_classifier(make_run(tmp_path))
    plain = Objective(target, split.members, config, CPU)
    relaxed = relaxloss.RelaxLoss(
        target_classifier(make_run(tmp_path)), split.members, config, CPU, relaxloss.Options(alpha=0.0)
    )
    assert history(tmp_path / "plain", plain) == history(tmp_path / "relaxed", relaxed)
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, relaxed.model.state_dict()[name]), name


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_loss_hovers_around_alpha(tmp_path: Path, alpha: float) -> None:
    """On data that plain training learns by heart, the cross-entropy of the last epochs stays near alpha."""

    class Watched(relaxloss.RelaxLoss):
        seen: list[float]

        def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
            self.seen.append(F.cross_entropy(logits, labels).item())
            return super().loss(logits, labels, index, epoch)

    members, config = random_examples(128, 6), Train(epochs=80, batch_size=32, lr=5e-4)
    watched = Watched(linear(), members, config, CPU, relaxloss.Options(alpha=alpha))
    watched.seen = []
    fit(watched, tmp_path / "relaxed.pt", {}, 0, "")
    assert sum(watched.seen[-80:]) / 80 == pytest.approx(alpha, rel=0.2)
    plain = history(tmp_path, Objective(linear(), members, config, CPU))
    assert plain[-1]["loss"] < alpha / 4


def test_train_writes_a_checkpoint_of_its_own_loss(tmp_path: Path) -> None:
    run, split = make_run(tmp_path, alpha=2.0), random_split(DATA)
    trained = relaxloss.train(run, split)
    loaded = load_target(run, "relaxloss", "clean", target_classifier(run))
    assert torch.equal(*(predict(model, split.non_members, CPU) for model in (trained, loaded)))
    checkpoint = torch.load(run.models_dir / "relaxloss.pt", weights_only=True)
    assert checkpoint["settings"] == settings_of(run, "relaxloss")
    assert checkpoint["history"][0]["loss"] < 1.0  # |cross-entropy - 2|, not cross-entropy


# Refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha": -0.1}, r"defenses.relaxloss.alpha must not be negative, not -0.1."),
        ({"upper": 0.0}, r"defenses.relaxloss.upper must lie in 0..1, 0 excluded, not 0.0."),
        ({"upper": 1.5}, r"defenses.relaxloss.upper must lie in 0..1, 0 excluded, not 1.5."),
        ({"flattening": "images"}, r"defenses.relaxloss: .*images"),
        ({"alfa": 0.1}, r"defenses.relaxloss: .*alfa"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        options_of(make_run(tmp_path, **options), "relaxloss", relaxloss.Options)


def test_an_alpha_above_the_loss_of_guessing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"alpha = 3.0 is no less than log 10 = 2.303.*lower it"):
        relaxloss.train(make_run(tmp_path, alpha=3.0), random_split(DATA))
