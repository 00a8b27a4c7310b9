"""Attacks on Diffence itself with M queries for each image. The paper has no such attack.

The noise of its reconstruction hides membership in a single answer. In the mean of M answers, that noise is smaller by a factor
of sqrt(M). If equal queries get equal answers (`diffence.stable`), the attacker queries M nearly identical images instead. If
candidates are drawn until one qualifies, the response time reveals how many were drawn.
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
    """M released answers for each of n images: `logits` float64 [n, M, C], true `labels` int64 [n] in 0..C-1.

    `drawn` int64 [n, M] is the number of candidates drawn for each answer. Raises UserError for other shapes, for NaN or
    infinite logits, and for labels outside 0..C-1.
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
        """Minus the loss of each answer: log p of the true label, float64 [n, M], at most 0."""
        return np.asarray(-np.logaddexp(0, -phi(self.logits, self.labels[:, None])))

    @property
    def correct(self) -> Floats:
        """1 where the label of an answer is correct, else 0, float64 [n, M]."""
        return np.asarray(self.logits.argmax(2) == self.labels[:, None], dtype=np.float64)

    def first(self) -> "Answers":
        """The first of the M answers for each image: `Answers` with M = 1."""
        return Answers(self.logits[:, :1], self.labels, self.drawn[:, :1])


@dataclass(frozen=True, eq=False)
class RepeatedAnswers:
    """Answers for the scored images and for the attacker's known images, on which a model or a threshold may be fitted."""

    scored: Pair[Answers]
    known: Pair[Answers]

    def score(self, rule: Callable[[Answers], Floats]) -> Scores:
        """Apply `rule`, a function from `Answers` to scores [n] (higher = more likely a member), to all images."""
        return Scores(self.scored.map(rule), self.known.map(rule))

    def first(self) -> "RepeatedAnswers":
        """The first of the M answers for each image: `RepeatedAnswers` with M = 1."""
        return RepeatedAnswers(self.scored.map(Answers.first), self.known.map(Answers.first))

    def shuffled(self, seed: int) -> "RepeatedAnswers":
        """The null: shuffle membership among the scored images, then among the known images."""
        rng = np.random.default_rng(seed)
        return RepeatedAnswers(_shuffled(self.scored, rng), _shuffled(self.known, rng))


def _shuffled(pair: Pair[Answers], rng: np.random.Generator) -> Pair[Answers]:
    """Shuffle the membership of images. An image's answers, label and numbers of candidates stay together."""
    order = rng.permutation(sum(len(side.labels) for side in pair))
    logits, labels, drawn = (shuffle_membership(pair.map(attrgetter(name)), order) for name in ("logits", "labels", "drawn"))
    return logits.map(Answers, labels, drawn)


def gap_attack(repeated: RepeatedAnswers) -> Scores:
    """1 where the label of the first answer is correct, else 0. No defense that keeps labels can weaken this attack."""
    return repeated.score(lambda answers: answers.correct[:, 0])


def loss_attack(repeated: RepeatedAnswers) -> Scores:
    """Minus the loss of the first answer. This attack needs a single query for each image."""
    return repeated.score(lambda answers: answers.log_p[:, 0])


def mean_loss_attack(repeated: RepeatedAnswers) -> Scores:
    """Minus the mean loss of the M answers. It averages out noise that is drawn anew for each answer."""
    return repeated.score(lambda answers: answers.log_p.mean(1))


def regression_attack(repeated: RepeatedAnswers, interval: Interval | None, timed: bool = False) -> Scores:
    """Log-odds of membership by a logistic regression on `features`, which is fitted on the known images."""
    known = [features(side, interval, timed) for side in repeated.known]
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    model.fit(np.concatenate(known), np.repeat([1, 0], [len(side) for side in known]))
    return repeated.score(lambda answers: np.asarray(model.decision_function(features(answers, interval, timed))))


def features(answers: Answers, interval: Interval | None, timed: bool = False) -> Floats:
    """Features of the M answers for each image, float64 [n, 4..6].

    The columns are:
    - the mean log p of the true label
    - the mean and the standard deviation of phi of the released label (two columns)
    - the share of answers with the correct label
    - with the defender's `interval`: the share of answers whose phi lies in it, ends included. It is small for an image without
      a candidate in the interval
    - if `timed`, for an attacker that measures response times: the mean number of candidates drawn
    """
    released_phi = phi(answers.logits)
    columns = [answers.log_p.mean(1), released_phi.mean(1), released_phi.std(1), answers.correct.mean(1)]
    if interval is not None:
        columns.append(((released_phi >= interval[0]) & (released_phi <= interval[1])).mean(1))
    if timed:
        columns.append(answers.drawn.mean(1))
    return np.stack(columns, axis=1)


def nearby_images(image: NDArray[np.uint8], m: int, seed: int) -> NDArray[np.uint8]:
    """M nearly identical images [M, ...]: each value of `image` is raised or lowered by 1 at random and clipped to 0..255."""
    change = 2 * np.random.default_rng(seed).integers(0, 2, (m, *image.shape), dtype=np.int16) - 1
    return np.clip(image + change, 0, 255).astype(np.uint8)
