"""MemGuard (Jia et al., CCS 2019): adversarial noise on the answers of the undefended classifier (paper Section IV-A).

A guard g, a network of the defender's, guesses membership from the sorted confidences. Phase I searches for each answer
the smallest noise that moves g's guess across 1/2 and keeps the label; phase II releases the noisy answer with a
probability that keeps the expected L1 distortion within a budget. That draw is fixed per input, or repeated queries would
average it away. Ports, the released code among them, stop after phase I: `epsilon=2`, the largest distance of two
distributions, comes to the same except where phase I only moved g further from 1/2.

Here all samples are searched at once (benchmarks/memguard.py), and g sorts also during the search, as an attacker sorts what
it sees. g is trained on members and the reference half, without a scored point; the released one saw all scored points.
Behind Diffence, pass the selected logits to `MemGuard.release`.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import Data, Train, require
from common.data import DATASETS
from common.data.partition import PROTOCOLS, Examples, Split, evaluation_pools
from common.run import Run
from common.seeds import derive_seed, image_keys
from common.training.loop import Objective, Stateful, fit, predict
from common.training.targets import PostInference, load_target, model_path, options_of, settings_of, target_classifier

STEP = 0.1  # length of a step in logit space
LABEL_WEIGHT = 10.0  # c2, against a change of label; c1, of g's guess, is 1
DISTORTION_WEIGHTS = tuple(10.0**power for power in range(-1, 6))  # c3: 0.1 to 1e5; a larger one, a smaller distortion
UNDECIDED = 1e-5  # a guess this close to 1/2 needs no noise


@dataclass(frozen=True)
class Options:
    """The config section `defenses.memguard`. Raises UserError for a value out of range."""

    epsilon: float = 1.0  # budget: expected L1 distance between released and true confidences; 2 = no budget
    steps: int = 300  # of phase I at each distortion weight
    epochs: int = 400  # of the guard
    lr: float = 1e-3  # of the guard's SGD
    batch_size: int = 64

    def __post_init__(self) -> None:
        require(0 <= self.epsilon <= 2, f"defenses.memguard.epsilon must lie in 0..2, not {self.epsilon}.")
        for name in ("steps", "epochs", "batch_size"):
            require(getattr(self, name) > 0, f"defenses.memguard.{name} must be at least 1, not {getattr(self, name)}.")
        require(self.lr > 0, f"defenses.memguard.lr must be positive, not {self.lr}.")


class Guard(nn.Module):
    """g: an MLP on confidences in ascending order; positive = member."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        relu = nn.ReLU()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(classes, 256), relu, nn.Linear(256, 128), relu, nn.Linear(128, 64), relu, nn.Linear(64, 1)
            )

    def forward(self, confidences: Tensor) -> Tensor:
        """Confidences [n, C] that sum to 1 -> the logit of P(member), float32 [n]."""
        return self.layers(confidences.sort(dim=1).values.float()).squeeze(1)


class MemGuard(PostInference):
    """The undefended classifier with its guarded release: images [n, 3, H, W] in [0, 1] -> log-probabilities [n, C]."""

    def __init__(self, classifier: nn.Module, guard: Guard, options: Options, seed: int) -> None:
        super().__init__()
        self.classifier, self.guard, self.options, self.seed = classifier, guard, options, seed

    def forward(self, images: Tensor) -> Tensor:
        return self.release(self.classifier(images).float(), image_keys(images))

    def release(self, logits: Tensor, keys: Tensor) -> Tensor:
        """Both phases on logits [n, C]; the same `keys` int64 [n] (`common.seeds.image_keys`) get the same draw of phase II.

        Returns finite log-probabilities [n, C] of the logits' type and with their labels (argmax).
        """
        with torch.inference_mode(False):  # phase I differentiates, also where the caller forbids it
            true = logits.detach().clone().double()  # in float32 the softmax of a sure answer has no exact gradient
            noisy = find_noise(self.guard, true, self.options.steps)
        with torch.no_grad():
            chance = self.release_chance(true, noisy)
            draw = [derive_seed("memguard", self.seed, key) / 2**63 for key in keys.tolist()]
            chosen = torch.tensor(draw, dtype=chance.dtype, device=chance.device) < chance
            released = torch.where(chosen[:, None], noisy, true).log_softmax(1).to(logits.dtype)
            labels, top = logits.argmax(1), released.amax(1)
            lost = (released.argmax(1) != labels).nonzero().squeeze(1)  # rounding has tied the label with another class
            released[lost, labels[lost]] = torch.nextafter(top, top.new_tensor(torch.inf))[lost]
        return released

    def release_chance(self, true: Tensor, noisy: Tensor) -> Tensor:
        """Phase II: the probability [n] with which the answer with logits `noisy` [n, C] replaces `true` [n, C]."""
        before, after = true.softmax(1), noisy.softmax(1)
        distance = (after - before).abs().sum(1)
        helps = self.guard(after).abs() < self.guard(before).abs()
        chance = (self.options.epsilon / distance.clamp_min(1e-300)).clamp(max=1)
        return torch.where(helps, chance, 0.0)


@torch.no_grad()
def find_noise(guard: nn.Module, logits: Tensor, steps: int) -> Tensor:
    """Phase I for all rows of logits [n, C], float64: the logits of the last success, or the row unchanged.

    A success keeps the label and moves g's guess across 1/2. Each row goes on to the next distortion weight until one
    fails. `guard` maps confidences [n, C] to the logit of P(member), [n].
    """
    best, guess = logits.clone(), guard(logits.softmax(1)).double()
    rows = ((guess.sigmoid() - 0.5).abs() > UNDECIDED).nonzero().squeeze(1)
    for weight in DISTORTION_WEIGHTS:
        found, success = _descend(guard, logits[rows], guess[rows].sign(), weight, steps)
        rows = rows[success]
        best[rows] = found[success]
    return best


def _descend(guard: nn.Module, logits: Tensor, side: Tensor, weight: float, steps: int) -> tuple[Tensor, Tensor]:
    """At most `steps` gradient steps from logits [n, C]; `side` [n] is the sign of g's guess there.

    Returns the logits reached and where they are a success, bool [n]; a row leaves the search once it is one.
    """
    reached, success = logits.clone(), torch.zeros_like(side, dtype=torch.bool)
    true, labels = logits.softmax(1), logits.argmax(1, keepdim=True)
    for step in range(steps + 1):
        rows = (~success).nonzero().squeeze(1)
        if not len(rows):
            break
        z, label = reached[rows], labels[rows]
        confidences, top = z.softmax(1), z.argmax(1, keepdim=True)
        with torch.enable_grad():
            guess = guard(confidences.requires_grad_())
            slope = torch.autograd.grad(guess.abs().sum(), confidences)[0]
        success[rows] = found = (guess * side[rows] < 0) & (top == label).squeeze(1)
        if step == steps:
            break
        slope = slope + weight * (confidences - true[rows]).sign()  # the distortion's
        gradient = confidences * (slope - (confidences * slope).sum(1, keepdim=True))  # the softmax's Jacobian
        gradient.scatter_(1, top, LABEL_WEIGHT, reduce="add").scatter_(1, label, -LABEL_WEIGHT, reduce="add")
        # A gradient that vanishes altogether makes a step of length 0, not NaN.
        move = STEP * F.normalize(gradient, dim=1, eps=1e-100)
        reached[rows] = z - move * (~found)[:, None]
    return reached, success


class GuardTraining(Objective):
    """Trains the guard of a MemGuard. The examples are confidences [n, C] in place of images, and membership, 0 or 1.

    Both kinds weigh alike, however many there are: 1/2 is then the guess that knows nothing.
    """

    def __init__(self, model: MemGuard, answers: Examples, config: Train, device: torch.device) -> None:
        super().__init__(model, answers, config, device)
        self.guard = model.guard
        self.optimizer = torch.optim.SGD(self.guard.parameters(), config.lr)
        self.weight = len(answers) / (2 * torch.bincount(self.members.labels, minlength=2))

    def step(self, index: Tensor, epoch: int) -> tuple[float, int]:
        index = index.to(self.device)
        member = self.members.labels[index]
        guess = self.guard(self.members.images[index])
        loss = F.binary_cross_entropy_with_logits(guess, member.float(), self.weight[member])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item(), int(((guess > 0) == member).sum())

    def stateful(self) -> dict[str, Stateful]:
        """Without the classifier, which does not change."""
        return {"guard": self.guard, "optimizer": self.optimizer}


def guard_members(data: Data) -> Tensor:
    """Positions of the members that the guard may train on: all that neither protocol scores. UserError if none."""
    free = torch.ones(data.members, dtype=torch.bool)
    for protocol in PROTOCOLS:
        free[list(evaluation_pools(data, protocol).scored)] = False
    require(bool(free.any()), "memguard needs members that are not scored, to train its guard: raise data.members.")
    return free.nonzero().squeeze(1)


def guard_examples(classifier: nn.Module, split: Split, data: Data, device: torch.device) -> Examples:
    """The classifier's confidences [n, C] on those members and on the reference half, with membership 1 and 0."""
    require(len(split.reference) > 0, "memguard needs reference images: raise data.reference.")
    parts = (split.members.take(guard_members(data)), split.reference)
    confidences = torch.cat([predict(classifier, part, device).softmax(1) for part in parts])
    return Examples(confidences, torch.cat([torch.full((len(part),), 1 - i) for i, part in enumerate(parts)]))


def build(run: Run) -> MemGuard:
    """The run's architecture behind an untrained guard."""
    guard = Guard(DATASETS[run.dataset].classes, derive_seed("guard", run.seed))
    return MemGuard(target_classifier(run), guard, options_of(run, "memguard", Options), run.seed)


def train(run: Run, split: Split) -> nn.Module:
    """A guard for the undefended classifier's last epoch and, in `.best.pt`, one for its epoch best on the test set.

    UserError says which command makes the undefended classifier where it is missing.
    """
    path = model_path(run, "memguard")
    made = _train_guard(run, split, "clean", path)
    if run.config.train.best_on_test:
        _train_guard(run, split, "released", path.with_suffix(".best.pt"))
    return made


def _train_guard(run: Run, split: Split, protocol: str, path: Path) -> MemGuard:
    made, options = build(run), options_of(run, "memguard", Options)
    load_target(run, "undefended", protocol, made.classifier)
    config = dataclasses.replace(run.config.train, epochs=options.epochs, batch_size=options.batch_size, lr=options.lr)
    examples = guard_examples(made.classifier, split, run.config.data, run.device)
    remake = run.command("train_defense.py", "--defense memguard")
    fit(GuardTraining(made, examples, config, run.device), path, settings_of(run, "memguard"), run.seed, remake)
    return made.eval()
