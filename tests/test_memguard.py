"""MemGuard's answers: both phases against the paper's rules, closed forms and a plain loop over single answers."""

import math
import runpy
from typing import Any

import pytest
import torch
from conftest import CLASSES, ROOT, random_examples
from torch import Tensor, nn

from common.defenses.memguard import Guard, MemGuard, Options, find_noise
from common.seeds import image_keys

PLAIN = runpy.run_path(str(ROOT / "benchmarks" / "memguard.py"))


def answers(count: int, classes: int = CLASSES, seed: int = 0) -> Tensor:
    """Logits [count, classes] float64 with the label anywhere, the even ones as sure as members."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    margin = 2 + 6 * torch.rand(count, generator=generator, dtype=torch.float64) + 3 * (torch.arange(count) % 2 == 0)
    label = torch.randint(classes, (count, 1), generator=generator)
    return logits.scatter_add(1, label, margin[:, None])


@pytest.fixture(scope="module")
def guard() -> Guard:
    logits = answers(1000, seed=9)
    made: Guard = PLAIN["trained_guard"](logits, (torch.arange(1000) % 2 == 0).float())
    return made


def protected(guard: nn.Module, seed: int = 0, **options: Any) -> MemGuard:
    return MemGuard(nn.Identity(), guard, Options(**options), seed)  # type: ignore[arg-type]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance [n] of two rows of logits, as distributions."""
    return (a.softmax(1) - b.softmax(1)).abs().sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_answer_is_a_distribution_with_the_same_label(guard: Guard, dtype: torch.dtype) -> None:
    logits = torch.cat([answers(200), 40 * answers(50, seed=1), torch.zeros(1, CLASSES), answers(50).round()]).to(dtype)
    released = protected(guard, steps=60).release(logits, torch.arange(len(logits)))
    assert released.dtype == dtype
    assert released.isfinite().all()
    assert (released <= 1e-6).all()
    torch.testing.assert_close(released.exp().sum(1), torch.ones(len(logits), dtype=dtype), atol=1e-6, rtol=0)
    assert torch.equal(released.argmax(1), logits.argmax(1))


def test_labels_survive_where_log_probabilities_tie() -> None:
    """float32 logits 1 ulp apart below 1 tie after subtracting their logsumexp above 2; the label is not the first."""
    logits = torch.full((1, 50), 0.5)
    logits[0, 7] = torch.nextafter(logits[0, 7], torch.tensor(1.0))
    assert logits.log_softmax(1).argmax().item() == 0
    released = protected(Guard(50, 0), epsilon=0.0).release(logits, torch.zeros(1, dtype=torch.int64))
    assert released.argmax().item() == 7
    torch.testing.assert_close(released, logits.log_softmax(1))


def test_success_moves_the_guess_across_one_half(guard: Guard) -> None:
    logits = answers(300)
    found = find_noise(guard, logits, 300)
    changed = (found != logits).any(1)
    assert changed.double().mean() > 0.9
    with torch.no_grad():
        before, after = guard(logits.softmax(1)), guard(found.softmax(1))
    assert (before * after <= 0)[changed].all()
    assert torch.equal(found.argmax(1), logits.argmax(1))
    assert (distance(found, logits) <= 2 + 1e-12).all()


@pytest.mark.parametrize("steps", [200, 40, 3])
def test_batched_is_the_plain_loop(guard: Guard, steps: int) -> None:
    """The plain loop differentiates the whole loss by autograd. Short searches fail at some weight in some rows."""
    logits = answers(8, seed=2)
    plain = torch.stack([PLAIN["find_noise_single"](guard, row, steps) for row in logits])
    torch.testing.assert_close(find_noise(guard, logits, steps).softmax(1), plain.softmax(1), atol=1e-6, rtol=0)
    if steps == 3:
        assert (plain == logits).all(1).any()


class Scaled(nn.Module):
    """A guard whose guess is `factor` times another's: the smaller it is, the sooner the distortion outweighs it."""

    def __init__(self, guard: nn.Module, factor: float) -> None:
        super().__init__()
        self.guard, self.factor = guard, factor

    def forward(self, confidences: Tensor) -> Tensor:
        return self.factor * self.guard(confidences)


@pytest.mark.parametrize("factor", [0.1, 10.0, 1e3, 1e5])
def test_every_distortion_weight_from_a_tenth_to_100_000_is_tried(guard: Guard, factor: float) -> None:
    """The noise comes from the last weight that succeeds: 0.1 or 1 for the faintest guard here, 1e5 for the loudest."""
    logits, scaled = answers(4, seed=2), Scaled(guard, factor)
    plain = torch.stack([PLAIN["find_noise_single"](scaled, row, 60) for row in logits])
    assert (plain != logits).any(1).all()
    torch.testing.assert_close(find_noise(scaled, logits, 60).softmax(1), plain.softmax(1), atol=1e-6, rtol=0)


def test_the_surest_answers_are_searched_in_full_steps(guard: Guard) -> None:
    """36 nats and more ahead the softmax leaves a gradient of about 1e-15: its direction counts, not its length."""
    logits = answers(3, seed=4)
    logits[torch.arange(3), logits.argmax(1)] += 36
    found = find_noise(guard, logits, 600)
    assert (found != logits).any(1).all()
    assert torch.equal(found.argmax(1), logits.argmax(1))


class FirstClass(nn.Module):
    """Guesses a member where the first class has more than 0.2."""

    def forward(self, confidences: Tensor) -> Tensor:
        return 20 * (confidences[:, 0] - 0.2)


def test_a_search_that_meets_another_label_is_held_back_by_the_label_weight() -> None:
    """From 0.2 on down the first class is not the label of every answer: there the weight of the label decides."""
    logits = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, 0] += 5
    plain = torch.stack([PLAIN["find_noise_single"](FirstClass(), row, 200) for row in logits])
    assert (plain != logits).any(1).sum() >= 4
    torch.testing.assert_close(find_noise(FirstClass(), logits, 200).softmax(1), plain.softmax(1), atol=1e-6, rtol=0)


def test_permuting_classes_permutes_the_answer(guard: Guard) -> None:
    logits, order = answers(20, seed=3), torch.randperm(CLASSES, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(find_noise(guard, logits[:, order], 100), find_noise(guard, logits, 100)[:, order])


class Linear(nn.Module):
    """Two classes: the logit a (s1 - s2), with s1 the larger; it is 0 only where the label is lost."""

    def forward(self, confidences: Tensor) -> Tensor:
        return 3 * (confidences.amax(1) - confidences.amin(1))


def test_no_noise_where_every_flip_would_cost_the_label() -> None:
    logits = answers(30, classes=2, seed=5)
    assert torch.equal(find_noise(Linear(), logits, 300), logits)
    released = protected(Linear()).release(logits, torch.arange(30))
    assert torch.equal(released, logits.log_softmax(1))


class Flat(nn.Module):
    """A guess without any slope."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, confidences: Tensor) -> Tensor:
        return self.value + 0 * confidences.sum(1)


def test_a_vanishing_gradient_is_a_failure_and_no_nan(guard: Guard) -> None:
    logits = torch.zeros(3, CLASSES, dtype=torch.float64)
    logits[:, 2] = torch.tensor([5.0, 50.0, 5000.0])
    assert torch.equal(find_noise(Flat(1.0), logits, 50), logits)
    assert torch.equal(find_noise(Flat(1e-6), logits, 50), logits)
    assert find_noise(guard, logits, 300).isfinite().all()


class Near(nn.Module):
    """Its guess about logits (2, 0) lies `apart` from 1/2, and on the other side where the first class falls a little."""

    def __init__(self, apart: float) -> None:
        super().__init__()
        self.start = 4 * apart - torch.tensor(2.0, dtype=torch.float64).sigmoid()  # sigmoid(4 x) = 1/2 + x near 0

    def forward(self, confidences: Tensor) -> Tensor:
        return confidences[:, 0] + self.start


@pytest.mark.parametrize(("apart", "changed"), [(0.9e-5, False), (1.1e-5, True)])
def test_a_guess_within_1e_5_of_one_half_is_left_alone(apart: float, changed: bool) -> None:
    logits = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    assert bool((find_noise(Near(apart), logits, 5) != logits).any()) == changed


class Known(nn.Module):
    """The guess `sure` where the larger of two confidences exceeds 0.8, else `unsure`."""

    def __init__(self, sure: float, unsure: float) -> None:
        super().__init__()
        self.sure, self.unsure = sure, unsure

    def forward(self, confidences: Tensor) -> Tensor:
        return torch.where(confidences.amax(1) > 0.8, self.sure, self.unsure)


def test_chance_of_release() -> None:
    """d = 1.4: q = eps / d, at most 1; 0 where the noise leaves the guess as far from 1/2 on the other side."""
    true, noisy = (torch.tensor([row]).log() for row in ([0.9, 0.1], [0.2, 0.8]))
    for epsilon, chance in ((1.0, 1 / 1.4), (0.7, 0.5), (0.0, 0.0), (1.5, 1.0), (2.0, 1.0)):
        made = protected(Known(3.0, -1.0), epsilon=epsilon).release_probability(true, noisy)
        assert made.item() == pytest.approx(chance, rel=1e-5)
    assert protected(Known(3.0, -3.0)).release_probability(true, noisy).item() == 0
    assert protected(Known(1.0, -3.0)).release_probability(true, noisy).item() == 0
    assert protected(Known(3.0, -1.0)).release_probability(true, true).item() == 0


def test_the_mean_distortion_keeps_the_budget(guard: Guard) -> None:
    """Over many keys the same answer is released noisy with frequency q: a mean distortion of q d <= eps."""
    logits = answers(40, seed=6)
    noisy = find_noise(guard, logits, 20)
    far = distance(noisy, logits).argmax()
    d, draws = distance(noisy, logits)[far].item(), 2000
    row = logits[far : far + 1].expand(draws, -1)
    for epsilon in (d / 2, d / 5):
        made = protected(guard, epsilon=epsilon, steps=20)
        q = made.release_probability(row[:1], noisy[far : far + 1]).item()
        assert q == pytest.approx(epsilon / d)
        mean = distance(made.release(row, torch.arange(draws)), row).mean().item()
        assert mean == pytest.approx(q * d, abs=3 * d * math.sqrt(q * (1 - q) / draws))


def test_the_budgets_ends(guard: Guard) -> None:
    logits, keys = answers(60, seed=7), torch.arange(60)
    assert torch.equal(protected(guard, epsilon=0.0, steps=20).release(logits, keys), logits.log_softmax(1))
    noisy = find_noise(guard, logits, 100)
    everything = protected(guard, epsilon=2.0, steps=100)
    helps = everything.release_probability(logits, noisy) == 1
    assert helps.double().mean() > 0.8
    released = everything.release(logits, keys)
    assert torch.equal(released[helps], noisy.log_softmax(1)[helps])
    assert torch.equal(released[~helps], logits.log_softmax(1)[~helps])


def test_the_draw_is_fixed_by_key_and_seed(guard: Guard) -> None:
    row, keys = answers(2, seed=8)[:1].expand(200, -1), torch.arange(200)

    def noisy(made: MemGuard, keys: Tensor) -> list[bool]:
        return (distance(made.release(row, keys), row) > d / 2).tolist()

    d = distance(find_noise(guard, row[:1], 60), row[:1]).item()
    made = protected(guard, epsilon=d / 2, steps=60)
    first = noisy(made, keys)
    assert 70 < sum(first) < 130
    assert noisy(made, keys) == first
    assert noisy(made, keys.flip(0)) == first[::-1]
    assert len(set(noisy(made, torch.full((200,), -3)))) == 1
    assert noisy(protected(guard, seed=1, epsilon=d / 2, steps=60), keys) != first


def test_keys_name_images() -> None:
    images = random_examples(50, 0).pixels(slice(None))
    keys = image_keys(images)
    assert keys.dtype == torch.int64
    assert len(keys.unique()) == 50
    assert torch.equal(image_keys(images[3:9]), keys[3:9])
    assert torch.equal(image_keys(images.to(memory_format=torch.channels_last)), keys)
    assert not torch.equal(image_keys(images.flip(3)), keys)
