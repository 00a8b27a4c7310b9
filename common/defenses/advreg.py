"""AdvReg: adversarial regularisation (Nasr, Shokri and Houmansadr, CCS 2018; paper Section IV-A, Appendix E).

The classifier f and an inference network h are trained in turn. h learns to distinguish the logits of f on members (target 1)
from those on reference images (target 0). f minimises cross-entropy plus alpha times the gain of h on the members. h reads
logits, not probabilities, as in the authors' and in the released code.

Training one network leaves the other unchanged. While h is trained, f is in evaluation mode and without gradients, so that its
BatchNorm statistics never include a reference image. While f is trained, the weights of h are frozen.

The reference images must be neither members nor scored. Some other implementations use the official test set. With it, f learns
to hide the membership of the very images on which attacks are then measured. A large alpha can reduce the accuracy of f to
chance, which the training accuracy shows.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from common.config import Train, require
from common.data import DATASETS
from common.data.partition import Examples, Split
from common.errors import check_name
from common.ranges import NOT_NEGATIVE, POSITIVE, check_range
from common.run import Run
from common.seeds import derive_seed
from common.training import Objective, Stateful, options_of, target_classifier, train_target

Penalty = Literal["linear", "log_gain"]
Schedule = Literal["released", "paper"]

# Steps of h and of f in a round. `paper` is the AdvReg authors' code for Purchase100.
SCHEDULES: dict[str, tuple[int, int]] = {"released": (26, 2), "paper": (52, 2)}


@dataclass(frozen=True)
class Options:
    """The config section `defenses.advreg`. Raises UserError for a value out of range."""

    alpha: float = 6.0  # weight of the penalty, as in the paper's text; the released configs have 4
    # linear (released code): the gain is h - 1/2, and h minimises the squared error.
    # log_gain (AdvReg paper): the gain is log h + log 2, and h minimises the cross-entropy.
    penalty: Penalty = "linear"
    schedule: Schedule = "released"
    attack_batches: int = 0  # steps of h in a round, each on a batch of members and one of reference images; 0 = schedule
    defender_batches: int = 0  # steps of f in a round; 0 = schedule
    warmup_epochs: int = 1  # first epochs, in which f is trained without the penalty and h is not trained
    warmup_attack_passes: int = 5  # passes of h over the data after these epochs, before the first round
    attack_lr: float = 1e-4  # learning rate of h (Adam)

    def __post_init__(self) -> None:
        check_name("penalty of defenses.advreg", self.penalty, get_args(Penalty))
        check_name("schedule of defenses.advreg", self.schedule, SCHEDULES)
        steps = ("attack_batches", "defender_batches", "warmup_epochs", "warmup_attack_passes")
        check_range(self, "defenses.advreg", NOT_NEGATIVE, "alpha", *steps)
        check_range(self, "defenses.advreg", POSITIVE, "attack_lr")

    @property
    def steps_per_round(self) -> tuple[int, int]:
        """The number of steps of h and of f in a round."""
        attack_batches, defender_batches = SCHEDULES[self.schedule]
        return self.attack_batches or attack_batches, self.defender_batches or defender_batches


class InferenceNet(nn.Module):
    """The inference network h, drawn from `seed`: MLPs on the logits and on the one-hot label, and one on both outputs.

    Initial weights have the mean 0 and the standard deviation 0.01; initial biases are 0.
    """

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        relu = nn.ReLU()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.output = nn.Sequential(nn.Linear(classes, 1024), relu, nn.Linear(1024, 512), relu, nn.Linear(512, 64), relu)
            self.label = nn.Sequential(nn.Linear(classes, 128), relu, nn.Linear(128, 64), relu)
            self.head = nn.Sequential(
                nn.Linear(128, 512), relu, nn.Linear(512, 256), relu, nn.Linear(256, 128), relu, nn.Linear(128, 64), relu
            )
            self.score = nn.Linear(64, 1)
            for name, parameter in self.named_parameters():
                if name.endswith("weight"):
                    nn.init.normal_(parameter, std=0.01)
                else:
                    nn.init.zeros_(parameter)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] and labels int64 [B] -> the logit of P(member), [B]."""
        one_hot = F.one_hot(labels, logits.shape[1]).to(logits)
        return self.score(self.head(torch.cat([self.output(logits), self.label(one_hot)], dim=1))).squeeze(1)


class AdvReg(Objective):
    """Training of f and h in turn: before the first step of f in each round, h is trained.

    An epoch is one pass of f over the members. Its first step begins a round. Raises UserError where there are no reference
    images.
    """

    shares_batches = False  # its two players take turns

    def __init__(
        self,
        model: nn.Module,
        attacker: InferenceNet,
        members: Examples,
        reference: Examples,
        config: Train,
        device: torch.device,
        options: Options,
    ) -> None:
        require(len(reference) > 0, "advreg needs reference images: raise data.reference.")
        super().__init__(model, members, config, device)
        self.reference, self.options = reference.to(device), options
        self.attacker = attacker.to(device).eval().requires_grad_(False)
        self.attack_optimizer = torch.optim.Adam(self.attacker.parameters(), options.attack_lr)
        self.attack_batch_size = min(config.batch_size, len(members), len(reference))  # members, and as many reference images

    def batches(self) -> Iterable[torch.Tensor]:
        """Batches of f, in the order of plain training, because the batches of h are drawn from another generator."""
        generator = torch.Generator().manual_seed(derive_seed("advreg", torch.initial_seed()))
        self.steps_done = 0  # of f, in this epoch
        self.attacker_batches = zip(
            _endless_batches(len(self.members), self.attack_batch_size, generator),
            _endless_batches(len(self.reference), self.attack_batch_size, generator),
            strict=True,
        )
        return super().batches()

    def step(self, index: torch.Tensor, epoch: int) -> tuple[float, float]:
        """Train f on one batch, after h where a round begins. Returns what `Objective.step` returns."""
        if epoch >= self.options.warmup_epochs:
            attack_batches, defender_batches = self.options.steps_per_round
            if epoch == self.options.warmup_epochs and self.steps_done == 0:
                steps_per_pass = min(len(self.members), len(self.reference)) // self.attack_batch_size
                self.train_attacker(self.options.warmup_attack_passes * steps_per_pass)
            if self.steps_done % defender_batches == 0:
                self.train_attacker(attack_batches)
        self.steps_done += 1
        return super().step(index, epoch)

    def train_attacker(self, steps: int) -> None:
        """Train h for some steps. f does not change."""
        self.model.eval()
        self.attacker.train().requires_grad_(True)
        for _ in range(steps):
            members, reference = (index.to(self.device) for index in next(self.attacker_batches))
            images = torch.cat([self.members.pixels(members), self.reference.pixels(reference)])
            labels = torch.cat([self.members.labels[members], self.reference.labels[reference]])
            with torch.no_grad():
                logits = self.forward(images)
            is_member = torch.arange(len(labels), device=self.device) < len(members)
            loss = self.attack_loss(logits, labels, is_member)
            self.attack_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.attack_optimizer.step()
        self.attacker.eval().requires_grad_(False)
        self.model.train()

    def attack_loss(self, logits: torch.Tensor, labels: torch.Tensor, is_member: torch.Tensor) -> torch.Tensor:
        """The scalar that h minimises, for logits [B, C] of f, labels int64 [B] and their true membership, bool [B]."""
        member_logits = self.attacker(logits, labels)
        if self.options.penalty == "linear":
            return F.mse_loss(member_logits.sigmoid(), is_member.float())
        return F.binary_cross_entropy_with_logits(member_logits, is_member.float())

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        """Cross-entropy and, after the warm-up epochs, the penalty."""
        cross_entropy = super().loss(logits, labels, index, epoch)
        return cross_entropy if epoch < self.options.warmup_epochs else cross_entropy + self.penalty(logits, labels)

    def penalty(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """alpha times the mean gain of h on members with logits [B, C], a scalar.

        The gain on a member is 0 where h = P(member) is 1/2, and positive where h is larger.
        """
        member_logits, linear = self.attacker(logits, labels), self.options.penalty == "linear"
        gain = member_logits.sigmoid() - 0.5 if linear else F.logsigmoid(member_logits) + math.log(2)
        return self.options.alpha * gain.mean()

    def stateful(self) -> dict[str, Stateful]:
        return {**super().stateful(), "attacker": self.attacker, "attack_optimizer": self.attack_optimizer}


def train(run: Run, split: Split) -> nn.Module:
    """Train a classifier by AdvReg on the members and the reference images."""
    attacker = InferenceNet(DATASETS[run.dataset].classes, derive_seed("advreg", run.seed))
    objective = AdvReg(
        target_classifier(run),
        attacker,
        split.members,
        split.reference,
        run.config.train,
        run.device,
        options_of(run, "advreg", Options),
    )
    return train_target(run, "advreg", objective, split)


def _endless_batches(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches of `size` of the positions 0..count - 1, without end: every pass has a new random order and full batches only."""
    while True:
        yield from torch.randperm(count, generator=generator)[: count - count % size].split(size)
