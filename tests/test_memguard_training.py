"""MemGuard's guard: what it trains on and learns, serving against the undefended answers, resuming, and refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, defense_run, random_split, same, stop_after
from torch import Tensor, nn

from common.config import Data, Train
from common.data.partition import PROTOCOLS, Examples, Split, evaluation_pools, unscored_members
from common.defenses import memguard, undefended
from common.defenses.memguard import Guard, GuardTraining, MemGuard, Options
from common.errors import UserError
from common.run import Run
from common.seeds import image_keys
from common.training.loop import predict
from common.training.targets import load_target, options_of

CPU = torch.device("cpu")
DATA = Data(members=60, reference=32, non_members=40, fit=4, known=6, scored=12)


def make_run(folder: Path, best_on_test: bool = True, **options: Any) -> Run:
    return defense_run(folder, "memguard", DATA, {"epochs": 3, "steps": 20} | options, epochs=2, best_on_test=best_on_test)


def test_the_guard_never_trains_on_a_scored_point() -> None:
    for data in (DATA, Data(members=1000, reference=1000, non_members=1000, fit=150, known=250, scored=500), Data()):
        scored = {position for protocol in PROTOCOLS for position in evaluation_pools(data, protocol).scored}
        left = unscored_members(data).tolist()
        assert scored.isdisjoint(left)
        assert scored | set(left) == set(range(data.members))
    all_scored = Data(members=30, reference=30, non_members=40, fit=4, known=6, scored=20)
    with pytest.raises(UserError, match=r"data\.members"):
        memguard.guard_examples(Brightness(), random_split(all_scored), all_scored, CPU)


class Brightness(nn.Module):
    """Logits that give an image away: its first pixel and zero."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 0, 0, 0], torch.zeros(len(images))], dim=1)


def test_what_the_guard_is_trained_on() -> None:
    """Members that are not scored, and all of the reference half; no image of the test set."""
    split = random_split(DATA)
    made = memguard.guard_examples(Brightness(), split, DATA, CPU)
    left = unscored_members(DATA)
    first = torch.cat([split.members.pixels(left)[:, 0, 0, 0], split.reference.pixels(slice(None))[:, 0, 0, 0]])
    torch.testing.assert_close(made.images, torch.stack([first, torch.zeros_like(first)], dim=1).softmax(1))
    assert made.labels.tolist() == [1] * len(left) + [0] * 32
    empty = Split(split.members, split.reference.take(slice(0)), split.non_members)
    with pytest.raises(UserError, match=r"data\.reference"):
        memguard.guard_examples(Brightness(), empty, DATA, CPU)


def test_the_guard_learns_and_both_kinds_weigh_alike() -> None:
    """1 member to 9 others with the same confidences: the guess stays at 1/2, not at 1/10; different ones: it moves."""
    flat, peaked = torch.full((1, CLASSES), 0.1), torch.tensor([[0.91] + 9 * [0.01]])
    kinds = torch.tensor(20 * [1] + 180 * [0])
    for confidences, lowest, highest in (
        (flat.expand(200, -1), -0.1, 0.1),
        (torch.where(kinds[:, None] == 1, peaked, flat), 1, 99),
    ):
        model = MemGuard(nn.Identity(), Guard(CLASSES, 0), Options(), 0)
        training = GuardTraining(model, Examples(confidences, kinds), Train(epochs=1, lr=0.1, batch_size=50), CPU)
        torch.manual_seed(0)
        for _ in range(200):
            for index in training.batches():
                training.step(index, 0)
        with torch.no_grad():
            guess = model.guard(confidences)
        assert lowest < guess[0].item() < highest
        assert (guess[-1].item() < -1) == (lowest == 1)


def test_a_step_of_the_guard_is_that_of_the_weighted_loss() -> None:
    """3 members and 9 others: a member weighs 12 / (2 * 3) = 2 and another 12 / (2 * 9) = 2/3, whatever the batch holds."""
    member = torch.tensor(3 * [1] + 9 * [0])
    confidences = torch.rand(12, CLASSES, generator=torch.Generator().manual_seed(0)).softmax(1)
    guard, index = Guard(CLASSES, 0), torch.tensor([0, 1, 5])
    guess = guard(confidences[index])
    loss = (2 * F.softplus(-guess[0]) + 2 * F.softplus(-guess[1]) + 2 / 3 * F.softplus(guess[2])) / 3
    gradients = torch.autograd.grad(loss, list(guard.parameters()))
    expected = [(weight - 0.1 * slope).detach() for weight, slope in zip(guard.parameters(), gradients, strict=True)]
    model = MemGuard(nn.Identity(), guard, Options(), 0)
    training = GuardTraining(model, Examples(confidences, member), Train(lr=0.1), CPU)
    right = int(((guess > 0) == member[index]).sum())
    assert training.step(index, 0) == (pytest.approx(loss.item(), rel=1e-5), right)
    torch.testing.assert_close(list(guard.parameters()), expected)


def test_trained_loaded_and_served(tmp_path: Path) -> None:
    run, split = make_run(tmp_path, epsilon=2.0), random_split(DATA)
    with pytest.raises(UserError, match=r"train_defense\.py --defense undefended"):
        memguard.train(run, split)
    plain = undefended.train(run, split)
    made = memguard.train(run, split)
    assert isinstance(made, MemGuard)
    for protocol in PROTOCOLS:
        loaded = load_target(run, "memguard", protocol, memguard.build(run))
        bare = load_target(run, "undefended", protocol, undefended.target_classifier(run))
        assert isinstance(loaded, MemGuard)
        assert all(torch.equal(a, b) for a, b in zip(loaded.classifier.parameters(), bare.parameters(), strict=True))
        answered, logits = predict(loaded, split.non_members, CPU), predict(bare, split.non_members, CPU)
        assert torch.equal(answered.argmax(1), logits.argmax(1))
        # The same answers from logits and keys, as behind Diffence.
        keys = image_keys(split.non_members.pixels(slice(None)))
        torch.testing.assert_close(answered, loaded.release(logits, keys))
    torch.testing.assert_close(predict(made.classifier, split.members, CPU), predict(plain, split.members, CPU))
    start = memguard.build(run).guard
    assert all(not torch.equal(a, b) for a, b in zip(start.parameters(), made.guard.parameters(), strict=True))


def test_without_best_on_test_there_is_one_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path, best_on_test=False)
    undefended.train(run, random_split(DATA))
    memguard.train(run, random_split(DATA))
    assert sorted(path.name for path in run.models_dir.glob("memguard*.pt")) == ["memguard.pt"]


def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, killed = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    for run in (straight, killed):
        undefended.train(run, random_split(DATA))
    memguard.train(straight, random_split(DATA))
    for epochs in (2, 2):  # killed in the last epoch of the first guard, then in the second epoch of the second one
        with monkeypatch.context() as patch:
            patch.setattr(GuardTraining, "batches", stop_after(epochs, GuardTraining.batches))
            with pytest.raises(KeyboardInterrupt):
                memguard.train(killed, random_split(DATA))
    memguard.train(killed, random_split(DATA))
    for name in ("memguard.pt", "memguard.best.pt"):
        a, b = (torch.load(run.models_dir / name, weights_only=True)["model"] for run in (straight, killed))
        assert same(a, b)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": 2.1}, "epsilon"),
        ({"steps": 0}, "steps"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"budget": 1.0}, "budget"),
    ],
)
def test_refusals(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        options_of(make_run(tmp_path, **options), "memguard", Options)
