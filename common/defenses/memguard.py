"""MemGuard (Jia et al., CCS 2019): adversarial noise on the answers of the undefended classifier (paper Section IV-A).

The defender's own membership classifier g, the guard, predicts P(member) from the sorted confidences of an answer. Phase I
searches for the smallest noise that moves this probability across 1/2 and keeps the label. Phase II releases the noisy answer
with a probability that keeps the expected L1 distortion within the budget `epsilon`. The random draw of phase II is fixed for
each input, because the average over repeated queries would otherwise remove the noise.

Other implementations, the released code among them, have no phase II. `epsilon=2`, the largest L1 distance of two
distributions, is equivalent to that, except where phase I only moves the prediction of g further from 1/2.

Phase I searches for all samples together (benchmarks/memguard.py compares the time). During this search, too, g sorts the
confidences, as an attacker would. g is trained on reference images and on members that no protocol scores. In the released
code, it was trained on all scored points. With Diffence, `MemGuard.release` is applied to the logits that Diffence selects.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import Data, Train, require
from common.data import DATASETS
from common.data.partition import Examples, Split, unscored_members
from common.ranges import POSITIVE, at_least, check_range, within
from common.run import Run
from common.seeds import derive_seed, image_keys
from common.training import Objective, Stateful, fit, options_of, predict, target_classifier
from common.training.targets import PostInference, load_target, model_path, settings_of

STEP = 0.1  # length of a gradient step in logit space
LABEL_WEIGHT = 10.0  # c2 of the loss of phase I (see `_descend`)
DISTORTION_WEIGHTS = tuple(10.0**power for power in range(-1, 6))  # the values of c3, 0.1 to 1e5
UNDECIDED = 1e-5  # an answer gets no noise where P(member) is this close to 1/2


@dataclass(frozen=True)
class Options:
    """The config section `defenses.memguard`. Raises UserError for a value out of range."""

    epsilon: float = 1.0  # budget, in 0..2: expected L1 distance between released and true confidences; 2 = no limit
    steps: int = 300  # largest number of gradient steps of phase I with each distortion weight
    epochs: int = 400  # of the training of the guard
    lr: float = 1e-3  # learning rate of the guard (SGD)
    batch_size: int = 64  # of the training of the guard

    def __post_init__(self) -> None:
        check_range(self, "defenses.memguard", within(0, 2), "epsilon")
        check_range(self, "defenses.memguard", at_least(1), "steps", "epochs", "batch_size")
        check_range(self, "defenses.memguard", POSITIVE, "lr")


class Guard(nn.Module):
    """The membership classifier g: an MLP on sorted confidences, with initial weights drawn from `seed`."""

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
    """The undefended classifier with MemGuard's noise: images [n, 3, H, W] in [0, 1] -> log-probabilities [n, C]."""

    def __init__(self, classifier: nn.Module, guard: Guard, options: Options, seed: int) -> None:
        super().__init__()
        self.classifier, self.guard, self.options, self.seed = classifier, guard, options, seed

    def forward(self, images: Tensor) -> Tensor:
        return self.release(self.classifier(images).float(), image_keys(images))

    def release(self, logits: Tensor, keys: Tensor) -> Tensor:
        """Apply both phases to logits [n, C].

        `keys` int64 [n] identify the inputs (`common.seeds.image_keys`): equal keys have the same random draw of phase II.
        Returns finite log-probabilities [n, C] with the type and the labels (argmax) of `logits`.
        """
        with torch.inference_mode(False):  # phase I needs gradients, also where the caller has turned them off
            # In float64, because in float32 the softmax of a confident answer has no exact gradient.
            original = logits.detach().clone().double()
            noisy = find_noise(self.guard, original, self.options.steps)
        with torch.no_grad():
            probability = self.release_probability(original, noisy)
            uniform = [derive_seed("memguard", self.seed, key) / 2**63 for key in keys.tolist()]
            is_noisy = torch.tensor(uniform, dtype=probability.dtype, device=probability.device) < probability
            released = torch.where(is_noisy[:, None], noisy, original).log_softmax(1).to(logits.dtype)
            return _restore_labels(released, logits.argmax(1))

    def release_probability(self, original: Tensor, noisy: Tensor) -> Tensor:
        """Phase II: the probability [n] that the noisy logits [n, C] are released instead of the original ones [n, C].

        It is epsilon / (L1 distance of the confidences), at most 1. It is 0 where the noise moves P(member) no closer to 1/2.
        """
        before, after = original.softmax(1), noisy.softmax(1)
        distance = (after - before).abs().sum(1)
        is_closer = self.guard(after).abs() < self.guard(before).abs()
        probability = (self.options.epsilon / distance.clamp_min(1e-300)).clamp(max=1)
        return torch.where(is_closer, probability, 0.0)


def _restore_labels(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Make labels [n] the argmax of log_probabilities [n, C] again, where rounding has tied them with another class.

    The label's entry becomes the next number above the largest entry. Changes its first argument in place, and returns it.
    """
    top = log_probabilities.amax(1)
    rows = (log_probabilities.argmax(1) != labels).nonzero().squeeze(1)
    log_probabilities[rows, labels[rows]] = torch.nextafter(top, top.new_tensor(torch.inf))[rows]
    return log_probabilities


@torch.no_grad()
def find_noise(guard: nn.Module, logits: Tensor, steps: int) -> Tensor:
    """Phase I for all rows of logits [n, C], float64: the noisy logits, or the row unchanged where the search fails.

    A search succeeds where it moves P(member) across 1/2 and keeps the label. It is repeated from the original logits with the
    next larger distortion weight, which leads to less noise, until it fails. The result of the last success is returned.

    `guard` maps confidences [n, C] to the logit of P(member), [n]. `steps` limits the steps with each weight.
    """
    result, member_logits = logits.clone(), guard(logits.softmax(1)).double()
    rows = ((member_logits.sigmoid() - 0.5).abs() > UNDECIDED).nonzero().squeeze(1)
    for weight in DISTORTION_WEIGHTS:
        noisy, success = _descend(guard, logits[rows], member_logits[rows].sign(), weight, steps)
        rows = rows[success]
        result[rows] = noisy[success]
    return result


def _descend(
    guard: nn.Module, logits: Tensor, original_sign: Tensor, distortion_weight: float, steps: int
) -> tuple[Tensor, Tensor]:
    """At most `steps` normalised gradient steps from logits [n, C], until P(member) is across 1/2 and the label is kept.

    `original_sign` [n] is the sign of the output of g for `logits`. Returns the last logits [n, C] and the success, bool [n].

    The loss for logits z, confidences p = softmax(z), original confidences q and label y is (MemGuard paper, Algorithm 1)

        |g(p)| + c2 (max_j z_j - z_y) + c3 |p - q|_1,    c2 = LABEL_WEIGHT, c3 = `distortion_weight`
    """
    noisy, success = logits.clone(), torch.zeros_like(original_sign, dtype=torch.bool)
    original_confidences, labels = logits.softmax(1), logits.argmax(1, keepdim=True)
    for step in range(steps + 1):
        rows = (~success).nonzero().squeeze(1)
        if not len(rows):
            break
        z, label = noisy[rows], labels[rows]
        confidences, top = z.softmax(1), z.argmax(1, keepdim=True)
        with torch.enable_grad():
            member_logits = guard(confidences.requires_grad_())
            gradient_p = torch.autograd.grad(member_logits.abs().sum(), confidences)[0]
        crossed = (member_logits * original_sign[rows] < 0) & (top == label).squeeze(1)
        success[rows] = crossed
        if step == steps:
            break
        gradient_p = gradient_p + distortion_weight * (confidences - original_confidences[rows]).sign()
        gradient_z = confidences * (gradient_p - (confidences * gradient_p).sum(1, keepdim=True))  # the softmax's Jacobian
        # The second term of the loss has the gradient c2 at the largest logit and -c2 at the label.
        gradient_z.scatter_(1, top, LABEL_WEIGHT, reduce="add").scatter_(1, label, -LABEL_WEIGHT, reduce="add")
        # With this eps, a gradient of 0 gives a step of 0 and not NaN.
        descent = STEP * F.normalize(gradient_z, dim=1, eps=1e-100)
        noisy[rows] = z - descent * (~crossed)[:, None]
    return noisy, success


class GuardTraining(Objective):
    """Training of the guard of a MemGuard. The examples are confidences [n, C] in place of images, and membership, 0 or 1.

    Members and non-members have the same total weight, however many there are. The guard predicts 1/2 where it learns nothing.
    """

    shares_batches = False

    def __init__(self, model: MemGuard, examples: Examples, config: Train, device: torch.device) -> None:
        super().__init__(model, examples, config, device)
        self.guard = model.guard
        self.optimizer = torch.optim.SGD(self.guard.parameters(), config.lr)
        self.weight = len(examples) / (2 * torch.bincount(self.members.labels, minlength=2))  # of a non-member, of a member

    def step(self, index: Tensor, epoch: int) -> tuple[float, float]:
        """Train the guard on one batch. Returns its loss and how many memberships were predicted correctly."""
        index = index.to(self.device)
        membership = self.members.labels[index]
        member_logits = self.guard(self.members.images[index])
        loss = F.binary_cross_entropy_with_logits(member_logits, membership.float(), self.weight[membership])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item(), int(((member_logits > 0) == membership).sum())

    def stateful(self) -> dict[str, Stateful]:
        """The guard and its optimizer. The classifier does not change."""
        return {"guard": self.guard, "optimizer": self.optimizer}


def guard_examples(classifier: nn.Module, split: Split, data: Data, device: torch.device) -> Examples:
    """What the guard is trained on: the classifier's confidences [n, C], with membership 1 or 0, int64 [n], as labels.

    The members are those that no protocol scores, and the non-members all reference images. Raises UserError where there are
    none.
    """
    unscored = unscored_members(data) if split.unscored is None else split.unscored
    require(len(unscored) > 0, "memguard needs members that are not scored, to train its guard: raise data.members.")
    require(len(split.reference) > 0, "memguard needs reference images: raise data.reference.")
    members, non_members = split.members.take(unscored), split.reference
    confidences = torch.cat([predict(classifier, part, device).softmax(1) for part in (members, non_members)])
    return Examples(confidences, torch.cat([torch.ones_like(members.labels), torch.zeros_like(non_members.labels)]))


def build(run: Run) -> MemGuard:
    """MemGuard with the run's architecture and an untrained guard."""
    guard = Guard(DATASETS[run.dataset].classes, derive_seed("guard", run.seed))
    return MemGuard(target_classifier(run), guard, options_of(run, "memguard", Options), run.seed)


def train(run: Run, split: Split) -> nn.Module:
    """Train a guard for the undefended classifier, and return both as one MemGuard.

    The classifier is that of the last epoch. With `train.best_on_test`, another guard is trained for the epoch with the best
    accuracy on the test set, and written to `<path>.best.pt`. Raises UserError where the undefended classifier is missing. The
    message names the command that trains it.
    """
    path = model_path(run, "memguard")
    model = _train_guard(run, split, "clean", path)
    if run.config.train.best_on_test:
        _train_guard(run, split, "released", path.with_suffix(".best.pt"))
    return model


def _train_guard(run: Run, split: Split, protocol: str, path: Path) -> MemGuard:
    """Train a guard for the undefended classifier that `protocol` evaluates, and write both to `path`."""
    model, options = build(run), options_of(run, "memguard", Options)
    load_target(run, "undefended", protocol, model.classifier)
    config = dataclasses.replace(run.config.train, epochs=options.epochs, batch_size=options.batch_size, lr=options.lr)
    examples = guard_examples(model.classifier, split, run.config.data, run.device)
    remake = run.command("train_defense.py", "--defense memguard")
    fit(GuardTraining(model, examples, config, run.device), path, settings_of(run, "memguard"), run.seed, remake)
    return model.eval()
