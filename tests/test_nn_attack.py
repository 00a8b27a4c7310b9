"""The NN attack: planted signals against the best attack's closed form, no signal at all, and training as released."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, planted

from common.attacks import ATTACKS, NNOptions, Outputs, Scores, nn
from common.cli import ROOT
from common.errors import UserError
from common.metrics import privacy as metrics
from common.metrics.privacy import Floats
from common.pair import Pair
from common.profiles import load_config

QUICK = NNOptions(nn_epochs=20)


def together(*parts: Outputs) -> Outputs:
    return Outputs(np.concatenate([p.logits for p in parts]), np.concatenate([p.labels for p in parts]))


def auc_of(scores: Scores) -> float:
    return metrics.auc(*scores.scored)


def test_nn_finds_a_planted_signal() -> None:
    """Log-odds N(1, 1) of members, N(0, 1) of non-members: no attack exceeds AUC Phi(1 / sqrt 2) = .760."""
    known = Pair(planted(1000, 1, seed=10), planted(1000, 0, seed=11))
    scores = ATTACKS["nn"](known, Pair(planted(5000, 1, seed=12), planted(5000, 0, seed=13)), QUICK, 0)
    assert auc_of(scores) == pytest.approx(0.760, abs=0.02)
    report = metrics.attack_report(scores.scored, scores.known, oracle=False)
    assert report["accuracy"] == pytest.approx(0.6915, abs=0.03)  # Phi(1/2), the best of all thresholds
    assert list(scores.known.map(len)) == [200, 200]


@pytest.mark.parametrize("select_on", ["known", "scored"])
def test_nn_finds_nothing_under_permuted_membership(select_on: nn.SelectOn) -> None:
    """With "scored", 5 epochs look at the scored points once: in both cases they do not choose the epoch."""
    pool = together(planted(2000, 1, seed=20), planted(2000, 0, seed=21))
    parts = np.random.default_rng(22).permutation(4000).reshape(4, 1000)
    a, b, members, non_members = (pool.take(part) for part in parts)
    scores = ATTACKS["nn"](Pair(a, b), Pair(members, non_members), NNOptions(nn_epochs=5, select_on=select_on), 0)
    assert abs(auc_of(scores) - 0.5) < 3 * math.sqrt((1000 + 1000 + 1) / (12 * 1000 * 1000))
    assert np.ptp(scores.scored.members) > 0


def test_nn_reads_the_label_and_points_the_right_way() -> None:
    """Predictions carry nothing, members are of class 0 and non-members of class 1: AUC is 1, not 0."""
    same = np.zeros((150, CLASSES))
    members, others = Outputs(same, np.zeros(150, dtype=int)), Outputs(same, np.ones(150, dtype=int))
    scores = ATTACKS["nn"](Pair(members, others), Pair(members, others), QUICK, 0)
    assert auc_of(scores) == 1.0


def test_nn_learns_the_direction() -> None:
    """Members less sure than non-members: the thresholds on the loss have AUC 0 and the trained attack 1."""
    known = Pair(planted(150, -2, seed=30, spread=0.2), planted(150, 2, seed=31, spread=0.2))
    scored = Pair(planted(100, -2, seed=32, spread=0.2), planted(100, 2, seed=33, spread=0.2))
    assert auc_of(ATTACKS["nn"](known, scored, QUICK, 0)) == 1.0
    assert auc_of(ATTACKS["loss"](known, scored, QUICK, 0)) == 0.0


def test_every_parameter_changes_in_one_step() -> None:
    net = nn.AttackNet(CLASSES, torch.Generator().manual_seed(0))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    assert len(before) == 2 * (3 + 2 + 2 + 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    # Unequal numbers: at the constant start, 64 + 64 points cancel exactly in the gradient of the last bias.
    members, others = (nn.features_of(planted(n, mean, seed=40), "cpu") for n, mean in ((64, 1), (48, 0)))
    nn.training_step(net, optimizer, members, others)
    assert [name for name, parameter in net.named_parameters() if torch.equal(parameter, before[name])] == []


def test_net_starts_as_released() -> None:
    """C -> 1024 -> 512 -> 64, C -> 128 -> 64, 1 -> C -> 64, 192 -> 256 -> 128 -> 64 -> 1; N(0, 0.01), zero biases."""
    net = nn.AttackNet(100, torch.Generator().manual_seed(0))
    widths = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, torch.nn.Linear)]
    towers = [(100, 1024), (1024, 512), (512, 64), (100, 128), (128, 64), (1, 100), (100, 64)]
    assert widths == [*towers, (192, 256), (256, 128), (128, 64), (64, 1)]
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() > 10_000:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.03)


def test_features_are_probabilities_label_and_clipped_loss() -> None:
    outputs = Outputs(np.array([[math.log(3), 0.0], [0.0, 500.0]]), np.array([0, 0]))
    rows = [[0.75, 0.25, 1, 0, -math.log(0.75)], [0, 1, 1, 0, 31 * math.log(10)]]
    np.testing.assert_allclose(nn.features_of(outputs, "cpu").numpy(), rows, rtol=1e-6, atol=1e-30)


def test_nn_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    known = Pair(planted(40, 1, seed=50), planted(25, 0, seed=51))
    scored = Pair(planted(30, 1, seed=52), planted(20, 0, seed=53))
    state = torch.get_rng_state()
    first, again, other = (ATTACKS["nn"](known, scored, NNOptions(nn_epochs=3), seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.scored.members, again.scored.members)
    np.testing.assert_array_equal(first.known.non_members, again.known.non_members)
    assert not np.array_equal(first.scored.members, other.scored.members)


@pytest.mark.parametrize("select_on", ["known", "scored"])
def test_nn_does_not_train_on_the_scored_points(select_on: nn.SelectOn) -> None:
    """With the epoch fixed in advance (one look), swapping scored members and non-members swaps their scores exactly."""
    known = Pair(planted(40, 1, seed=54), planted(40, 0, seed=55))
    a, b = planted(30, 1, seed=56), planted(30, 0, seed=57)
    options = NNOptions(nn_epochs=4, select_on=select_on)
    straight, swapped = (ATTACKS["nn"](known, scored, options, 0).scored for scored in (Pair(a, b), Pair(b, a)))
    np.testing.assert_array_equal(straight.members, swapped.non_members)
    np.testing.assert_array_equal(straight.non_members, swapped.members)
    assert np.ptp(straight.members) > 0


def test_learning_rate_drops_at_half_time_and_batches_are_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[float, int, int]] = []

    def record(net: nn.AttackNet, optimizer: torch.optim.Optimizer, a: torch.Tensor, b: torch.Tensor) -> None:
        steps.append((optimizer.param_groups[0]["lr"], len(a), len(b)))
        optimizer.step()

    monkeypatch.setattr(nn, "training_step", record)
    known = Pair(planted(100, 1, seed=58), planted(45, 0, seed=59))  # 80 and 36 of them train
    ATTACKS["nn"](known, Pair(planted(5, 1, seed=60), planted(5, 0, seed=61)), NNOptions(nn_epochs=4), 0)
    epoch = [(64, 64), (16, 16)]
    assert [(a, b) for _, a, b in steps] == 4 * epoch
    assert [lr for lr, _, _ in steps] == pytest.approx([5e-4] * 4 + [5e-5] * 4)


@pytest.mark.parametrize(("select_on", "points"), [("known", 1280), ("scored", 1024)])
def test_the_bounds_on_an_epoch_change_nothing_below_them(
    monkeypatch: pytest.MonkeyPatch, select_on: nn.SelectOn, points: int
) -> None:
    """1,024 training points fill 16 batches exactly; every committed profile has fewer."""
    known = Pair(planted(points, 1, seed=64), planted(points - 9, 0, seed=65))
    scored = Pair(planted(600, 1, seed=66), planted(600, 0, seed=67))
    options = NNOptions(nn_epochs=2, select_on=select_on)
    bounded = ATTACKS["nn"](known, scored, options, 4)
    monkeypatch.setattr(nn, "EPOCH_BATCHES", 10**9)
    monkeypatch.setattr(nn, "MOST_VALIDATED", 10**9)
    unbounded = ATTACKS["nn"](known, scored, options, 4)
    np.testing.assert_array_equal(np.concatenate([*bounded.scored]), np.concatenate([*unbounded.scored]))
    np.testing.assert_array_equal(np.concatenate([*bounded.known]), np.concatenate([*unbounded.known]))


@pytest.mark.parametrize("profile", sorted(ROOT.glob("*/configs/*.yaml")), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_no_profile_reaches_the_bounds_on_an_epoch(profile: Path) -> None:
    config = load_config(profile.parents[1], profile.stem)
    attack, known = config.attack, config.data.known
    assert known <= nn.EPOCH_BATCHES * attack.nn_batch_size
    assert attack.nn_held_out * known <= nn.MOST_VALIDATED


def test_an_epoch_with_many_known_points_is_bounded_and_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 known points are 4,000 training points. Each epoch takes 1,024 of them, and other ones every time."""
    steps: list[torch.Tensor] = []
    judged: list[int] = []

    def record(net: nn.AttackNet, optimizer: torch.optim.Optimizer, a: torch.Tensor, b: torch.Tensor) -> None:
        assert len(a) == len(b) == 64
        steps.append(a[:, -1])  # the loss of a point, which no other point shares
        optimizer.step()

    def judge(members: Floats, non_members: Floats) -> float:
        judged.append(len(members))
        return 0.5

    monkeypatch.setattr(nn, "training_step", record)
    monkeypatch.setattr(nn, "auc", judge)
    known = Pair(planted(5000, 1, seed=68), planted(300, 0, seed=69))
    scores = ATTACKS["nn"](known, Pair(planted(5, 1, seed=70), planted(5, 0, seed=71)), NNOptions(nn_epochs=10), 0)
    assert (len(steps), judged) == (10 * 16, 10 * [512])
    assert len(scores.known.members) == 1000  # thresholds are fitted on all held-out points
    epochs = [torch.cat(steps[i : i + 16]) for i in range(0, 160, 16)]
    assert [len(epoch.unique()) for epoch in epochs] == 10 * [1024]
    # A point is left out of 10 epochs with the chance (1 - 1024 / 4000)^10 = .052.
    assert len(torch.cat(epochs).unique()) == pytest.approx(4000 * 0.948, abs=60)


@pytest.mark.parametrize(("select_on", "looks", "held"), [("known", 13, 12), ("scored", 3, 35)])
def test_nn_keeps_the_best_epoch(monkeypatch: pytest.MonkeyPatch, select_on: nn.SelectOn, looks: int, held: int) -> None:
    """Every epoch is judged on held-out known points; as released, epochs 5, 10 and the last on the scored ones.

    The AUC is replaced by one that calls the second look the best: the scores returned must be those of that look.
    """
    seen: list[tuple[Floats, Floats]] = []

    def second_look_wins(members: Floats, non_members: Floats) -> float:
        seen.append((members, non_members))
        return 0.9 if len(seen) == 2 else 0.6

    monkeypatch.setattr(nn, "auc", second_look_wins)
    known = Pair(planted(60, 1, seed=60), planted(60, 0, seed=61))
    options = NNOptions(nn_epochs=13, select_on=select_on)
    scores = ATTACKS["nn"](known, Pair(planted(35, 1, seed=62), planted(35, 0, seed=63)), options, 3)
    judged = tuple(scores.known if select_on == "known" else scores.scored)
    assert len(seen) == looks
    assert len(seen[0][0]) == held
    np.testing.assert_array_equal(judged, seen[1])
    assert not np.array_equal(judged, seen[-1])


def test_known_points_are_split_without_overlap() -> None:
    known = Pair(planted(50, 1, seed=70), planted(33, 0, seed=71))
    train, held = nn.split_known(known, 0.2, torch.Generator().manual_seed(0))
    assert [len(x) for x in (train.members, held.members, train.non_members, held.non_members)] == [40, 10, 26, 7]
    rejoined = np.concatenate([train.members.logits, held.members.logits])
    np.testing.assert_array_equal(np.sort(rejoined.max(axis=1)), np.sort(known.members.logits.max(axis=1)))
    assert not np.array_equal(rejoined, known.members.logits)  # shuffled before it is cut


@pytest.mark.parametrize(("held_out", "held"), [(0.01, 1), (0.5, 5), (0.99, 9)])
def test_both_parts_of_the_known_points_have_one_of_each_kind(held_out: float, held: int) -> None:
    train, judge = nn.split_known(Pair(planted(10, 0, 0), planted(10, 0, 1)), held_out, torch.Generator().manual_seed(0))
    assert [len(side) for side in (judge.members, judge.non_members)] == [held, held]
    assert [len(side) for side in (train.members, train.non_members)] == [10 - held, 10 - held]


def test_nn_refuses() -> None:
    ten, nine = planted(10, 0, seed=80), planted(9, 0, seed=81)
    for known in (Pair(ten, nine), Pair(nine, ten)):
        with pytest.raises(UserError, match="at least 10 known members"):
            ATTACKS["nn"](known, Pair(ten, ten), QUICK, 0)
    with pytest.raises(UserError, match="same classes"):
        ATTACKS["nn"](Pair(ten, ten), Pair(ten, Outputs(np.zeros((5, 3)), np.zeros(5, dtype=int))), QUICK, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nn_epochs": 0},
        {"nn_lr": 0.0},
        {"nn_lr": math.nan},
        {"nn_batch_size": 0},
        {"nn_held_out": 0.0},
        {"nn_held_out": 1.0},
        {"select_on": "score"},
    ],
)
def test_options_refuse(wrong: dict) -> None:
    with pytest.raises(UserError):
        NNOptions(**wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_nn_agrees_on_the_gpu() -> None:
    known = Pair(planted(60, 1, seed=90), planted(60, 0, seed=91))
    scored = Pair(planted(50, 1, seed=92), planted(50, 0, seed=93))
    state = torch.cuda.get_rng_state()
    cpu, gpu = (ATTACKS["nn"](known, scored, NNOptions(nn_epochs=2, device=d), 0) for d in ("cpu", "cuda"))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    np.testing.assert_allclose(gpu.scored.members, cpu.scored.members, atol=1e-4)
