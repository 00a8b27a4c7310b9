"""The attacks by name (paper Section IV-A). An attack gets the outputs of known and of scored points and returns `Scores`.

To add an attack, write a function of the type `Attack` and add it to `ATTACKS`. An attack that computes its score from the
outputs of a point alone belongs in `METRIC_ATTACKS`. Attacks return scores. Metrics are computed from them in `common.metrics`
only.
"""

from collections.abc import Callable
from operator import attrgetter

from common.attacks.contract import Outputs, Scores
from common.attacks.metric import METRIC_ATTACKS, MetricAttack
from common.attacks.nn import NNOptions, nn_attack
from common.pair import Pair

__all__ = ["ATTACKS", "METRIC_ATTACKS", "TRAINED", "Attack", "NNOptions", "Outputs", "Scores"]

# (known points, scored points, options of the NN attack, seed) -> scores, higher = more likely a member
Attack = Callable[[Pair[Outputs], Pair[Outputs], NNOptions, int], Scores]


def threshold_attack(score: MetricAttack) -> Attack:
    """An attack that applies `score` to every point. It ignores the options of the NN attack and the seed."""

    def attack(known: Pair[Outputs], scored: Pair[Outputs], options: NNOptions, seed: int) -> Scores:
        return Scores(scored.map(score), known.map(score), scored.map(attrgetter("labels")), known.map(attrgetter("labels")))

    return attack


ATTACKS: dict[str, Attack] = {"nn": nn_attack, **{name: threshold_attack(score) for name, score in METRIC_ATTACKS.items()}}

# Attacks that train on the known points. They must not score the same points.
TRAINED = frozenset({"nn"})
