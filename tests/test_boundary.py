"""The attacks that see labels only: distances of linear models, failures, shifts, and Table VI's claim."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import eagerpy as ep
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import common.attacks.boundary
from common.attacks import METRIC_ATTACKS, Outputs
from common.attacks.boundary import BoundaryResult, HopSkipJump, LabelOnly, augmentation_scores, boundary_distances, shifts
from common.diffence.protect import ProtectedClassifier
from common.diffence.select import Selector
from common.errors import UserError

CPU = torch.device("cpu")


class Linear(nn.Module):
    """Class scores weights [C, d] times the pixels, normalised inside as the project's classifiers do."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        return (images.double() - 0.5).div(0.25).flatten(1) @ self.weights.T

    def distances(self, images: Tensor) -> Tensor:
        """Signed L2 distances in pixels [n, C - 1, C] from class 0.. to the hyperplane where class j takes over."""
        scores = (images.double() - 0.5).flatten(1) @ self.weights.T
        gaps = scores[:, :, None] - scores[:, None, :]
        return gaps / torch.cdist(self.weights, self.weights).fill_diagonal_(torch.nan)


class Net(nn.Sequential):
    """A small convolutional network with random weights that tells 4 classes apart."""

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 64, 4, bias=False))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return 8 * super().forward(images - 0.5)


def random_images(count: int, side: int, seed: int = 0) -> Tensor:
    """Grey noise that leaves room to the edges of the pixel box, [count, 3, side, side]."""
    return 0.3 + 0.4 * torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def random_weights(classes: int, dimensions: int) -> Tensor:
    return torch.randn(classes, dimensions, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def attack(model: nn.Module, images: Tensor, labels: Tensor, steps: int = 2, seed: int = 0, **more: int) -> BoundaryResult:
    return boundary_distances(model, images, labels, steps=steps, seed=seed, device=CPU, **more)  # type: ignore[arg-type]


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


# Oracles


@pytest.mark.parametrize("classes", [2, 3])
def test_the_distance_of_a_linear_model(classes: int) -> None:
    """|w x + b| / ||w|| within 2% after 50 steps, in pixels; exactly 0 where the label is wrong.

    HopSkipJump descends to a boundary near its start: with three classes that is one of two, not always the nearer one.
    """
    model, images = Linear(random_weights(classes, 48)), random_images(6, 4)
    labels = predicted(model, images)
    labels[:2] = (labels[:2] + 1) % classes
    found = attack(model, images, labels, 50)
    boundaries = model.distances(images)[torch.arange(6), labels].numpy()
    assert (np.nanmin(boundaries[:2], axis=1) < 0).all()
    assert (found.distances[:2] == 0).all()
    ratio = found.distances[2:, None] / boundaries[2:]
    assert np.nanmax(ratio, axis=1).min() > 1 - 1e-5  # nothing with another label lies nearer
    assert np.nanmin(np.abs(ratio - 1), axis=1).max() < 0.02
    assert not found.failed.any()
    assert found.distances.dtype == np.float64


def test_a_constant_classifier_fails_at_the_diameter_of_the_pixel_box() -> None:
    model = Linear(torch.zeros(2, 48, dtype=torch.float64))
    found = attack(model, random_images(5, 4), torch.tensor([0, 0, 1, 0, 0]))
    np.testing.assert_allclose(found.distances, [48**0.5, 48**0.5, 0, 48**0.5, 48**0.5])
    assert found.failed.tolist() == [True, True, False, True, True]
    assert found.failed.dtype == bool


def test_the_search_begins_at_the_nearest_image_with_another_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three images the nearest with another label lies straight behind the boundary: one step finds the distance."""
    monkeypatch.setattr(common.attacks.boundary, "NOISE_STARTS", 0)
    model, image = Linear(random_weights(2, 48)), random_images(1, 4).double()
    label = predicted(model, image)
    distance = model.distances(image)[0, label, 1 - label].item()
    normal = torch.nn.functional.normalize((model.weights[1 - label] - model.weights[label]).flatten(), dim=0).view(1, 3, 4, 4)
    near, far, same = image + 1.02 * distance * normal, image + 1.5 * distance * normal, image + 0.5 * distance * normal
    assert 0 < distance < 0.3
    assert predicted(model, torch.cat([near, far, same])).tolist() == [1 - label, 1 - label, label]
    starts = torch.cat([far, same, near]).float()
    found = boundary_distances(model, image.float(), label, steps=1, seed=0, device=CPU, starts=starts)
    assert found.distances[0] == pytest.approx(distance, rel=0.02)


def test_a_label_is_a_one_hot_row_over_all_classes() -> None:
    white = torch.ones(2, 3, 6, 6)
    assert LabelOnly(Bright(0, 0))(torch.cat([white, 0 * white])).tolist() == [[0, 1]] * 2 + [[1, 0]] * 2
    assert LabelOnly(Bright(0, 0))(0 * white).tolist() == [[1, 0]] * 2


def test_more_steps_are_never_worse() -> None:
    model, images = Net(), random_images(8, 8)
    labels = predicted(model, images)
    rounds = [attack(model, images, labels, steps, batch=5).distances for steps in (1, 2, 4)]
    for fewer, more in pairwise(rounds):
        assert (more <= fewer).all()
    assert (rounds[-1] < rounds[0]).all()


def test_directions_have_length_one_for_each_image() -> None:
    """foolbox 3.3.4 divides by the norm over the batch, which makes the steps of n images sqrt(n) times too short."""
    images = random_images(16, 4)
    half = ep.astensor(torch.full((16,), 0.1))
    with torch.random.fork_rng(devices=[]):
        directions = HopSkipJump().approximate_gradients(
            lambda x: x.flatten(start=1)[:, 0] > 0.5, ep.astensor(images), 50, half
        )
    np.testing.assert_allclose(directions.raw.flatten(1).norm(dim=1), 1, rtol=1e-5)


def test_the_shifts() -> None:
    assert len(set(shifts(1))) == len(shifts(1)) == 5
    assert len(set(shifts(2))) == len(shifts(2)) == 9
    assert set(shifts(1)) == {(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)}
    assert {abs(dx) + abs(dy) for dx, dy in shifts(3)[1:]} == {3}


class Bright(nn.Module):
    """Class 1 where the pixel at (row, column) is bright; with no place, where any pixel is."""

    def __init__(self, *place: int) -> None:
        super().__init__()
        self.place: tuple[Any, ...] = place

    def forward(self, images: Tensor) -> Tensor:
        seen = images[:, 0][(slice(None), *self.place)] if self.place else images.flatten(1).amax(1)
        return torch.stack([0.5 - seen, seen - 0.5], 1)


def test_augmentation_scores_by_hand() -> None:
    dot, edge = torch.zeros(2, 3, 6, 6)
    dot[:, 3, 3] = 1
    edge[:, 0] = 1
    images, ones = torch.stack([dot, edge]), torch.ones(2, dtype=torch.int64)
    np.testing.assert_allclose(augmentation_scores(Bright(3, 3), images, ones, device=CPU), [1 / 5, 0])
    np.testing.assert_allclose(augmentation_scores(Bright(3, 3), images, 0 * ones, device=CPU), [4 / 5, 1])
    # A shift down repeats the edge above it; only the shift up takes the bright row away.
    np.testing.assert_allclose(augmentation_scores(Bright(0, 2), images, ones, device=CPU), [0, 4 / 5])
    np.testing.assert_allclose(augmentation_scores(Bright(5, 3), images, ones, device=CPU, distance=2), [1 / 9, 0])


def test_augmentation_of_a_model_that_does_not_see_shifts_is_correctness() -> None:
    images = torch.zeros(8, 3, 6, 6)
    images[::2, :, 3, 3] = 1
    labels = torch.tensor([1, 0, 0, 1, 1, 1, 0, 0])
    correct = predicted(Bright(), images) == labels
    assert 0 < correct.sum() < 8
    np.testing.assert_array_equal(augmentation_scores(Bright(), images, labels, device=CPU, distance=2), correct)


# Only labels are asked, and counted


class Scaled(nn.Module):
    """The same labels at other confidences; counts the images it is shown."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor, self.shown = model, factor, 0

    def forward(self, images: Tensor) -> Tensor:
        assert images.min() >= 0
        assert images.max() <= 1
        self.shown += len(images)
        return self.factor * self.model(images)


def test_confidences_are_never_seen_and_labels_are_counted() -> None:
    images = random_images(6, 8).sub(0.3).mul(4).clamp(0, 1)  # many pixels lie on the edge of the box
    labels = predicted(Net(), images)
    quiet, loud = Scaled(Net(), 0.125), Scaled(Net(), 64)
    answers = LabelOnly(loud)(images)
    assert sorted(answers.unique().tolist()) == [0, 1]
    assert torch.equal(answers.argmax(1), labels)
    loud.shown = 0
    found, same = attack(quiet, images, labels), attack(loud, images, labels)
    np.testing.assert_array_equal(found.distances, same.distances)
    assert found.queries == quiet.shown == loud.shown


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    model, images = Net(), random_images(6, 8)
    labels = predicted(model, images)
    before = torch.random.get_rng_state()
    first = attack(model, images, labels)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    np.testing.assert_array_equal(attack(model, images, labels).distances, first.distances)
    assert (attack(model, images, labels, seed=1).distances != first.distances).all()


def test_the_seed_decides_the_search_itself_anew_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.attacks.boundary, "NOISE_STARTS", 0)  # so that every seed starts from the same places
    model, images = Net(), random_images(6, 8)
    images, starts = torch.cat([images, images]), torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = predicted(model, images)
    first, other = (
        boundary_distances(model, images, labels, steps=2, seed=seed, device=CPU, starts=starts, batch=6) for seed in (0, 1)
    )
    assert not first.failed.any()
    assert (first.distances != other.distances).all()
    assert (first.distances[:6] != first.distances[6:]).all()


# Table VI: Diffence keeps every label, so these attacks get the same answers


def noisy(images: Tensor, queries: Tensor, numbers: Tensor) -> Tensor:
    """A cheap reconstructor: noise of each query's and candidate's own."""
    where = (queries * 131 + numbers * 17)[:, None] + torch.arange(images[0].numel())
    return (images + 0.3 * torch.sin(where.double() ** 1.5).view_as(images).to(images)).clamp(0, 1)


@pytest.mark.parametrize("selector", [Selector("3"), Selector("1", 0.2, 1.0)])
def test_diffence_leaves_label_only_answers_unchanged(selector: Selector) -> None:
    model, images = Net(), random_images(8, 8)
    labels = predicted(model, images)
    labels[:2] = (labels[:2] + 1) % 4
    protected = ProtectedClassifier(model, noisy, selector, n=3)
    assert ((protected(images) - model(images)).abs().amax(1) > 0.1).float().mean() > 0.5  # confidences do change
    without, with_diffence = attack(model, images, labels), attack(protected, images, labels)
    np.testing.assert_array_equal(with_diffence.distances, without.distances)
    assert (without.distances[2:] > 0).all()
    assert with_diffence.queries == without.queries
    for score in (gap, lambda one, x, y: augmentation_scores(one, x, y, device=CPU)):
        np.testing.assert_array_equal(score(protected, images, labels), score(model, images, labels))


def gap(model: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    return METRIC_ATTACKS["correctness"](Outputs(LabelOnly(model)(images).double().numpy(), labels.numpy()))


# Refusals


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x, y: attack(Net(), x, y, 0), "at least 1 step, not 0"),
        (lambda x, y: attack(Net(), x, y[:3]), r"4 images need as many labels, not \[3\]"),
        (lambda x, y: attack(Net(), 255 * x, y), r"lie in \[0, 1\]"),
        (lambda x, y: attack(Net(), x, y, starts=x[:, :, :4]), r"starts \[4, 3, 4, 8\] do not fit images \[4, 3, 8, 8\]"),
        (lambda x, y: attack(nn.Sequential(Net(), nn.Threshold(99, torch.nan)), x, y), "NaN or infinite logits"),
        (lambda x, y: augmentation_scores(Net(), x, y[:3], device=CPU), "as many labels"),
        (lambda x, y: augmentation_scores(Net(), x, y, device=CPU, distance=0), "at least 1 pixel, not 0"),
    ],
)
def test_refuses(call: Callable[[Tensor, Tensor], object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        call(random_images(4, 8), torch.zeros(4, dtype=torch.int64))
