"""What an attacker sees and what an attack returns (threat model: paper Section II-B).

An attack reads the released outputs of labelled images, after every defense, and nothing of the model's inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from common.errors import UserError
from common.metrics import Floats, Ints, phi


@dataclass(frozen=True, eq=False)
class Outputs:
    """The released outputs of n images: `logits` float64 [n, C], true `labels` int64 [n] in 0..C-1.

    A defense that releases probabilities (MemGuard) passes their logarithms, clipped to be finite.
    Raises UserError for other shapes, NaN or infinite logits, and labels that are no class.
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

        Computed as log(1 + exp(-phi)), which still tells apart predictions whose p_y rounds to 1 or to 0.
        """
        return np.asarray(np.logaddexp(0, -phi(self.logits, self.labels)))

    def take(self, index: Ints) -> "Outputs":
        """The outputs of the images at `index` [k], in that order."""
        return Outputs(self.logits[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Known:
    """The attacker's own points, whose membership it knows (paper Section II-B, "Partial Knowledge of Membership")."""

    members: Outputs
    non_members: Outputs


@dataclass(frozen=True, eq=False)
class Scores:
    """One score a point, higher = more likely a member.

    `members` [n] and `non_members` [m] are the points whose membership is guessed. `known_members` and
    `known_non_members` are the attacker's points on which it may fit a threshold. `labels` are the true classes of the
    four, in their order: where they are given, thresholds can be fitted per class.
    """

    members: Floats
    non_members: Floats
    known_members: Floats
    known_non_members: Floats
    labels: Sequence[Ints] | None = field(default=None, kw_only=True)


def redealt(members: NDArray[Any], non_members: NDArray[Any], order: Ints) -> list[NDArray[Any]]:
    """Both sides' rows, [n, ..] and [m, ..], pooled, members first, and dealt out again in `order` [n + m]: a null."""
    return np.split(np.concatenate([members, non_members])[order], [len(members)])


def dealt_out(scores: Scores, seed: int) -> Scores:
    """The null of an attack that never looked at the target's members: membership shuffled among its known and its scored
    points. Labels are left out.
    """
    rng = np.random.default_rng(seed)
    pairs = (scores.members, scores.non_members), (scores.known_members, scores.known_non_members)
    return Scores(*(side for pair in pairs for side in redealt(*pair, rng.permutation(sum(map(len, pair))))))
