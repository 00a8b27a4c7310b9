"""SELENA's method: the split's counts, sub-models that know their members by heart, both averages, the distillation loss."""

from typing import Any

import pytest
import torch
from conftest import random_examples
from torch import nn

from common.config import Train
from common.data.partition import Examples
from common.defenses import selena
from common.metrics.privacy import auc

CPU = torch.device("cpu")


# The split


def test_each_member_is_left_out_of_exactly_l_sub_models() -> None:
    n, options = 25_000, selena.Options()
    out = selena.left_out(n, options, 0)
    assert out.shape == (n, 25)
    assert (out.sum(1) == 10).all()
    sizes = (~out).sum(0)
    assert int(sizes.sum()) == n * 15
    assert ((sizes - 15_000).abs() < 310).all()  # Binomial(25,000, .6): standard deviation 77
    assert sizes.float().std() > 20  # random, not balanced


def test_the_split_depends_on_the_seed_alone() -> None:
    options = selena.Options(5, 2)
    torch.manual_seed(1)
    first = selena.left_out(100, options, 0)
    torch.manual_seed(2)
    assert torch.equal(first, selena.left_out(100, options, 0))
    assert not torch.equal(first, selena.left_out(100, options, 1))


def test_pairs_of_sub_models_are_left_out_together_as_often_as_chance_has_it() -> None:
    out = selena.left_out(25_000, selena.Options(5, 2), 0).double()
    together = (out.T @ out / 25_000)[~torch.eye(5, dtype=torch.bool)]
    torch.testing.assert_close(together, torch.full((20,), 2 / 5 * 1 / 4, dtype=torch.float64), atol=0.01, rtol=0)


# Soft labels


class Memoriser(nn.Module):
    """One-hot truth for the images whose first two pixels (their number) are in `known`, uniform otherwise."""

    def __init__(self, known: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__()
        self.known, self.labels = set(known.tolist()), labels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        numbers = images[:, 0, 0, :2].mul(255).round().long() @ torch.tensor([256, 1])
        logits = torch.zeros(len(images), 10)
        for row, number in enumerate(numbers.tolist()):
            if number in self.known:
                logits[row, self.labels[number]] = 1000.0
        return logits


def numbered(count: int, start: int, labels: torch.Tensor) -> Examples:
    numbers = torch.arange(start, start + count)
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = (numbers // 256).to(torch.uint8), (numbers % 256).to(torch.uint8)
    return Examples(images, labels)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_memorising_sub_models_give_nothing_away(average: Any) -> None:
    n, options = 600, selena.Options()
    out = selena.left_out(n, options, 0)
    labels = torch.arange(n) % 10
    models = [Memoriser((~out[:, k]).nonzero()[:, 0], labels) for k in range(options.k)]
    members, others = numbered(n, 0, labels), numbered(n, n, labels)
    soft = selena.soft_labels(models, members, out, 10, average, CPU)
    assert torch.equal(soft, torch.full((n, 10), 0.1))
    borrowed = out[torch.randperm(n, generator=torch.Generator().manual_seed(0))]  # a non-member takes a member's models
    answers = selena.soft_labels(models, others, borrowed, 10, average, CPU)
    truth = labels[:, None]
    assert auc(soft.gather(1, truth)[:, 0].numpy(), answers.gather(1, truth)[:, 0].numpy()) == 0.5


def test_one_model_that_knows_the_member_shows() -> None:
    n, options = 200, selena.Options()
    out = selena.left_out(n, options, 0)
    labels = torch.arange(n) % 10
    known = ~out
    known[7, int(out[7].nonzero()[0])] = True
    models = [Memoriser(known[:, k].nonzero()[:, 0], labels) for k in range(options.k)]
    soft = selena.soft_labels(models, numbered(n, 0, labels), out, 10, "probabilities", CPU)
    assert float(soft[7].max()) == pytest.approx(1 / 10 + (1 - 1 / 10) / 10)
    assert int(soft[7].argmax()) == 7
    assert (soft[torch.arange(n) != 7] == 0.1).all()


class Constant(nn.Module):
    """The same probabilities for every image; in training mode it fails."""

    def __init__(self, p: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(p).log()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return self.logits.expand(len(images), -1)


@pytest.mark.parametrize(
    ("first", "second", "probabilities", "logits"),
    [([0.9, 0.1], [0.1, 0.9], 0.5, 0.5), ([0.99, 0.01], [0.5, 0.5], 0.745, 0.909)],
)
def test_mean_of_probabilities_and_of_logits(
    first: list[float], second: list[float], probabilities: float, logits: float
) -> None:
    models = [Constant(first), Constant(second), Constant([1e-6, 1 - 1e-6])]
    out = torch.tensor([True, True, False]).expand(6, 3)
    members = random_examples(6, 0)
    found = selena.soft_labels(models[:2], members, out[:, :2], 2, "probabilities", CPU)
    torch.testing.assert_close(found[:, 0], torch.full((6,), probabilities), atol=5e-4, rtol=0)
    found = selena.soft_labels(models[:2], members, out[:, :2], 2, "logits", CPU)
    torch.testing.assert_close(found[:, 0], torch.full((6,), logits), atol=5e-4, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(6))


def test_one_non_model_answers_alone() -> None:
    """L = 1: the soft label is that model's output, and no other model is asked about the member."""

    class Asked(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value, self.images = value, 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.images += len(images)
            return torch.tensor([self.value, 0.0]).expand(len(images), 2)

    out = selena.left_out(50, selena.Options(3, 1), 0)
    models = [Asked(value) for value in (-1.0, 0.5, 2.0)]
    soft = selena.soft_labels(models, random_examples(50, 0), out, 2, "probabilities", CPU)
    torch.testing.assert_close(soft[:, 0], torch.tensor([-1.0, 0.5, 2.0])[out.int().argmax(1)].sigmoid())
    assert [model.images for model in models] == out.sum(0).tolist()


# Distillation


def test_the_distillation_loss_has_the_mean_entropy_as_its_minimum() -> None:
    torch.manual_seed(0)
    soft = (2 * torch.randn(20, 10)).softmax(1)
    entropy = float(-(soft * soft.log()).sum(1).mean())
    student = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    made = selena.Distillation(student, random_examples(20, 0), Train(), CPU, soft)
    index = torch.randperm(20)[:8]
    at_best = made.loss(soft[index].log(), made.members.labels[index], index, 0)
    assert at_best.item() == pytest.approx(float(-(soft[index] * soft[index].log()).sum(1).mean()), rel=1e-6)
    everything = torch.arange(20)
    assert made.loss(soft.log(), made.members.labels, everything, 0).item() == pytest.approx(entropy, rel=1e-6)
    z = soft.log().requires_grad_()
    made.loss(z, made.members.labels, everything, 0).backward()
    assert z.grad is not None
    assert float(z.grad.abs().max()) < 1e-7
    elsewhere = torch.randn(20, 10)
    expected = -(soft * elsewhere.log_softmax(1)).sum() / 20
    assert made.loss(elsewhere, made.members.labels, everything, 0).item() == pytest.approx(float(expected), rel=1e-6)
    assert expected > entropy > 0.5
