"""DP-SGD: clipping, noise, Poisson batches, the privacy spent, plain SGD as the limit, GroupNorm, and resuming."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BATCH, SMALLEST, defense_run, random_examples, random_split, same, snapshot, stop_after
from scipy.stats import chi2
from torch import nn
from torch.nn.functional import cross_entropy

from common.config import Data, Model
from common.defenses import DEFENSES, dpsgd
from common.defenses.dpsgd import DPSGD, Options, PrivateOptions, with_group_norm
from common.errors import UserError
from common.run import Run
from common.training.loop import Objective, predict
from common.training.targets import load_target, options_of

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

CPU = torch.device("cpu")
MEMBERS = 48
DATA = Data(members=MEMBERS, reference=8, non_members=24, fit=4, known=4, scored=4)


def make_run(folder: Path, model: Model = SMALLEST, epochs: int = 3, **options: Any) -> Run:
    return defense_run(folder, "dpsgd", DATA, options, model=model, epochs=epochs)


def private(run: Run) -> DPSGD:
    objective = DPSGD(dpsgd.build(run), random_split(DATA).members, run.config.train, CPU, options_of(run, "dpsgd", Options))
    objective.model.train()
    return objective


def in_float64(objective: Objective) -> None:
    """Make the weights and the layers of an objective float64, in place. The images come as float32."""
    objective.model.double().register_forward_pre_hook(lambda _, images: (images[0].double(),))


def test_without_noise_and_clipping_it_is_plain_sgd(tmp_path: Path) -> None:
    """In float64, because GroupNorm magnifies the rounding of float32 where a group hardly varies."""
    run = make_run(tmp_path, noise_multiplier=0.0, max_grad_norm=1e9)
    made = private(run)
    plain = Objective(dpsgd.build(run), random_split(DATA).members, run.config.train, CPU)
    plain.model.train()
    in_float64(made)
    in_float64(plain)
    made.dp_optimizer.original_optimizer = torch.optim.SGD(made.model.parameters(), lr=0.01)
    plain.optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.01)
    for index in Objective.batches(plain):  # not Poisson: three full batches
        got, want = made.step(index, 0), plain.step(index, 0)
        assert got == pytest.approx(want, rel=1e-5)
    start = dict(dpsgd.build(run).named_parameters())
    for name, parameter in plain.model.named_parameters():
        torch.testing.assert_close(made.model.get_parameter(name), parameter, atol=1e-7, rtol=0)
        assert not torch.equal(start[name].double(), parameter), name


def test_clipping(tmp_path: Path) -> None:
    """Per-sample gradients 3C u and 0.5C v sum to C u + 0.5C v, the norm being taken over all parameters together."""
    clip = 1.5
    optimizer = private(make_run(tmp_path, max_grad_norm=clip)).dp_optimizer
    shapes = [parameter.shape for parameter in optimizer.params]
    sizes = [shape.numel() for shape in shapes]
    u, v = torch.nn.functional.normalize(torch.randn(2, sum(sizes), generator=torch.Generator().manual_seed(0)), dim=1)
    samples = torch.stack([3 * clip * u, 0.5 * clip * v])
    for parameter, part in zip(optimizer.params, samples.split(sizes, dim=1), strict=True):
        parameter.grad_sample = part.view(2, *parameter.shape)
    optimizer.clip_and_accumulate()
    summed = torch.cat([parameter.summed_grad.flatten() for parameter in optimizer.params])
    torch.testing.assert_close(summed, clip * u + 0.5 * clip * v, rtol=1e-5, atol=1e-8)


def test_noise_has_the_variance_of_the_accountant(tmp_path: Path) -> None:
    """Empty batches have zero gradients: p.grad * expected batch size is N(0, (sigma C)^2) in every coordinate."""
    objective = private(make_run(tmp_path, noise_multiplier=0.7, max_grad_norm=2.0))
    torch.manual_seed(0)
    squares, count = 0.0, 0
    for _ in range(5):
        objective.step(torch.empty(0, dtype=torch.int64), 0)
        noise = torch.cat([p.grad.flatten() for p in objective.model.parameters() if p.grad is not None]) * BATCH
        squares, count = squares + (noise.double() / (0.7 * 2.0)).square().sum().item(), count + len(noise)
        assert noise.mean().item() == pytest.approx(0, abs=5 * 1.4 / math.sqrt(len(noise)))
    assert chi2.ppf(0.0005, count) < squares < chi2.ppf(0.9995, count)


def test_poisson_batches(tmp_path: Path) -> None:
    """Sizes of mean q n and variance n q (1 - q); every member is as likely; n // B batches an epoch."""
    objective = private(make_run(tmp_path))
    torch.manual_seed(0)
    batches = [index for _ in range(400) for index in objective.batches()]
    assert len(batches) == 400 * (MEMBERS // BATCH)
    sizes = torch.tensor([float(len(index)) for index in batches])
    q = BATCH / MEMBERS
    variance = MEMBERS * q * (1 - q)
    assert sizes.mean().item() == pytest.approx(MEMBERS * q, abs=4 * math.sqrt(variance / len(sizes)))
    assert sizes.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / len(sizes)))
    counts = torch.bincount(torch.cat(batches), minlength=MEMBERS).double()
    assert (counts - len(batches) * q).abs().max() < 4.5 * math.sqrt(len(batches) * q * (1 - q))
    assert all(len(index.unique()) == len(index) for index in batches[:20])


def test_an_empty_batch_is_a_step_of_noise(tmp_path: Path) -> None:
    for model in (SMALLEST, Model("vit", width=8, depth=1)):
        objective = private(make_run(tmp_path, model))
        before = snapshot(objective.model)
        assert objective.step(torch.empty(0, dtype=torch.int64), 0) == (0.0, 0)
        after = objective.model.state_dict()
        assert all(value.isfinite().all() for value in after.values())
        assert all(not torch.equal(before[name], after[name]) for name, _ in objective.model.named_parameters())
        assert objective.facts()["steps"] == 1


def test_the_sum_is_divided_by_the_expected_batch_size(tmp_path: Path) -> None:
    """A batch of 4 where 16 are expected: a quarter of the gradient of the mean loss."""
    objective = private(make_run(tmp_path, noise_multiplier=0.0, max_grad_norm=1e9))
    index = torch.arange(4)
    logits = objective.model(objective.members.pixels(index))
    names, parameters = zip(*objective.model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(cross_entropy(logits, objective.members.labels[index]), parameters)
    objective = private(make_run(tmp_path, noise_multiplier=0.0, max_grad_norm=1e9))
    objective.step(index, 0)
    for name, gradient in zip(names, wanted, strict=True):
        torch.testing.assert_close(objective.model.get_parameter(name).grad, gradient / 4, atol=1e-6, rtol=1e-4)


def test_physical_batches_do_not_change_the_step(tmp_path: Path) -> None:
    made = []
    for physical in (256, 16, 5):
        objective = private(make_run(tmp_path, noise_multiplier=0.3, max_grad_norm=0.2, physical_batch=physical))
        torch.manual_seed(1)
        loss, correct = objective.step(torch.arange(16), 0)
        gradients = torch.cat([p.grad.flatten() for p in objective.model.parameters() if p.grad is not None])
        made.append((loss, correct, gradients, objective.facts()["steps"]))
    for loss, correct, gradients, steps in made[1:]:
        assert (loss, correct, steps) == (pytest.approx(made[0][0], rel=1e-5), made[0][1], 1)
        torch.testing.assert_close(gradients, made[0][2], atol=1e-6, rtol=1e-4)


def epsilon(objective: DPSGD, noise: float, rate: float, steps: int) -> float:
    objective.accountant.history = [(noise, rate, steps)]
    return float(objective.facts()["epsilon"])


def test_epsilon(tmp_path: Path) -> None:
    """The paper's CIFAR-10 schedule: 100 epochs of 195.3 batches, q = 128 / 25000."""
    objective = private(make_run(tmp_path))
    schedule = 0.00512, 19_531
    assert epsilon(objective, 1.0, *schedule) == pytest.approx(4.52, abs=0.02)
    assert epsilon(objective, 0.1, *schedule) == pytest.approx(1.1e5, rel=0.05)
    assert epsilon(objective, 0.8, *schedule) > epsilon(objective, 1.0, *schedule) > epsilon(objective, 1.2, *schedule)
    assert epsilon(objective, 1.0, 0.00512, 30_000) > epsilon(objective, 1.0, *schedule)
    assert epsilon(objective, 1.0, 0.01, 19_531) > epsilon(objective, 1.0, *schedule)


def test_facts(tmp_path: Path) -> None:
    run = make_run(tmp_path, noise_multiplier=1.1, epochs=1)
    model = dpsgd.train(run, random_split(DATA))
    facts = torch.load(run.models_dir / "dpsgd.pt", weights_only=True)["facts"]
    assert {name: facts[name] for name in ("delta", "noise_multiplier", "sample_rate", "steps")} == {
        "delta": 1e-5,
        "noise_multiplier": 1.1,
        "sample_rate": BATCH / MEMBERS,
        "steps": 3,
    }
    assert 1 < facts["epsilon"] < 20
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())  # Opacus is gone from the classifier returned
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    silent = private(make_run(tmp_path, noise_multiplier=0.0))
    silent.step(torch.arange(4), 0)
    assert silent.facts()["epsilon"] is None


def test_target_epsilon_is_met(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=2, target_epsilon=8.0)
    dpsgd.train(run, random_split(DATA))
    facts = torch.load(run.models_dir / "dpsgd.pt", weights_only=True)["facts"]
    assert 7.9 < facts["epsilon"] <= 8
    assert facts["noise_multiplier"] > 0.3
    with pytest.raises(UserError, match="target_epsilon"):
        private(make_run(tmp_path, target_epsilon=1e-4))


def test_the_private_setting_is_a_defense_of_its_own(tmp_path: Path) -> None:
    """`--defense dpsgd-private` spends at most 8 without an option set, and lies beside the paper's setting."""
    run = make_run(tmp_path, epochs=2)
    defense = DEFENSES["dpsgd-private"]
    defense.train(run, random_split(DATA))
    path = run.models_dir / "dpsgd-private.pt"
    assert 7.9 < torch.load(path, weights_only=True)["facts"]["epsilon"] <= 8
    assert not (run.models_dir / "dpsgd.pt").exists()
    load_target(run, "dpsgd-private", "clean", defense.build(run))


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_samples_do_not_see_each_other(tmp_path: Path, name: str) -> None:
    """No BatchNorm is left: altering the other samples of a batch leaves a sample's gradient as autograd has it alone."""
    objective = private(make_run(tmp_path, Model(name, width=8, depth=1)))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in objective.model.modules())
    for module in objective.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images, labels = torch.rand(3, 3, 32, 32), torch.tensor([1, 2, 3])
    others = torch.cat([images[:1], torch.rand(2, 3, 32, 32)])
    parameters = list(objective.model.parameters())
    made = []
    for batch in (images, others):
        objective.dp_optimizer.zero_grad()
        cross_entropy(objective.model(batch), labels).backward()
        made.append([parameter.grad_sample[0] for parameter in parameters])  # type: ignore[attr-defined]
    objective.grad_sample_module.disable_hooks()
    alone = torch.autograd.grad(cross_entropy(objective.model(images[:1]), labels[:1]), parameters)
    for first, second, wanted in zip(*made, alone, strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(first, wanted, atol=1e-6, rtol=1e-4)


def test_every_parameter_of_the_fixed_model_is_trained(tmp_path: Path) -> None:
    """In the released code GroupNorm came after the optimiser and stayed at 1 and 0."""
    run = make_run(tmp_path)
    assert same(dpsgd.build(run).state_dict(), dpsgd.build(run).state_dict())
    norms = [module for module in dpsgd.build(run).modules() if isinstance(module, nn.GroupNorm)]
    assert {(norm.num_groups, norm.num_channels) for norm in norms} == {(4, 4), (8, 8), (16, 16), (32, 32)}
    fewer = [module for module in dpsgd.build(make_run(tmp_path, groups=2)).modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_groups for norm in fewer} == {2}
    with pytest.raises(UserError, match="groups = 3 does not divide"):
        dpsgd.build(make_run(tmp_path, groups=3))
    objective = private(run)
    held = {id(parameter) for group in objective.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in objective.model.parameters()}


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = Model(name, width=8, depth=1)
    straight, killed = make_run(tmp_path / "a", model), make_run(tmp_path / "b", model)
    made = dpsgd.train(straight, random_split(DATA))
    for _ in range(2):  # after the first epoch, then after the second
        with monkeypatch.context() as patch:
            patch.setattr(DPSGD, "batches", stop_after(1, DPSGD.batches))
            with pytest.raises(KeyboardInterrupt):
                dpsgd.train(killed, random_split(DATA))
    dpsgd.train(killed, random_split(DATA))
    a, b = (torch.load(run.models_dir / "dpsgd.pt", weights_only=True) for run in (straight, killed))
    assert same(a["model"], b["model"])
    assert a["facts"] == b["facts"]
    assert a["facts"]["steps"] == 9
    assert [row["loss"] for row in a["history"]] == [row["loss"] for row in b["history"]]
    loaded = load_target(killed, "dpsgd", "clean", dpsgd.build(killed))  # plain keys
    members = random_split(DATA).members
    # `made` was trained contiguous, `loaded` serves in channels_last: the same weights, rounded differently.
    torch.testing.assert_close(predict(loaded, members, CPU), predict(made, members, CPU), atol=1e-5, rtol=1e-3)
    load_target(killed, "dpsgd", "released", dpsgd.build(killed))


def test_a_batch_larger_than_the_members(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(UserError, match="batch_size = 16 exceeds the 10 members"):
        DPSGD(dpsgd.build(run), random_examples(10, 0), run.config.train, CPU, Options())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"noise_multiplier": -0.1}, "noise_multiplier"),
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"target_epsilon": -1.0}, "target_epsilon"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"physical_batch": 0}, "physical_batch"),
        ({"groups": -1}, "groups"),
        ({"sigma": 1.0}, "sigma"),
    ],
)
def test_refusals(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        options_of(make_run(tmp_path, **options), "dpsgd", Options)


def test_a_refusal_names_the_setting_that_was_given() -> None:
    with pytest.raises(UserError, match=r"defenses\.dpsgd-private\.delta must"):
        PrivateOptions(delta=0.0)
    with pytest.raises(UserError, match=r"defenses\.dpsgd-private\.groups = 3 does not divide"):
        with_group_norm(nn.Sequential(nn.BatchNorm2d(4)), PrivateOptions(groups=3))
