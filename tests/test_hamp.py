"""HAMP against its soft-label table, closed-form gradients, and the output modification's invariants."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import defense_run, random_examples, random_split
from torch import nn

from common.config import Data, Train
from common.defenses import hamp
from common.errors import UserError
from common.metrics.calibration import ece
from common.run import Run
from common.training.loop import Objective, fit, predict
from common.training.targets import load_target, options_of, settings_of, target_classifier

DATA = Data(members=48, reference=8, non_members=32, fit=4, known=4, scored=4)
# classes, gamma, the true class's share after the released search, its entropy above gamma log C, the exact share
TABLE = [
    (10, 0.5, 0.73, 0.0252, 0.73785),
    (10, 0.6, 0.66, 0.0065, 0.66228),
    (10, 0.7, 0.57, 0.0163, 0.57655),
    (10, 0.8, 0.47, 0.0138, 0.47661),
    (10, 0.9, 0.35, 0.0033, 0.35210),
    (10, 0.95, 0.26, 0.0115, 0.26981),
    (10, 0.99, 0.17, 0.00002, 0.17004),
    (100, 0.5, 0.64, 0.0051, 0.64098),
    (100, 0.6, 0.54, 0.0406, 0.54851),
    (100, 0.7, 0.44, 0.0356, 0.44814),
    (100, 0.8, 0.33, 0.0288, 0.33737),
    (100, 0.9, 0.20, 0.0318, 0.20983),
    (100, 0.95, 0.13, 0.0092, 0.13341),
    (100, 0.99, 0.05, 0.0048, 0.05283),
]


def make_run(folder: Path, **options: Any) -> Run:
    return defense_run(folder, "hamp", DATA, options, epochs=2)


def objective(options: hamp.Options, classes: int = 10) -> hamp.Hamp:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))
    soft = hamp.soft_labels(classes, options.gamma, options.search)
    return hamp.Hamp(model, random_examples(8, 0), Train(), torch.device("cpu"), options, soft.double())


def loss_and_gradient(options: hamp.Options, logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    z = logits.clone().requires_grad_()
    loss = objective(options, logits.shape[1]).loss(z, labels, torch.arange(len(labels)), 0)
    loss.backward()
    assert z.grad is not None
    return loss.item(), z.grad


# Soft labels


@pytest.mark.parametrize(("classes", "gamma", "released", "excess", "exact"), TABLE)
def test_soft_label_table(classes: int, gamma: float, released: float, excess: float, exact: float) -> None:
    top = hamp.top_probability(classes, gamma)
    assert top == released
    assert entropy(classes, top) - gamma * math.log(classes) == pytest.approx(excess, abs=6e-5)
    assert 0 <= entropy(classes, top) - gamma * math.log(classes) < 0.06
    top = hamp.top_probability(classes, gamma, "exact")
    assert top == pytest.approx(exact, abs=6e-6)
    assert entropy(classes, top) == pytest.approx(gamma * math.log(classes), abs=1e-9)


def entropy(classes: int, top: float) -> float:
    p = np.append(np.full(classes - 1, (1 - top) / (classes - 1)), top)
    return float(-(p * np.log(p)).sum())


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_soft_labels_lead_at_the_true_class_and_are_equal_elsewhere(classes: int) -> None:
    soft = hamp.soft_labels(classes, 0.8)
    assert soft.shape == (classes, classes)
    assert torch.equal(soft.argmax(1), torch.arange(classes))
    torch.testing.assert_close(soft.sum(1), torch.ones(classes))
    off = soft[~torch.eye(classes, dtype=torch.bool)]
    assert (off == off[0]).all()
    assert off[0] > 0


def test_the_released_search_moves_at_least_one_step() -> None:
    assert hamp.top_probability(10, 0.0) == 0.99
    assert hamp.top_probability(10, 0.0, "exact") == 1.0
    assert torch.equal(hamp.soft_labels(10, 0.0, "exact"), torch.eye(10))


def test_a_gamma_that_no_step_of_the_search_reaches_is_refused() -> None:
    """Seven classes: 1/7 is no multiple of 0.01, and the entropy nearest to uniform falls short of .999999 log 7."""
    with pytest.raises(UserError, match=r"gamma = 0.999999 leaves no lead to the true class among 7 classes"):
        hamp.soft_labels(7, 0.999999)


def test_a_true_class_without_lead_is_refused() -> None:
    with pytest.raises(UserError, match=r"gamma = 0.9999 leaves no lead to the true class among 10 classes"):
        hamp.top_probability(10, 0.9999)
    assert hamp.top_probability(10, 0.9999, "exact") > 0.1


# The loss


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_gradient_per_sample_is_the_closed_form(alpha: float) -> None:
    """d/dz of KL(y' || p) - alpha H(p) is (p - y') + alpha p (log p + H(p)), over B for a mean over images."""
    z, labels = torch.randn(6, 10, dtype=torch.float64) * 3, torch.arange(6)
    options = hamp.Options(alpha=alpha, scaling="per_sample")
    loss, gradient = loss_and_gradient(options, z, labels)
    log_p = z.log_softmax(1)
    p, soft = log_p.exp(), hamp.soft_labels(10, 0.8).double()[labels]
    h = -(p * log_p).sum(1, keepdim=True)
    torch.testing.assert_close(gradient * 6, (p - soft) + alpha * p * (log_p + h), atol=1e-7, rtol=0)
    assert loss == pytest.approx(float(((soft * (soft.log() - log_p)).sum(1) - alpha * h[:, 0]).mean()), abs=1e-7)


@pytest.mark.parametrize("scaling", ["released", "per_sample"])
def test_gradient_against_finite_differences(scaling: Any) -> None:
    torch.manual_seed(1)
    z, labels = torch.randn(2, 10, dtype=torch.float64), torch.tensor([3, 7])
    made = objective(hamp.Options(alpha=0.2, scaling=scaling))
    assert torch.autograd.gradcheck(lambda x: made.loss(x, labels, labels, 0), z.requires_grad_())


def test_released_scaling_is_the_per_sample_loss_over_c_with_c_times_alpha() -> None:
    for classes in (10, 100):
        z, labels = torch.randn(6, classes, dtype=torch.float64), torch.arange(6)
        released = loss_and_gradient(hamp.Options(alpha=0.001), z, labels)
        equal = loss_and_gradient(hamp.Options(alpha=0.001 * classes, scaling="per_sample"), z, labels)
        assert released[0] == pytest.approx(equal[0] / classes, rel=1e-9)
        torch.testing.assert_close(released[1], equal[1] / classes)
        same_alpha = loss_and_gradient(hamp.Options(alpha=0.001, scaling="per_sample"), z, labels)
        assert not torch.allclose(released[1], same_alpha[1] / classes, rtol=1e-6, atol=0)


def test_without_entropy_term_the_optimum_is_the_soft_label() -> None:
    made = objective(hamp.Options(alpha=0.0, scaling="per_sample"))
    z, label = torch.zeros(1, 10, dtype=torch.float64, requires_grad=True), torch.tensor([4])
    optimizer = torch.optim.LBFGS([z], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = made.loss(z, label, label, 0)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    torch.testing.assert_close(z.softmax(1)[0].detach(), made.soft[4], atol=1e-5, rtol=0)
    assert made.loss(z, label, label, 0).item() == pytest.approx(0, abs=1e-7)


def test_confident_logits_give_finite_gradients() -> None:
    loss, gradient = loss_and_gradient(hamp.Options(), torch.eye(10) * 1e4, torch.arange(10).flip(0))
    assert math.isfinite(loss)
    assert gradient.isfinite().all()


def test_training_makes_confidences_low_and_calibration_worse(tmp_path: Path) -> None:
    members, config = random_examples(64, 5), Train(epochs=60, batch_size=32)
    plain = Objective(linear(), members, config, torch.device("cpu"))
    options = hamp.Options()
    high = hamp.Hamp(linear(), members, config, torch.device("cpu"), options, hamp.soft_labels(10, options.gamma))
    errors, confidence = [], []
    for name, made in (("plain", plain), ("hamp", high)):
        fit(made, tmp_path / f"{name}.pt", {}, 0, "")
        p = predict(made.model, members, torch.device("cpu")).softmax(1)
        assert (p.argmax(1) == members.labels).all()
        errors.append(ece(p.numpy(), members.labels.numpy()))
        confidence.append(float(p.max(1).values.mean()))
    assert errors[1] > 3 * errors[0]
    assert confidence[0] > 0.9
    assert confidence[1] == pytest.approx(0.47, abs=0.05)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072), nn.Linear(3072, 10))


# The output modification


def test_output_modification_keeps_ranks_and_takes_the_random_images_logits(tmp_path: Path) -> None:
    run = make_run(tmp_path, test_time=True)
    modified, plain = hamp.build(run).eval(), target_classifier(run).eval()
    assert isinstance(modified, hamp.OutputModification)
    images = random_examples(40, 7).pixels(slice(None))
    with torch.no_grad():
        before, after = plain(images), modified(images)
        random_logits = plain(modified.random_images(images))
    assert torch.equal(after.argsort(1), before.argsort(1))
    assert torch.equal(after.sort(1).values, random_logits.sort(1).values)
    assert not torch.allclose(after, before)


def test_tied_logits_keep_all_values() -> None:
    class Ties(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, 0, :4].mul(255).round().sub(128).sign()  # only -1, 0 and 1: ties in most rows

    base = hamp.Classifier(Ties(), (0.0,) * 3, (1.0,) * 3)
    modified = hamp.OutputModification(base, 0)
    images = random_examples(50, 8).pixels(slice(None))
    assert torch.equal(modified(images).sort(1).values, base(modified.random_images(images)).sort(1).values)


def test_the_same_image_gets_the_same_answer(tmp_path: Path) -> None:
    modified = hamp.OutputModification(hamp.Classifier(nn.Identity(), (0.0,) * 3, (1.0,) * 3), 0)
    images = random_examples(6, 9).pixels(slice(None))
    torch.manual_seed(123)
    first = modified.random_images(images)
    assert torch.equal(first, modified.random_images(images))  # asked again, whatever was drawn between
    assert torch.equal(first[3:4], modified.random_images(images[3:4]))  # alone or in a batch
    for rounding in (1e-7, -1e-7):  # another device divides pixels by 255 a little differently
        assert torch.equal(first, modified.random_images(images + rounding))
    other = hamp.OutputModification(hamp.Classifier(nn.Identity(), (0.0,) * 3, (1.0,) * 3), 1).random_images(images)
    assert len({image.numpy().tobytes() for image in (*first, *other)}) == 12


def test_random_images_are_uniform_over_all_256_values() -> None:
    modified = hamp.OutputModification(hamp.Classifier(nn.Identity(), (0.0,) * 3, (1.0,) * 3), 0)
    drawn = modified.random_images(torch.linspace(0, 1, 50)[:, None, None, None].expand(50, 3, 32, 32))
    counts = np.bincount(drawn.mul(255).round().long().flatten().numpy(), minlength=256)
    assert len(counts) == 256
    assert counts.min() > 450  # 600 expected, standard deviation 24.4
    assert counts.max() < 750


# Training, options, refusals


def test_train_writes_a_checkpoint_that_both_modules_load(tmp_path: Path) -> None:
    run, split = make_run(tmp_path), random_split(DATA)
    trained = hamp.train(run, split)
    logits = predict(trained, split.non_members, run.device)
    plain = load_target(run, "hamp", "clean", hamp.build(run))
    assert torch.equal(predict(plain, split.non_members, run.device), logits)
    assert load_target(run, "hamp", "released", hamp.build(run))

    inner = target_classifier(run)
    assert isinstance(inner, hamp.Classifier)
    modified = load_target(run, "hamp", "clean", hamp.OutputModification(inner, run.seed))
    assert modified.state_dict().keys() == plain.state_dict().keys()
    hidden = predict(modified, split.non_members, run.device)
    assert torch.equal(hidden.argmax(1), logits.argmax(1))
    assert not torch.allclose(hidden, logits)


def test_train_uses_its_own_loss_and_options(tmp_path: Path) -> None:
    losses = []
    for name, options in (("a", {}), ("b", {"gamma": 0.5}), ("c", {"scaling": "per_sample"}), ("d", {"search": "exact"})):
        run = make_run(tmp_path / name, **options)
        hamp.train(run, random_split(DATA))
        checkpoint = torch.load(run.models_dir / "hamp.pt", weights_only=True)
        assert checkpoint["settings"] == settings_of(run, "hamp")
        losses.append(checkpoint["history"][-1]["loss"])
    assert len(set(losses)) == 4


def test_build_answers_plainly_unless_asked(tmp_path: Path) -> None:
    assert type(hamp.build(make_run(tmp_path))) is hamp.Classifier
    assert hamp.Options() == hamp.Options(0.8, 0.001, "released", "released", False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gamma": 1.0}, r"defenses.hamp.gamma must lie in 0..1, 1 excluded, not 1.0."),
        ({"gamma": -0.1}, r"defenses.hamp.gamma must lie in 0..1"),
        ({"alpha": -1.0}, r"defenses.hamp.alpha must not be negative, not -1.0."),
        ({"scaling": "batch"}, r"defenses.hamp: .*batch"),
        ({"gama": 0.5}, r"defenses.hamp: .*gama"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        options_of(make_run(tmp_path, **options), "hamp", hamp.Options)
