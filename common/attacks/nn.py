"""The NN attack (paper Section IV-A and Appendix A-E: architecture and training of HAMP, after Nasr et al.).

A small network maps the probabilities, the true label and the loss of a prediction to P(member). It is trained on the
attacker's known points. It differs from the released code on purpose in three ways:
- Members have the target 1 and non-members 0. The released code has it the other way round, so that the "TPR" of its NN attack
  counts non-members.
- Batches are shuffled in every epoch. The released code takes them in a fixed order.
- The epoch is selected on held-out known points. The released code selects it on the scored points, which is optimistic;
  `select_on="scored"` does the same.
"""

import copy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from common.attacks.contract import Outputs, Scores
from common.errors import UserError, check_name
from common.metrics.privacy import Floats, auc
from common.pair import Pair

SelectOn = Literal["known", "scored"]
FEWEST_KNOWN = 10  # known points of a side
# Bounds on the work of an epoch. The committed profiles (at most 1,000 known points of a side) reach neither.
EPOCH_BATCHES = 16
MOST_VALIDATED = 512  # held-out points of a side on which an epoch is judged
RELEASED_INTERVAL = 5  # epochs between two validations in the released code
LARGEST_LOSS = 31 * np.log(10)  # the released code computes the loss from probabilities clipped at 1e-31


@dataclass(frozen=True)
class NNOptions:
    """How the attack network is trained. Raises UserError for a value out of range."""

    nn_epochs: int = 200
    nn_lr: float = 5e-4  # of Adam; a tenth of it in the second half of the epochs
    nn_batch_size: int = 64  # members in a step, and as many non-members
    nn_held_out: float = 0.2  # share of the known points on which the epoch is selected and the threshold is fitted
    select_on: SelectOn = "known"  # "scored", as released: train on all known points, select the epoch on the scored ones
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_name("select_on", self.select_on, get_args(SelectOn))
        if min(self.nn_epochs, self.nn_batch_size) < 1 or not self.nn_lr > 0:
            raise UserError("nn_epochs and nn_batch_size must be at least 1 and nn_lr positive.")
        if not 0 < self.nn_held_out < 1:
            raise UserError(f"nn_held_out must lie between 0 and 1, both excluded, not {self.nn_held_out}.")


class AttackNet(nn.Module):
    """The attack network: three towers (probabilities, one-hot label, loss), concatenated, and a head.

    Initial weights are drawn from a normal distribution with standard deviation 0.01. Initial biases are 0.
    """

    def __init__(self, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.classes = classes
        with torch.random.fork_rng(devices=[]):  # PyTorch draws its initial weights, which are replaced below, globally
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
        """The logits [n] of P(member), from the `features` [n, 2C + 1] that `features_of` returns."""
        p, label, loss = features.split([self.classes, self.classes, 1], dim=1)
        towers = [self.probabilities(p), self.label(label), self.loss(loss)]
        return self.head(torch.cat(towers, dim=1)).squeeze(1)


def nn_attack(known: Pair[Outputs], scored: Pair[Outputs], options: NNOptions, seed: int) -> Scores:
    """Train on the known points and score the `scored` points with P(member), 0..1.

    No known point may be among the scored ones. With `select_on="known"`, the returned scores of known points are those of the
    held-out part. With "scored", they are those of the training points, on which no threshold should be fitted. The result
    depends on `seed` and not on the global generator. With "known", the cost of training is bounded: an epoch has at most 16
    batches, and is judged on at most 512 held-out points of a side. Raises UserError for fewer than 10 known points of a side,
    and for different numbers of classes.
    """
    _check(known, scored)
    generator = torch.Generator().manual_seed(seed)
    if options.select_on == "known":
        train, returned_known = split_known(known, options.nn_held_out, generator)
        validation = returned_known.map(lambda side: side.take(np.arange(min(len(side), MOST_VALIDATED))))
    else:
        train, validation = known, scored
        returned_known = known
    net = train_attack_net(train, validation, options, generator)

    def score(outputs: Outputs) -> Floats:
        return predict(net, features_of(outputs, options.device))

    labels = attrgetter("labels")
    return Scores(scored.map(score), returned_known.map(score), scored.map(labels), returned_known.map(labels))


def split_known(known: Pair[Outputs], held_out: float, generator: torch.Generator) -> tuple[Pair[Outputs], Pair[Outputs]]:
    """Split the known points of each side at random into a training part and a held-out part of at least one point each."""

    def split(outputs: Outputs) -> tuple[Outputs, Outputs]:
        order = torch.randperm(len(outputs), generator=generator).numpy()
        cut = min(max(round(held_out * len(outputs)), 1), len(outputs) - 1)
        return outputs.take(order[cut:]), outputs.take(order[:cut])

    parts = known.map(split)
    return parts.map(lambda part: part[0]), parts.map(lambda part: part[1])


def train_attack_net(
    train: Pair[Outputs], validation: Pair[Outputs], options: NNOptions, generator: torch.Generator
) -> AttackNet:
    """Train on `train` and return the network of the epoch with the largest AUC on `validation`.

    The AUC is computed after every epoch; with `select_on="scored"`, after every fifth, as released, and after the last. An
    epoch passes over all points of the larger side, or over a random part of both sides where these are more than
    EPOCH_BATCHES batches.
    """
    net = AttackNet(train.members.classes, generator).to(options.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=options.nn_lr, fused=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=(options.nn_epochs + 1) // 2, gamma=0.1)
    features, validation_features = (pair.map(partial(features_of, device=options.device)) for pair in (train, validation))
    length = min(max(map(len, features)), EPOCH_BATCHES * options.nn_batch_size)
    interval = 1 if options.select_on == "known" else RELEASED_INTERVAL
    best_auc, best_weights = -1.0, net.state_dict()  # every AUC exceeds -1, so that the first one is stored
    for epoch in tqdm(range(1, options.nn_epochs + 1), desc="NN attack", unit="epoch", leave=False, disable=None):
        rows = features.map(lambda side: _shuffled_rows(len(side), length, generator).to(options.device))
        for members, non_members in zip(*(side.split(options.nn_batch_size) for side in rows), strict=True):
            training_step(net, optimizer, features.members[members], features.non_members[non_members])
        schedule.step()
        if epoch % interval == 0 or epoch == options.nn_epochs:
            validation_auc = auc(*validation_features.map(partial(predict, net)))
            if validation_auc > best_auc:
                best_auc, best_weights = validation_auc, copy.deepcopy(net.state_dict())
    net.load_state_dict(best_weights)
    return net


def training_step(net: AttackNet, optimizer: torch.optim.Optimizer, members: Tensor, non_members: Tensor) -> None:
    """Minimise the squared error of P(member) in one step. The target is 1 for members and 0 for non-members.

    `members` [a, 2C + 1] and `non_members` [b, 2C + 1] are features of one batch.
    """
    target = torch.cat([torch.ones(len(members)), torch.zeros(len(non_members))]).to(members.device)
    optimizer.zero_grad()
    mse_loss(torch.sigmoid(net(torch.cat([members, non_members]))), target).backward()
    optimizer.step()


@torch.no_grad()
def predict(net: AttackNet, features: Tensor) -> Floats:
    """P(member) float64 [n], 0..1. In float32 the sigmoid would round to 1 for the most certain points, which would tie."""
    return torch.sigmoid(net(features).double()).cpu().numpy()


def features_of(outputs: Outputs, device: torch.device | str) -> Tensor:
    """The input of the network, float32 [n, 2C + 1]: probabilities, one-hot true label and loss of each image."""
    loss = np.minimum(outputs.loss, LARGEST_LOSS)[:, None]
    columns = np.concatenate([outputs.probabilities, np.eye(outputs.classes)[outputs.labels], loss], axis=1)
    return torch.from_numpy(columns.astype(np.float32)).to(device)


def _tower(*widths: int) -> nn.Sequential:
    """Linear layers of these widths, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _shuffled_rows(points: int, length: int, generator: torch.Generator) -> Tensor:
    """The first `length` rows of repeated permutations of all `points`.

    With the same length for both sides, an epoch has as many members as non-members.
    """
    permutations = -(-length // points)
    return torch.cat([torch.randperm(points, generator=generator) for _ in range(permutations)])[:length]


def _check(known: Pair[Outputs], scored: Pair[Outputs]) -> None:
    if min(map(len, known)) < FEWEST_KNOWN:
        least = f"{FEWEST_KNOWN} known members and {FEWEST_KNOWN} known non-members"
        raise UserError(f"the NN attack needs at least {least}, not {len(known.members)} and {len(known.non_members)}.")
    classes = {side.classes for side in (*known, *scored)}
    if len(classes) > 1:
        raise UserError(f"known and scored points must have the same classes, not {sorted(classes)} of them.")
