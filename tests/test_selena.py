"""SELENA: the split's counts, sub-models that know their members by heart, both averages, distillation, and resuming."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.config import Config, Data, Model, Train
from common.data.partition import Examples, Split
from common.defenses import selena
from common.errors import UserError
from common.metrics import auc
from common.run import Run
from common.targets import load_target, options_of, settings_of, target_classifier
from common.training import Objective, predict

CPU = torch.device("cpu")


def examples(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.randint(0, 10, (count,), generator=generator))


def make_run(folder: Path, seed: int = 0, best_on_test: bool = True, **options: Any) -> Run:
    config = Config(
        data=Data(members=40, reference=8, non_members=24, fit=4, known=4, scored=4),
        model=Model(width=4, depth=1),
        train=Train(epochs=2, batch_size=16, best_on_test=best_on_test),
        defenses={"selena": {"k": 4, "l": 2, **options}},
    )
    return Run(folder / "synthetic", "small", config, seed, CPU)


def make_split() -> Split:
    return Split(examples(40, 1), examples(8, 2), examples(24, 3))


def weights(path: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return loaded


def total(model: nn.Module) -> float:
    return sum(weight.detach().double().sum().item() for weight in model.parameters())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


class CountedSteps:
    """Counts training steps; raises KeyboardInterrupt at step `stop`, as Ctrl-C would."""

    def __init__(self, patch: pytest.MonkeyPatch, stop: int = 10**9) -> None:
        self.count = 0
        real = Objective.step

        def step(objective: Objective, index: torch.Tensor, epoch: int) -> tuple[float, int]:
            self.count += 1
            if self.count == stop:
                raise KeyboardInterrupt
            return real(objective, index, epoch)

        patch.setattr(Objective, "step", step)


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
    members = examples(6, 0)
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
    soft = selena.soft_labels(models, examples(50, 0), out, 2, "probabilities", CPU)
    torch.testing.assert_close(soft[:, 0], torch.tensor([-1.0, 0.5, 2.0])[out.int().argmax(1)].sigmoid())
    assert [model.images for model in models] == out.sum(0).tolist()


# Distillation


def test_the_distillation_loss_has_the_mean_entropy_as_its_minimum() -> None:
    torch.manual_seed(0)
    soft = (2 * torch.randn(20, 10)).softmax(1)
    entropy = float(-(soft * soft.log()).sum(1).mean())
    student = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    made = selena.Distillation(student, examples(20, 0), Train(), CPU, soft)
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


def test_the_student_trains_on_soft_labels_in_shuffled_batches_with_one_optimiser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    optimizers = set()
    real = selena.Distillation.loss

    def loss(self: selena.Distillation, logits: Any, labels: Any, index: torch.Tensor, epoch: int) -> torch.Tensor:
        seen.append(index)
        optimizers.add(id(self.optimizer))
        return real(self, logits, labels, index, epoch)

    monkeypatch.setattr(selena.Distillation, "loss", loss)
    selena.train(make_run(tmp_path), make_split())
    epochs = torch.cat(seen[:3]), torch.cat(seen[3:])  # 40 members in batches of 16
    for order in epochs:
        assert torch.equal(order.sort().values, torch.arange(40))
        assert not torch.equal(order, torch.arange(40))
    assert not torch.equal(*epochs)
    assert len(optimizers) == 1


# Sub-models: training, resuming, refusing


def test_sub_models_differ_in_weights_batches_and_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, split = make_run(tmp_path), make_split()
    initial, orders, sizes = [], [], []
    real = selena.fit

    def watch(objective: Objective, path: Path, settings: Any, seed: int, remake: str) -> Any:
        initial.append(total(objective.model))
        sizes.append(len(objective.members))
        orders.append(seed)
        return real(objective, path, settings, seed, remake)

    monkeypatch.setattr(selena, "fit", watch)
    for part in range(4):
        selena.train_part(run, split, part)
    assert len(set(initial)) == len(set(orders)) == 4
    out = selena.left_out(40, selena.Options(4, 2), 0)
    assert sizes == (~out).sum(0).tolist()
    initial.append(total(target_classifier(run)))
    assert len(set(initial)) == 5  # the student's differ as well
    assert not list(run.models_dir.glob("selena/*.best.pt"))


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split()
    whole, cut = make_run(tmp_path / "whole"), make_run(tmp_path / "cut")
    with monkeypatch.context() as patch:
        all_steps = CountedSteps(patch)
        reference = selena.train(whole, split)
    with monkeypatch.context() as patch:
        steps = CountedSteps(patch)
        selena.train_part(cut, split, 0)
        selena.train_part(cut, split, 2)
        made = steps.count
    batches = math.ceil(int((~selena.left_out(40, selena.Options(4, 2), 0))[:, 1].sum()) / 16)  # an epoch of sub-model 1
    kept = {part: selena.part_path(cut, part).read_bytes() for part in (0, 2)}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        CountedSteps(patch, stop=batches + 1)  # within the second of the two epochs of sub-model 1
        selena.train(cut, split)
    assert selena.part_path(cut, 1).with_suffix(".resume.pt").is_file()
    with monkeypatch.context() as patch:
        steps = CountedSteps(patch)
        resumed = selena.train(cut, split)
    assert steps.count == all_steps.count - made - batches  # the first epoch of sub-model 1 is not repeated either
    assert {part: selena.part_path(cut, part).read_bytes() for part in (0, 2)} == kept
    assert same(reference.state_dict(), resumed.state_dict())
    for part in range(4):
        assert same(weights(selena.part_path(whole, part)), weights(selena.part_path(cut, part)))


def test_a_finished_student_needs_no_sub_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, split = make_run(tmp_path), make_split()
    trained = selena.train(run, split)
    for part in range(4):
        selena.part_path(run, part).unlink()
    steps = CountedSteps(monkeypatch)
    logits = predict(selena.train(run, split), split.non_members, CPU)
    assert steps.count == 0
    assert torch.equal(logits, predict(trained, split.non_members, CPU))
    assert torch.equal(logits, predict(load_target(run, "selena", "clean", target_classifier(run)), split.non_members, CPU))
    assert load_target(run, "selena", "released", target_classifier(run))


def test_the_average_changes_the_student_and_no_sub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, run = make_split(), make_run(tmp_path)
    student = selena.train(run, split)
    released = make_run(tmp_path, average="logits", best_on_test=False)
    with pytest.raises(UserError, match=r"selena.pt was made under other settings .*average"):
        selena.train(released, split)
    (run.models_dir / "selena.pt").unlink()
    steps = CountedSteps(monkeypatch)
    other = selena.train(released, split)
    assert steps.count == 6  # two epochs of the student
    assert not same(student.state_dict(), other.state_dict())
    assert torch.load(run.models_dir / "selena.pt", weights_only=True)["settings"] == settings_of(released, "selena")


def test_sub_models_of_other_settings_are_refused(tmp_path: Path) -> None:
    run, split = make_run(tmp_path), make_split()
    selena.train_part(run, split, 0)
    with pytest.raises(UserError, match=r"sub00.pt was made under other settings \(options.l: 2 -> 1\).*train_defense.py"):
        selena.train_part(make_run(tmp_path, l=1), split, 0)
    longer = replace(run, config=replace(run.config, train=replace(run.config.train, epochs=3)))
    with pytest.raises(UserError, match=r"train.epochs: 2 -> 3"):
        selena.train(longer, split)
    selena.part_path(run, 0).rename(selena.part_path(run, 1))
    with pytest.raises(UserError, match=r"sub01.pt was made under other settings \(part: 0 -> 1\)"):
        selena.train_part(run, split, 1)


@pytest.mark.parametrize("part", [-1, 4])
def test_a_sub_model_that_does_not_exist_is_refused(tmp_path: Path, part: int) -> None:
    with pytest.raises(UserError, match=rf"numbered 0..3; there is no {part}"):
        selena.train_part(make_run(tmp_path), make_split(), part)


def test_too_few_members_are_refused() -> None:
    with pytest.raises(UserError, match=r"3 members are too few for 25 sub-models"):
        selena.left_out(3, selena.Options(), 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"l": 4}, r"defenses.selena.l must lie in 1..defenses.selena.k - 1 = 3, not 4."),
        ({"l": 0}, r"defenses.selena.l must lie in 1..defenses.selena.k - 1 = 3, not 0."),
        ({"k": 1}, r"defenses.selena.l must lie in"),
        ({"average": "mean"}, r"defenses.selena: .*mean"),
        ({"m": 3}, r"defenses.selena: .*'m'"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        options_of(make_run(tmp_path, **options), "selena", selena.Options)
