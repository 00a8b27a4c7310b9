"""The NN attack (paper Section IV-A and Appendix A-E: architecture and training of HAMP, after Nasr et al.).

A small network reads the probabilities, the true label and the loss of a prediction and returns P(member). It is
trained on the attacker's known points. Three differences from the released code are deliberate:
- a member is 1 and a non-member 0; there it is the reverse, so that the "TPR" of its NN attack counts non-members;
- batches are shuffled each epoch, not taken in a fixed order;
- the epoch is chosen on held-out known points; `select_on="scored"` asks for the released, optimistic choice.
"""

import copy
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from common.attacks.contract import Outputs, Scores
from common.errors import UserError, check_name
from common.metrics.privacy import Floats, auc
from common.pair import Pair

SelectOn = Literal["known", "scored"]
FEWEST_KNOWN = 10
RELEASED_EVERY = 5  # epochs between two looks at the scored points
LARGEST_LOSS = 31 * np.log(10)  # the released code takes the loss from probabilities clipped at 1e-31


@dataclass(frozen=True)
class NNOptions:
    """How the attack network is trained. Raises UserError for a value out of range."""

    nn_epochs: int = 200
    nn_lr: float = 5e-4  # of Adam; a tenth of it in the second half of the epochs
    nn_batch_size: int = 64  # members and as many non-members a step
    nn_held_out: float = 0.2  # share of the known points that chooses the epoch and fits the threshold
    select_on: SelectOn = "known"  # "scored", as released: train on all known, keep the epoch best on the scored points
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_name("select_on", self.select_on, get_args(SelectOn))
        if min(self.nn_epochs, self.nn_batch_size) < 1 or not self.nn_lr > 0:
            raise UserError("nn_epochs and nn_batch_size must be at least 1 and nn_lr positive.")
        if not 0 < self.nn_held_out < 1:
            raise UserError(f"nn_held_out must lie between 0 and 1, both excluded, not {self.nn_held_out}.")


class AttackNet(nn.Module):
    """Three towers (probabilities, one-hot label, loss), concatenated. Weights start from N(0, 0.01), biases at 0."""

    def __init__(self, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.classes = classes
        with torch.random.fork_rng(devices=[]):  # PyTorch's default weights, replaced below, use the global generator
            self.probabilities = _tower(classes, 1024, 512, 64)
            self.label = _tower(classes, 128, 64)
            self.loss = _tower(1, classes, 64)
            self.head = nn.Sequential(_tower(192, 256, 128, 64), nn.Linear(64, 1))
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.01, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """`features` [n, 2C + 1] of `features_of` -> the logit of P(member), [n]."""
        p, label, loss = features.split([self.classes, self.classes, 1], dim=1)
        towers = [self.probabilities(p), self.label(label), self.loss(loss)]
        return self.head(torch.cat(towers, dim=1)).squeeze(1)


def nn_attack(known: Pair[Outputs], scored: Pair[Outputs], options: NNOptions, seed: int) -> Scores:
    """Train on the known points and score the others with P(member), 0..1. No known point may be among the scored ones.

    With `select_on="known"` the known scores returned are those of the held-out part. With "scored" they are those of
    the training points, on which no threshold should be fitted. The result depends on `seed`, not on the global generator.
    Raises UserError for fewer than 10 known points of a kind, and for different numbers of classes.
    """
    _check(known, scored)
    generator = torch.Generator().manual_seed(seed)
    if options.select_on == "known":
        train, judge = split_known(known, options.nn_held_out, generator)
        fitted_on = judge
    else:
        train, judge = known, scored
        fitted_on = known
    net = train_attack_net(train, judge, options, generator)

    def score(outputs: Outputs) -> Floats:
        return predict(net, features_of(outputs, options.device))

    labels = attrgetter("labels")
    return Scores(scored.map(score), fitted_on.map(score), scored.map(labels), fitted_on.map(labels))


def split_known(known: Pair[Outputs], held_out: float, generator: torch.Generator) -> tuple[Pair[Outputs], Pair[Outputs]]:
    """A random split of each kind of known point: (training part, held-out part), at least one point in each."""

    def split(outputs: Outputs) -> tuple[Outputs, Outputs]:
        order = torch.randperm(len(outputs), generator=generator).numpy()
        cut = min(max(round(held_out * len(outputs)), 1), len(outputs) - 1)
        return outputs.take(order[cut:]), outputs.take(order[:cut])

    parts = known.map(split)
    return parts.map(lambda part: part[0]), parts.map(lambda part: part[1])


def train_attack_net(train: Pair[Outputs], judge: Pair[Outputs], options: NNOptions, generator: torch.Generator) -> AttackNet:
    """Train on `train` and return the network of the epoch with the best AUC on `judge`.

    Every epoch is judged; with `select_on="scored"` every fifth, as released, and the last.
    """
    net = AttackNet(train.members.classes, generator).to(options.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=options.nn_lr, fused=True)
    halfway = torch.optim.lr_scheduler.StepLR(optimizer, step_size=(options.nn_epochs + 1) // 2, gamma=0.1)
    points, judged = (pair.map(lambda side: features_of(side, options.device)) for pair in (train, judge))
    every = 1 if options.select_on == "known" else RELEASED_EVERY
    best, weights = -1.0, net.state_dict()  # any AUC beats -1: `weights` becomes a copy at the first look
    for epoch in range(1, options.nn_epochs + 1):
        rows = [_shuffled(len(side), max(map(len, points)), generator).to(options.device) for side in points]
        for members, non_members in zip(*(order.split(options.nn_batch_size) for order in rows), strict=True):
            training_step(net, optimizer, points.members[members], points.non_members[non_members])
        halfway.step()
        if epoch % every == 0 or epoch == options.nn_epochs:
            score = auc(*(predict(net, side) for side in judged))
            if score > best:
                best, weights = score, copy.deepcopy(net.state_dict())
    net.load_state_dict(weights)
    return net


def training_step(net: AttackNet, optimizer: torch.optim.Optimizer, members: Tensor, non_members: Tensor) -> None:
    """One step of the squared error of P(member), members being 1 and non-members 0."""
    truth = torch.cat([torch.ones(len(members)), torch.zeros(len(non_members))]).to(members.device)
    optimizer.zero_grad()
    mse_loss(torch.sigmoid(net(torch.cat([members, non_members]))), truth).backward()
    optimizer.step()


@torch.no_grad()
def predict(net: AttackNet, features: Tensor) -> Floats:
    """P(member) [n], 0..1; the sigmoid is taken in float64 because in float32 the surest points would tie at 1."""
    return torch.sigmoid(net(features).double()).cpu().numpy()


def features_of(outputs: Outputs, device: torch.device | str) -> Tensor:
    """What the network reads of each image: probabilities, one-hot label, loss; float32 [n, 2C + 1]."""
    loss = np.minimum(outputs.loss, LARGEST_LOSS)[:, None]
    columns = np.concatenate([outputs.probabilities, np.eye(outputs.classes)[outputs.labels], loss], axis=1)
    return torch.from_numpy(columns.astype(np.float32)).to(device)


def _tower(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _shuffled(points: int, length: int, generator: torch.Generator) -> Tensor:
    """`length` row numbers: repeated permutations of all points, so that the rarer kind is seen as often."""
    rounds = -(-length // points)
    return torch.cat([torch.randperm(points, generator=generator) for _ in range(rounds)])[:length]


def _check(known: Pair[Outputs], scored: Pair[Outputs]) -> None:
    if min(map(len, known)) < FEWEST_KNOWN:
        least = f"{FEWEST_KNOWN} known members and {FEWEST_KNOWN} known non-members"
        raise UserError(f"the NN attack needs at least {least}, not {len(known.members)} and {len(known.non_members)}.")
    classes = {side.classes for side in (*known, *scored)}
    if len(classes) > 1:
        raise UserError(f"known and scored points must have the same classes, not {sorted(classes)} of them.")
