"""SELENA's training: what sub-models and student train on, resuming against an uninterrupted run, and refusals."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import defense_run, random_split, same
from torch import nn

from common.config import Data
from common.defenses import selena
from common.errors import UserError
from common.run import Run
from common.training.loop import Objective, predict
from common.training.targets import load_target, options_of, settings_of, target_classifier

CPU = torch.device("cpu")
DATA = Data(members=40, reference=8, non_members=24, fit=4, known=4, scored=4)


def make_run(folder: Path, best_on_test: bool = True, **options: Any) -> Run:
    return defense_run(folder, "selena", DATA, {"k": 4, "l": 2} | options, epochs=2, best_on_test=best_on_test)


def weights(path: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return loaded


def total(model: nn.Module) -> float:
    return sum(weight.detach().double().sum().item() for weight in model.parameters())


class CountedSteps:
    """Counts training steps; raises KeyboardInterrupt at step `stop`, as Ctrl-C would."""

    def __init__(self, patch: pytest.MonkeyPatch, stop: int = 10**9) -> None:
        self.count = 0
        real = Objective.step

        def step(objective: Objective, index: torch.Tensor, epoch: int) -> tuple[float, float]:
            self.count += 1
            if self.count == stop:
                raise KeyboardInterrupt
            return real(objective, index, epoch)

        patch.setattr(Objective, "step", step)


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
    selena.train(make_run(tmp_path), random_split(DATA))
    epochs = torch.cat(seen[:3]), torch.cat(seen[3:])  # 40 members in batches of 16
    for order in epochs:
        assert torch.equal(order.sort().values, torch.arange(40))
        assert not torch.equal(order, torch.arange(40))
    assert not torch.equal(*epochs)
    assert len(optimizers) == 1


def test_sub_models_differ_in_weights_batches_and_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, split = make_run(tmp_path), random_split(DATA)
    initial, orders, sizes = [], [], []
    real = selena.fit

    def watch(objective: Objective, path: Path, settings: Any, seed: int, remake: str) -> Any:
        initial.append(total(objective.model))
        sizes.append(len(objective.members))
        orders.append(seed)
        return real(objective, path, settings, seed, remake)

    monkeypatch.setattr(selena, "fit", watch)
    selena.train_part(replace(make_run(tmp_path / "other"), seed=1), split, 0)
    other, _, _ = initial.pop(), orders.pop(), sizes.pop()
    for part in range(4):
        selena.train_part(run, split, part)
    assert len(set(initial)) == len(set(orders)) == 4
    assert other not in initial  # another seed of the run is another sub-model
    out = selena.left_out(40, selena.Options(4, 2), 0)
    assert sizes == (~out).sum(0).tolist()
    initial.append(total(target_classifier(run)))
    assert len(set(initial)) == 5  # the student's differ as well
    assert not list(run.models_dir.glob("selena/*.best.pt"))


def test_only_sub_models_that_never_saw_a_member_answer_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student's soft label of a member: the mean probabilities of the 2 of 4 sub-models trained without its image."""
    run, split = make_run(tmp_path), random_split(DATA)
    trained: list[tuple[nn.Module, set[bytes]]] = []
    soft: list[torch.Tensor] = []
    real_fit, real_train = selena.fit, selena.train_target

    def fit(objective: Objective, *arguments: Any) -> Any:
        trained.append((objective.model, {image.numpy().tobytes() for image in objective.members.images}))
        return real_fit(objective, *arguments)

    def train_target(run: Run, name: str, objective: Any, split: Any) -> nn.Module:
        soft.append(objective.soft)
        return real_train(run, name, objective, split)

    monkeypatch.setattr(selena, "fit", fit)
    monkeypatch.setattr(selena, "train_target", train_target)
    selena.train(run, split)
    images = [image.numpy().tobytes() for image in split.members.images]
    unseen = torch.tensor([[image not in seen for image in images] for _, seen in trained])
    assert (unseen.sum(0) == 2).all()
    answers = torch.stack([predict(model, split.members, CPU).softmax(1) for model, _ in trained])
    torch.testing.assert_close(soft[0], (answers * unseen[:, :, None]).sum(0) / 2)


@pytest.mark.usefixtures("every_checkpoint")
def test_a_killed_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = random_split(DATA)
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
    run, split = make_run(tmp_path), random_split(DATA)
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
    split, run = random_split(DATA), make_run(tmp_path)
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
    run, split = make_run(tmp_path), random_split(DATA)
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
        selena.train_part(make_run(tmp_path), random_split(DATA), part)


@pytest.mark.parametrize("l", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_a_sub_model_with_all_members_or_none_is_refused(l: int, seed: int) -> None:  # noqa: E741
    """Two members, three sub-models: left out of one each, a sub-model has both; of two each, one may have neither."""
    options = selena.Options(3, l)
    with pytest.raises(UserError, match=r"2 members are too few for 3 sub-models"):
        selena.left_out(2, options, seed)


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
