"""AdvReg: adversarial regularisation (Nasr, Shokri and Houmansadr, CCS 2018; paper Section IV-A, Appendix E).

The classifier f and an inference network h play a game. h learns to tell f's answers on members from those on reference
images; f minimises cross-entropy plus alpha times what h gains on the members. The two never touch each other: h steps
while f is in evaluation mode and without gradient, so f's BatchNorm statistics never see a reference image, and f steps
while h is frozen. h reads raw logits, as in the authors' and the released code; a member is 1.

The reference images must be neither members nor scored: with the official test set, as in some ports, h would hide the
very leakage that is then measured. A large alpha drives f to chance: watch the training accuracy.
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
from common.run import Run
from common.seeds import derive_seed
from common.training.loop import Objective, Stateful
from common.training.targets import options_of, target_classifier, train_target

Penalty = Literal["linear", "log_gain"]
Schedule = Literal["released", "paper"]

# Steps of h, then of f, that make a round. `paper`: the AdvReg authors' code for Purchase100.
SCHEDULES: dict[str, tuple[int, int]] = {"released": (26, 2), "paper": (52, 2)}


@dataclass(frozen=True)
class Options:
    """The config section `defenses.advreg`. Raises UserError for a value out of range."""

    alpha: float = 6.0  # weight of the penalty, as in the paper's text; the released configs have 4
    penalty: Penalty = "linear"  # released: mean h - 1/2, h by squared error; log_gain (AdvReg paper): both by log h
    schedule: Schedule = "released"
    attack_batches: int = 0  # steps of h a round, each on a batch of members and one of reference images; 0 = schedule
    defender_batches: int = 0  # steps of f a round; 0 = schedule
    warmup_epochs: int = 1  # plain epochs of f before the game
    warmup_attack_passes: int = 5  # passes of h over the data between the two
    attack_lr: float = 1e-4  # of h's Adam

    def __post_init__(self) -> None:
        check_name("penalty of defenses.advreg", self.penalty, get_args(Penalty))
        check_name("schedule of defenses.advreg", self.schedule, SCHEDULES)
        for name in ("alpha", "attack_batches", "defender_batches", "warmup_epochs", "warmup_attack_passes"):
            require(getattr(self, name) >= 0, f"defenses.advreg.{name} must not be negative, not {getattr(self, name)}.")
        require(self.attack_lr > 0, f"defenses.advreg.attack_lr must be positive, not {self.attack_lr}.")

    @property
    def round(self) -> tuple[int, int]:
        """Steps of h and of f that make a round."""
        attack, defender = SCHEDULES[self.schedule]
        return self.attack_batches or attack, self.defender_batches or defender


class InferenceNet(nn.Module):
    """h: a tower on the logits and one on the one-hot label, concatenated. Weights start from N(0, 0.01), biases at 0."""

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
    """The game as an objective: `step` is one step of f, before the first of a round come the steps of h.

    An epoch is one pass of f over the members. Raises UserError where there are no reference images.
    """

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
        self.attack_size = min(config.batch_size, len(members), len(reference))  # as many of either kind

    def batches(self) -> Iterable[torch.Tensor]:
        """Batches of f. h draws its own from a generator apart, so that f sees the order of plain training."""
        generator = torch.Generator().manual_seed(derive_seed("advreg", torch.initial_seed()))
        self.steps_done = 0
        self.attack_draws = zip(
            _endless(len(self.members), self.attack_size, generator),
            _endless(len(self.reference), self.attack_size, generator),
            strict=True,
        )
        return super().batches()

    def step(self, index: torch.Tensor, epoch: int) -> tuple[float, int]:
        """One step of f, after the steps of h that are due."""
        if epoch >= self.options.warmup_epochs:
            attack_batches, defender_batches = self.options.round
            if epoch == self.options.warmup_epochs and self.steps_done == 0:
                a_pass = min(len(self.members), len(self.reference)) // self.attack_size
                self.attack(self.options.warmup_attack_passes * a_pass)
            if self.steps_done % defender_batches == 0:
                self.attack(attack_batches)
        self.steps_done += 1
        return super().step(index, epoch)

    def attack(self, steps: int) -> None:
        """Train h for some steps against f as it is."""
        self.model.eval()
        self.attacker.train().requires_grad_(True)
        for _ in range(steps):
            members, others = (index.to(self.device) for index in next(self.attack_draws))
            images = torch.cat([self.members.pixels(members), self.reference.pixels(others)])
            labels = torch.cat([self.members.labels[members], self.reference.labels[others]])
            with torch.no_grad():
                logits = self.forward(images)
            loss = self.attack_loss(logits, labels, torch.arange(len(labels), device=self.device) < len(members))
            self.attack_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.attack_optimizer.step()
        self.attacker.eval().requires_grad_(False)
        self.model.train()

    def attack_loss(self, logits: torch.Tensor, labels: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
        """What h minimises, a scalar: `member` bool [B] is the truth about logits [B, C]."""
        guess = self.attacker(logits, labels)
        if self.options.penalty == "linear":
            return F.mse_loss(guess.sigmoid(), member.float())
        return F.binary_cross_entropy_with_logits(guess, member.float())

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        plain = super().loss(logits, labels, index, epoch)
        return plain if epoch < self.options.warmup_epochs else plain + self.penalty(logits, labels)

    def penalty(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """alpha times h's gain on members' logits [B, C], a scalar: 0 where h guesses 1/2, positive where h is right."""
        guess = self.attacker(logits, labels)
        gain = guess.sigmoid() - 0.5 if self.options.penalty == "linear" else F.logsigmoid(guess) + math.log(2)
        return self.options.alpha * gain.mean()

    def stateful(self) -> dict[str, Stateful]:
        return {**super().stateful(), "attacker": self.attacker, "attack_optimizer": self.attack_optimizer}


def train(run: Run, split: Split) -> nn.Module:
    """The game between the classifier and an inference network on the members and the reference half."""
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


def _endless(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches of `size` <= `count` positions, from one random order after another."""
    while True:
        yield from torch.randperm(count, generator=generator)[: count - count % size].split(size)
