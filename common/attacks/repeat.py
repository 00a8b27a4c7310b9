"""Attacks on Diffence itself, which the paper does not try: an attacker who asks about one image M times.

A single answer hides behind the noise of its reconstruction; a mean of M answers hides behind 1 / sqrt(M) of it. Where the
defense answers the same question always alike (`diffence.stable`), the attacker asks about M nearly identical images. Where
candidates are drawn until one qualifies, the time of an answer tells how many that took.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.attacks.contract import Outputs, Scores, redealt
from common.errors import UserError
from common.metrics import Floats, Ints, phi

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Answers:
    """M released answers about each of n images: `logits` float64 [n, M, C], true `labels` int64 [n] in 0..C-1.

    `drawn` int64 [n, M]: how many candidates each answer took. Raises UserError for other shapes, NaN or infinite logits, and
    labels that are no class.
    """

    logits: Floats
    labels: Ints
    drawn: Ints

    def __post_init__(self) -> None:
        z, y, drawn = np.asarray(self.logits, dtype=np.float64), np.asarray(self.labels), np.asarray(self.drawn)
        if z.ndim != 3 or z.shape[1] == 0 or y.shape != z.shape[:1] or drawn.shape != z.shape[:2]:
            shapes = f"{z.shape}, {y.shape} and {drawn.shape}"
            raise UserError(f"answers need logits [n, M >= 1, C], labels [n] and numbers drawn [n, M], not {shapes}.")
        flat = Outputs(z.reshape(-1, z.shape[2]), np.repeat(y, z.shape[1]))
        object.__setattr__(self, "logits", flat.logits.reshape(z.shape))
        object.__setattr__(self, "labels", y.astype(np.int64))
        object.__setattr__(self, "drawn", drawn.astype(np.int64))

    @property
    def log_p(self) -> Floats:
        """log p of the true label in each answer, float64 [n, M], at most 0: minus its loss."""
        return np.asarray(-np.logaddexp(0, -phi(self.logits, self.labels[:, None])))

    @property
    def right(self) -> Floats:
        """1 where an answer's label is the true one, else 0, float64 [n, M]."""
        return np.asarray(self.logits.argmax(2) == self.labels[:, None], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Asked:
    """The answers about the scored images, and about the attacker's known ones, on which it may fit."""

    members: Answers
    non_members: Answers
    known_members: Answers
    known_non_members: Answers

    def score(self, rule: Callable[[Answers], Floats]) -> Scores:
        """`rule` on all four: Answers of n images -> scores [n], higher = more likely a member."""
        return Scores(rule(self.members), rule(self.non_members), rule(self.known_members), rule(self.known_non_members))

    def first(self) -> "Asked":
        """The first answer about each image alone."""
        return Asked(*(Answers(part.logits[:, :1], part.labels, part.drawn[:, :1]) for part in vars(self).values()))

    def dealt_out(self, seed: int) -> "Asked":
        """The null: membership shuffled among the scored images, and among the known ones."""
        rng = np.random.default_rng(seed)
        scored = _dealt_out(self.members, self.non_members, rng)
        return Asked(*scored, *_dealt_out(self.known_members, self.known_non_members, rng))


def _dealt_out(members: Answers, non_members: Answers, rng: np.random.Generator) -> tuple[Answers, Answers]:
    order = rng.permutation(len(members.labels) + len(non_members.labels))
    parts = [redealt(getattr(members, part), getattr(non_members, part), order) for part in vars(members)]
    first, second = zip(*parts, strict=True)
    return Answers(*first), Answers(*second)


def gap(asked: Asked) -> Scores:
    """Whether the first answer is right: the floor that no defense which keeps labels can push an attacker below."""
    return asked.score(lambda answers: answers.right[:, 0])


def once(asked: Asked) -> Scores:
    """Minus the loss of the first answer: the attacker who asks once."""
    return asked.score(lambda answers: answers.log_p[:, 0])


def averaged(asked: Asked) -> Scores:
    """Minus the loss, averaged over the M answers: noise that is drawn anew averages out."""
    return asked.score(lambda answers: answers.log_p.mean(1))


def learned(asked: Asked, interval: Interval | None, timed: bool = False) -> Scores:
    """Log-odds of membership by a logistic regression on `features`, fitted on the known points."""
    known = [features(part, interval, timed) for part in (asked.known_members, asked.known_non_members)]
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    model.fit(np.concatenate(known), np.repeat([1, 0], [len(part) for part in known]))
    return asked.score(lambda answers: np.asarray(model.decision_function(features(answers, interval, timed))))


def features(answers: Answers, interval: Interval | None, timed: bool = False) -> Floats:
    """What M answers say of an image, float64 [n, 4], and a column more for each: a known interval, and `timed`.

    Mean log p of the true label; mean and standard deviation of phi of the released label; the fraction of right answers;
    the fraction whose phi lies in the defender's `interval`, ends included: an image that misses it in all N candidates
    shows; and, for an attacker who takes the time of the answers, the mean number of candidates drawn.
    """
    released = phi(answers.logits)
    columns = [answers.log_p.mean(1), released.mean(1), released.std(1), answers.right.mean(1)]
    if interval is not None:
        columns.append(((released >= interval[0]) & (released <= interval[1])).mean(1))
    if timed:
        columns.append(answers.drawn.mean(1))
    return np.stack(columns, axis=1)


def nearby(image: NDArray[np.uint8], m: int, seed: int) -> NDArray[np.uint8]:
    """M images one grey level away from `image`: each value goes up or down by 1, at random, and stays in 0..255: [M, ...]."""
    change = 2 * np.random.default_rng(seed).integers(0, 2, (m, *image.shape), dtype=np.int16) - 1
    return np.clip(image + change, 0, 255).astype(np.uint8)
