"""The served defense: lazy and eager release the same candidate, labels stay, noise is new, bad input is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.config import DDPM, Fallback
from common.diffence.ddpm import build_unet
from common.diffence.protect import ProtectedClassifier
from common.diffence.reconstruct import DiffusionReconstructor, draw_candidates
from common.diffence.select import ORIGINAL, CandidateLogits, Selector, fit_selector
from common.errors import UserError
from common.models import build_classifier
from common.pair import Pair

N = 6
INPUTS = 24


class Louder(nn.Module):
    """A classifier with its logits multiplied, so that candidates of an untrained one differ."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 20 * self.classifier(images)


def images(count: int, seed: int) -> torch.Tensor:
    """Noise on a colour of the image's own, [count, 3, 16, 16]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, 1, 1, generator=generator) + torch.rand(count, 3, 16, 16, generator=generator)) / 2


@pytest.fixture(scope="module")
def parts() -> tuple[nn.Module, DiffusionReconstructor]:
    """A tiny ResNet-18, whose BatchNorm knows the images, and a reconstructor with a tiny UNet."""
    torch.manual_seed(0)
    reconstruct = DiffusionReconstructor(build_unet(DDPM(channels=[8, 8], layers=1, attention=[], groups=4)))
    classifier = build_classifier("resnet18", 10, 4, 1, mean=(0.5,) * 3, std=(0.25,) * 3)
    with torch.no_grad():
        for seed in range(30):
            classifier.train()(images(64, seed))
    return Louder(classifier).eval(), reconstruct


def eager(parts: tuple[nn.Module, DiffusionReconstructor], x: torch.Tensor, queries: torch.Tensor) -> CandidateLogits:
    """Logits of the images and of all N candidates."""
    classifier, reconstruct = parts
    with torch.inference_mode():
        drawn = draw_candidates(reconstruct, x, queries, N, 50)
        candidates = classifier(drawn.flatten(0, 1)).view(len(x), N, -1).numpy()
        return CandidateLogits(classifier(x).numpy(), candidates)


def selector(parts: tuple[nn.Module, DiffusionReconstructor], scenario: str) -> Selector:
    members, others = (eager(parts, images(30, seed), torch.arange(30) + 1000 * seed) for seed in (51, 52))
    return fit_selector(scenario, Pair(members, others), js_bins=10)


# Lazy and eager


@pytest.mark.parametrize("fallback", ["original", "reorder"])
@pytest.mark.parametrize("scenario", ["1", "2", "3", "average"])
def test_lazy_and_eager_release_the_same(
    parts: tuple[nn.Module, DiffusionReconstructor], scenario: str, fallback: Fallback
) -> None:
    x, queries = images(INPUTS, 50), 7 * torch.arange(INPUTS)
    chosen = replace(selector(parts, scenario), fallback=fallback)
    whole = eager(parts, x, queries)
    expected = torch.from_numpy(chosen.release(whole.candidates, whole.original))
    if scenario != "average":  # the comparison means something: every kind of choice occurs, and candidates differ
        choice = chosen.choose(whole.candidates, whole.original.argmax(1))
        inside = chosen.draws(whole.candidates, whole.original.argmax(1)) < N
        assert (choice == ORIGINAL).any()
        assert (inside & (choice == 0)).any()
        assert (inside & (choice > 1)).any()
        if scenario != "3":
            assert (~inside & (choice >= 0) & (choice < N - 1)).any()
        assert min(np.ptp(row, axis=0).max() for row in whole.candidates) > 0.5
    for draws, batch in ((1, 256), (4, 256), (4, 5), (N, 256)):
        protected = ProtectedClassifier(*parts, chosen, N, draws, batch)
        torch.testing.assert_close(protected(x, queries).double(), expected.double(), atol=1e-4, rtol=0)
        if draws == 1:
            np.testing.assert_array_equal(protected.drawn, chosen.draws(whole.candidates, whole.original.argmax(1)))
        if draws == N:
            assert protected.drawn.tolist() == [N] * INPUTS  # all at once: no time tells anything
    one_by_one = ProtectedClassifier(*parts, chosen, N)
    released = torch.cat([one_by_one(x[[i]], queries[[i]]) for i in range(INPUTS)])
    torch.testing.assert_close(released.double(), expected.double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scenario", ["1", "2", "3"])
@pytest.mark.parametrize("n", [1, N])
def test_predictions_are_those_of_the_bare_classifier(
    parts: tuple[nn.Module, DiffusionReconstructor], scenario: str, n: int
) -> None:
    x = images(60, 53)
    bare = parts[0](x)
    protected = ProtectedClassifier(*parts, selector(parts, scenario), n)
    released = protected(x)
    assert torch.equal(released.argmax(1), bare.argmax(1))
    assert len(bare.argmax(1).unique()) >= 3
    unchanged = (released == bare).all(1).float().mean()
    assert unchanged < (0.9 if n == 1 else 0.3)


def test_it_is_an_ordinary_module(parts: tuple[nn.Module, DiffusionReconstructor]) -> None:
    protected = ProtectedClassifier(*parts, Selector("3"), N)
    assert isinstance(protected, nn.Module)
    assert {name.split(".")[0] for name, _ in protected.named_parameters()} == {"classifier", "reconstruct"}
    probabilities = nn.Sequential(protected, nn.Softmax(1))(images(2, 54))
    assert probabilities.shape == (2, 10)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


@pytest.mark.parametrize("scenario", ["3", "average"])
def test_answers_have_the_type_of_the_classifiers_logits(
    parts: tuple[nn.Module, DiffusionReconstructor], scenario: str
) -> None:
    assert ProtectedClassifier(*parts, Selector(scenario), 2)(images(3, 55)).dtype == torch.float32


def test_served_images_are_new_queries_unless_named(parts: tuple[nn.Module, DiffusionReconstructor]) -> None:
    x = images(8, 50)
    protected = ProtectedClassifier(*parts, Selector("average"), 2)
    first, named, second, third = protected(x), protected(x, torch.arange(8)), protected(x), protected(x[:1])
    torch.testing.assert_close(first, named, atol=1e-4, rtol=0)
    assert ((first - second).abs().amax(1) > 0.05).all()
    torch.testing.assert_close(second, protected(x, torch.arange(8, 16)), atol=1e-4, rtol=0)
    torch.testing.assert_close(third, protected(x[:1], torch.tensor([16])), atol=1e-4, rtol=0)


# Refusals


class Dark(nn.Module):
    """NaN for all but white images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.where(images[:, :1, 0, 0] == 1, torch.tensor([[2.0, 0.0]]), torch.nan)


def halve(images: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """A reconstructor, of a kind."""
    return images / 2


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (torch.rand(3, 8, 8), r"shape \[B, 3, H, W\].*not \[3, 8, 8\]"),
        (torch.rand(2, 1, 8, 8), r"not \[2, 1, 8, 8\]"),
        (torch.rand(2, 8, 8, 3), r"not \[2, 8, 8, 3\]"),
        (torch.rand(0, 3, 8, 8), r"B >= 1"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "divide bytes by 255"),
        (torch.full((1, 3, 8, 8), -0.1), r"lie in \[0, 1\], not in \[-0.1, -0.1\]"),
        (torch.linspace(0, 1.2, 192).view(1, 3, 8, 8), r"not in \[0, 1.2\]"),
        (torch.full((1, 3, 8, 8), float("nan")), r"lie in \[0, 1\]"),
    ],
)
def test_refuses_images(bad: torch.Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ProtectedClassifier(Dark(), halve, Selector("3"))(bad)


@pytest.mark.parametrize("brightness", [0.5, 1.0])
def test_refuses_nan_logits_of_images_and_of_candidates(brightness: float) -> None:
    with pytest.raises(UserError, match="NaN or infinite logits"):
        ProtectedClassifier(Dark(), halve, Selector("3"))(torch.full((1, 3, 1, 1), brightness))


@pytest.mark.parametrize("name", ["n", "draws", "batch"])
def test_refuses_settings_below_one(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be at least 1, not 0"):
        ProtectedClassifier(Dark(), halve, Selector("3"), **{name: 0})  # type: ignore[arg-type]
