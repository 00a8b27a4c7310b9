"""The attacks by name, behind one contract (paper Section IV-A): known points and scored points in, `Scores` out.

To add an attack, write a function of the type `Attack` and add it to `ATTACKS`. An attack that thresholds one number computed
from `Outputs` goes into `METRIC_ATTACKS`. An attack returns scores; `common.metrics` alone computes metrics from them.
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
    """The attack that scores every point with `score`. Options and seed have no effect on it."""

    def attack(known: Pair[Outputs], scored: Pair[Outputs], options: NNOptions, seed: int) -> Scores:
        return Scores(scored.map(score), known.map(score), scored.map(attrgetter("labels")), known.map(attrgetter("labels")))

    return attack


ATTACKS: dict[str, Attack] = {"nn": nn_attack, **{name: threshold_attack(f) for name, f in METRIC_ATTACKS.items()}}

# Attacks that train on the known points. They must not score those points.
TRAINED = frozenset({"nn"})
