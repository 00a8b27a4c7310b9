"""The input and the result of an attack (threat model: paper Section II-B).

An attack sees the outputs that a model releases for labelled images, after every defense. It does not see the model's weights
or gradients.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from common.errors import UserError
from common.metrics.privacy import Floats, Ints, phi
from common.pair import Pair


@dataclass(frozen=True, eq=False)
class Outputs:
    """The released outputs of n images: `logits` float64 [n, C], true `labels` int64 [n] in 0..C-1.

    For a defense that releases probabilities (MemGuard), the logits are their logarithms, clipped to be finite. Raises
    UserError for other shapes, for NaN or infinite logits, and for labels outside 0..C-1.
    """

    logits: Floats
    labels: Ints

    def __post_init__(self) -> None:
        z, y = np.asarray(self.logits, dtype=np.float64), np.asarray(self.labels)
        if z.ndim != 2 or z.shape[0] == 0 or z.shape[1] < 2 or y.shape != z.shape[:1]:
            raise UserError(f"outputs need logits [n, C >= 2] and labels [n], n >= 1, not {z.shape} and {y.shape}.")
        bad = int((~np.isfinite(z)).any(axis=1).sum())
        if bad:
            raise UserError(f"{bad} of {len(z)} rows of logits hold NaN or infinite values: check the model's outputs.")
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= z.shape[1]:
            raise UserError(f"labels must be integers in 0..{z.shape[1] - 1}, the classes of the logits.")
        object.__setattr__(self, "logits", z)
        object.__setattr__(self, "labels", y.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.logits.shape[1]

    @property
    def probabilities(self) -> Floats:
        """Softmax of the logits, float64 [n, C], 0..1."""
        return np.asarray(softmax(self.logits, axis=1))

    @property
    def loss(self) -> Floats:
        """Cross-entropy -log p_y = logsumexp(z) - z_y of the true label, float64 [n], in nats, >= 0.

        It is computed as log(1 + exp(-phi)), which differs even between predictions whose p_y rounds to 1 or to 0.
        """
        return np.asarray(np.logaddexp(0, -phi(self.logits, self.labels)))

    def take(self, index: Ints) -> "Outputs":
        """The outputs of the images at `index` [k], in that order."""
        return Outputs(self.logits[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Scores:
    """One score for each point, higher = more likely a member: float64 vectors.

    `scored` are the scores of the points whose membership is inferred. `known` are those of the attacker's own points, on which
    a threshold may be fitted. `scored_labels` and `known_labels` are the true classes of the same points. They are needed only
    for a threshold per class.
    """

    scored: Pair[Floats]
    known: Pair[Floats]
    scored_labels: Pair[Ints] | None = None
    known_labels: Pair[Ints] | None = None


def shuffle_membership(pair: Pair[NDArray[Any]], order: Ints) -> Pair[NDArray[Any]]:
    """Shuffle the rows of members [n, ..] and non-members [m, ..] across both sides.

    `order` [n + m] is a permutation of all rows, in which the rows of the non-members follow those of the members. The first n
    shuffled rows are the new members. Whatever is computed from the result is independent of membership: it is a null.
    """
    return Pair(*np.split(np.concatenate([*pair])[order], [len(pair.members)]))


def shuffled_scores(scores: Scores, seed: int) -> Scores:
    """The null of an attack that does not learn from the target's members: its scores under shuffled membership.

    The known points and the scored points are shuffled separately. The result has no labels.
    """
    rng = np.random.default_rng(seed)
    return Scores(*(shuffle_membership(pair, rng.permutation(sum(map(len, pair)))) for pair in (scores.scored, scores.known)))
