"""AdvReg's schedule: the steps of both networks in a round, the warm-up, and the attacker's batches."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES
from test_advreg import game, make_run
from torch import nn

from common.defenses.advreg import AdvReg, Options


def test_schedules() -> None:
    assert Options().steps_per_round == (26, 2)
    assert Options(schedule="paper").steps_per_round == (52, 2)
    assert Options(attack_batches=3).steps_per_round == (3, 2)
    assert Options(defender_batches=1).steps_per_round == (26, 1)
    assert Options().alpha == 6.0


def test_an_epoch_by_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up epoch without attack, then two passes of 40 // 16 batches, then 5 attack batches before each 2 batches of f."""
    run = make_run(tmp_path, attack_batches=5, defender_batches=2, warmup_attack_passes=2)
    objective, events = game(run), []
    monkeypatch.setattr(objective, "train_attacker", lambda steps: events.append(steps))
    for epoch in range(3):
        for index in objective.batches():
            objective.step(index, epoch)
            events.append(-len(index))
        events.append(0)
    f = -16
    assert events == [f, f, f, 0, 4, 5, f, f, 5, f, 0, 5, f, f, 5, f, 0]


def test_attack_batches_are_members_and_reference_images_in_equal_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, seen = game(make_run(tmp_path)), []

    def record(logits: torch.Tensor, labels: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
        seen.append((labels, member))
        return AdvReg.attack_loss(objective, logits, labels, member)

    monkeypatch.setattr(objective, "attack_loss", record)
    objective.batches()
    objective.train_attacker(2)  # one pass over the reference images, 2 x 16 of 40
    labels, member = (torch.cat(column) for column in zip(*seen, strict=True))
    assert member.tolist() == 2 * (16 * [True] + 16 * [False])
    for examples_, drawn in ((objective.members, labels[member]), (objective.reference, labels[~member])):
        assert (torch.bincount(drawn, minlength=10) <= torch.bincount(examples_.labels, minlength=10)).all()


def test_the_attacker_reads_answers_on_members_and_on_reference_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pixel says whose image it is and which label it has: 10 + label for members, 100 + label for reference images."""
    objective, shown = game(make_run(tmp_path)), []
    for examples, start in ((objective.members, 10), (objective.reference, 100)):
        examples.images[:] = (start + examples.labels).to(torch.uint8)[:, None, None, None]
    real_forward, real_loss = objective.forward, objective.attack_loss

    def forward(images: torch.Tensor) -> torch.Tensor:
        shown.append(images[:, 0, 0, 0].mul(255).round().long())
        return real_forward(images)

    def attack_loss(logits: torch.Tensor, labels: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
        assert torch.equal(shown[-1], torch.where(member, 10, 100) + labels)
        return real_loss(logits, labels, member)

    monkeypatch.setattr(objective, "forward", forward)
    monkeypatch.setattr(objective, "attack_loss", attack_loss)
    objective.batches()
    objective.train_attacker(3)
    assert [len(images) for images in shown] == [32] * 3


def test_the_penalty_begins_with_the_first_epoch_after_the_warm_up(tmp_path: Path) -> None:
    """h = 0.9: alpha (0.9 - 1/2) = 0.8 more than cross-entropy from epoch 2 on, counted from 0, after 2 epochs without."""
    objective = game(make_run(tmp_path, alpha=2.0, warmup_epochs=2))
    nn.init.zeros_(objective.attacker.score.weight)
    nn.init.constant_(objective.attacker.score.bias, math.log(9))
    logits, labels = torch.randn(4, CLASSES), torch.arange(4)
    plain = F.cross_entropy(logits, labels).item()
    added = [objective.loss(logits, labels, labels, epoch).item() - plain for epoch in range(4)]
    assert added == pytest.approx([0, 0, 0.8, 0.8], abs=1e-5)


def test_draws_of_the_attacker_differ_by_epoch_and_leave_the_global_generator_alone(tmp_path: Path) -> None:
    objective, first = game(make_run(tmp_path)), []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        objective.batches()
        state = torch.get_rng_state()
        first.append(next(objective.attacker_batches)[0].tolist())
        objective.train_attacker(2)
        assert torch.equal(torch.get_rng_state(), state)
    assert first[0] == first[2] != first[1]
