"""Attacks on Diffence itself, which the paper does not try: an attacker who asks about one image M times.

A single answer hides behind the noise of its reconstruction; a mean of M answers hides behind 1 / sqrt(M) of it. Where the
defense answers the same question always alike (`diffence.stable`), the attacker asks about M nearly identical images. Where
candidates are drawn until one qualifies, the time of an answer tells how many that took.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.attacks.contract import Outputs, Scores, shuffle_membership
from common.errors import UserError
from common.metrics.privacy import Floats, Ints, phi
from common.pair import Pair

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

    def first(self) -> "Answers":
        """The first answer about each image alone."""
        return Answers(self.logits[:, :1], self.labels, self.drawn[:, :1])


@dataclass(frozen=True, eq=False)
class Repeated:
    """Repeated answers about the scored images, and about the attacker's known ones, on which it may fit."""

    scored: Pair[Answers]
    known: Pair[Answers]

    def score(self, rule: Callable[[Answers], Floats]) -> Scores:
        """Apply `rule` to every side: Answers of n images -> scores [n], higher = more likely a member."""
        return Scores(self.scored.map(rule), self.known.map(rule))

    def first(self) -> "Repeated":
        """The first answer about each image alone."""
        return Repeated(self.scored.map(Answers.first), self.known.map(Answers.first))

    def shuffled(self, seed: int) -> "Repeated":
        """The null: membership shuffled among the scored images, and among the known ones."""
        rng = np.random.default_rng(seed)
        return Repeated(*(_shuffled(pair, rng) for pair in (self.scored, self.known)))


def _shuffled(pair: Pair[Answers], rng: np.random.Generator) -> Pair[Answers]:
    order = rng.permutation(sum(len(side.labels) for side in pair))
    parts = [shuffle_membership(pair.map(attrgetter(name)), order) for name in ("logits", "labels", "drawn")]
    return parts[0].map(Answers, *parts[1:])


def gap(repeated: Repeated) -> Scores:
    """Whether the first answer is right: the floor that no defense which keeps labels can push an attacker below."""
    return repeated.score(lambda answers: answers.right[:, 0])


def once(repeated: Repeated) -> Scores:
    """Minus the loss of the first answer: the attacker who asks once."""
    return repeated.score(lambda answers: answers.log_p[:, 0])


def averaged(repeated: Repeated) -> Scores:
    """Minus the loss, averaged over the M answers. Noise that is drawn anew for each answer averages out."""
    return repeated.score(lambda answers: answers.log_p.mean(1))


def learned(repeated: Repeated, interval: Interval | None, timed: bool = False) -> Scores:
    """Log-odds of membership by a logistic regression on `features`, fitted on the known points."""
    known = [features(side, interval, timed) for side in repeated.known]
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    model.fit(np.concatenate(known), np.repeat([1, 0], [len(side) for side in known]))
    return repeated.score(lambda answers: np.asarray(model.decision_function(features(answers, interval, timed))))


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
