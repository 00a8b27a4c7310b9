"""Every attack behind one contract (paper Section IV-A): known points and scored points in, `Scores` out.

An attack of your own: write a function of the type `Attack` and add it to `ATTACKS`; one that needs only `Outputs` goes
into `METRIC_ATTACKS`. Metrics are computed from `Scores` by `common.metrics`, never by an attack.
"""

from collections.abc import Callable

from common.attacks.contract import Known, Outputs, Scores
from common.attacks.metric import METRIC_ATTACKS, MetricAttack
from common.attacks.nn import NNOptions, nn_attack

__all__ = ["ATTACKS", "METRIC_ATTACKS", "TRAINED", "Attack", "Known", "NNOptions", "Outputs", "Scores"]

# (known points, scored members, scored non-members, NN options, seed) -> scores, higher = more likely a member
Attack = Callable[[Known, Outputs, Outputs, NNOptions, int], Scores]


def threshold_attack(score: MetricAttack) -> Attack:
    """The attack that scores every point with `score`; options and seed have no effect on it."""

    def attack(known: Known, members: Outputs, non_members: Outputs, options: NNOptions, seed: int) -> Scores:
        sides = (members, non_members, known.members, known.non_members)
        return Scores(*map(score, sides), labels=[side.labels for side in sides])

    return attack


ATTACKS: dict[str, Attack] = {"nn": nn_attack, **{name: threshold_attack(f) for name, f in METRIC_ATTACKS.items()}}

# Attacks that learn from the known points: never score those points with them.
TRAINED = frozenset({"nn"})
