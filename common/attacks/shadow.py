"""The attacks with shadow models, LiRA and RMIA, by name: from phi of the points under all models to `Scores`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from common.attacks.contract import Scores
from common.attacks.lira import Bools, checked_shadows, lira
from common.attacks.rmia import rmia
from common.config import Attack
from common.metrics.privacy import Floats, Ints
from common.pair import Pair


@dataclass(frozen=True, eq=False)
class ShadowOutputs:
    """phi of n points under the target and under M shadow models. The arrays are those of `common.attacks.lira`."""

    target: Floats  # [A, n], phi under the target
    shadow: Floats  # [M, A, n], phi under the shadow models
    keep: Bools  # [M, n], True where a shadow model was trained on the point
    labels: Ints  # [n], true classes
    population: Ints  # [k], positions of RMIA's population, which are non-members of the target


def _lira(outputs: ShadowOutputs, options: Attack, online: bool) -> Floats:
    return lira(
        outputs.target,
        outputs.shadow,
        outputs.keep,
        online=online,
        variance=options.lira_variance,
        tail=options.lira_tail,
    )


def _rmia(outputs: ShadowOutputs, options: Attack, online: bool) -> Floats:
    z = outputs.population
    return rmia(
        outputs.target,
        outputs.shadow,
        outputs.keep,
        outputs.target[:, z],
        outputs.shadow[:, :, z],
        online=online,
        gamma=options.rmia_gamma,
        offline_a=options.rmia_a,
        population_keep=outputs.keep[:, z],
    )


@dataclass(frozen=True)
class ShadowAttack:
    """An attack and the shadow models that it needs.

    score: a function from (outputs, options, online) to scores [n].
    online: whether it needs IN models of every point. Every attack needs OUT models of every point.
    spread: whether it needs two models of some point, of each kind used, to estimate a standard deviation.
    """

    score: Callable[[ShadowOutputs, Attack, bool], Floats]
    online: bool
    spread: bool

    def possible(self, keep: Bools) -> bool:
        """Whether shadow models with the training points `keep` [M, n] are enough for this attack."""
        masks = (keep, ~keep) if self.online else (~keep,)
        return all(mask.any(axis=0).all() and mask.sum(axis=0).max() >= 1 + self.spread for mask in masks)


SHADOW_ATTACKS = {
    "lira-online": ShadowAttack(_lira, online=True, spread=True),
    "lira-offline": ShadowAttack(_lira, online=False, spread=True),
    "rmia-online": ShadowAttack(_rmia, online=True, spread=False),
    "rmia-offline": ShadowAttack(_rmia, online=False, spread=False),
}


def possible_attacks(keep: Bools) -> list[str]:
    """The names of the attacks for which shadow models with the training points `keep` [M, n] are enough."""
    return [name for name, attack in SHADOW_ATTACKS.items() if attack.possible(keep)]


def shadow_attacks(outputs: ShadowOutputs, known: Pair[Ints], scored: Pair[Ints], options: Attack) -> dict[str, Scores]:
    """Scores of every possible attack, by name. `known` and `scored` are positions among the n points.

    Raises UserError if a point has no OUT model, because no attack is possible then.
    """
    checked_shadows(outputs.target, outputs.shadow, outputs.keep, online=False)
    labels = _at(outputs.labels, scored), _at(outputs.labels, known)
    scores = {}
    for name in possible_attacks(outputs.keep):
        attack = SHADOW_ATTACKS[name]
        point_scores = attack.score(outputs, options, attack.online)
        scores[name] = Scores(_at(point_scores, scored), _at(point_scores, known), *labels)
    return scores


def _at(values: NDArray[Any], positions: Pair[Ints]) -> Pair[NDArray[Any]]:
    """The `values` [n] at the positions of members and of non-members."""
    return positions.map(lambda index: values[index])


def population_warnings(attacks: Iterable[str], population: int, fpr: float) -> list[str]:
    """A warning about RMIA's TPR at `fpr`, if RMIA is among the `attacks` and its `population` has too few points."""
    if population * fpr >= 1 or not any(name.startswith("rmia") for name in attacks):
        return []
    return [
        f"RMIA's population are the {population:,} known non-members, fewer than 1 / FPR: its scores tie at the top, and its "
        f"TPR at {100 * fpr:g}% FPR may be far too low, even 0."
    ]
