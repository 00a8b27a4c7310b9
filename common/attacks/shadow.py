"""LiRA and RMIA behind one contract: what shadow models answer about the points in, `Scores` of every attack out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from common.attacks.contract import Scores
from common.attacks.lira import Bools, checked_shadows, lira
from common.attacks.rmia import rmia
from common.config import Attack
from common.metrics.privacy import Floats, Ints
from common.pair import Pair


@dataclass(frozen=True, eq=False)
class ShadowOutputs:
    """phi of n points under the target and under M shadow models; arrays as in `common.attacks.lira`."""

    target: Floats  # [A, n]
    shadow: Floats  # [M, A, n]
    keep: Bools  # [M, n]
    labels: Ints  # [n], true classes
    population: Ints  # [k], positions of RMIA's population points z: non-members of the target


def _lira(outputs: ShadowOutputs, options: Attack, online: bool) -> Floats:
    data = outputs.target, outputs.shadow, outputs.keep
    return lira(*data, online=online, variance=options.lira_variance, tail=options.lira_tail)


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
    """An attack and the shadow models that it needs: OUT models of every point and, `online`, IN models too.

    `score`: what shadow models answer, settings, online -> scores [n]. `spread`: it also needs two models of some point on each
    side that it uses, to find a spread between them.
    """

    score: Callable[[ShadowOutputs, Attack, bool], Floats]
    online: bool
    spread: bool


SHADOW_ATTACKS = {
    "lira-online": ShadowAttack(_lira, online=True, spread=True),
    "lira-offline": ShadowAttack(_lira, online=False, spread=True),
    "rmia-online": ShadowAttack(_rmia, online=True, spread=False),
    "rmia-offline": ShadowAttack(_rmia, online=False, spread=False),
}


def possible(keep: Bools) -> list[str]:
    """The attacks that shadow models trained on `keep` [M, n] allow."""
    names = []
    for name, attack in SHADOW_ATTACKS.items():
        sides = (keep, ~keep) if attack.online else (~keep,)
        if all(side.any(axis=0).all() and side.sum(axis=0).max() >= 1 + attack.spread for side in sides):
            names.append(name)
    return names


def shadow_attacks(outputs: ShadowOutputs, known: Pair[Ints], scored: Pair[Ints], options: Attack) -> dict[str, Scores]:
    """Scores of every attack that is `possible`, by name. `known` and `scored` are positions among the n points.

    Raises UserError where a point has no OUT model, because then no attack is possible.
    """
    checked_shadows(outputs.target, outputs.shadow, outputs.keep, online=False)
    scores = {}
    for name in possible(outputs.keep):
        attack = SHADOW_ATTACKS[name]
        points = attack.score(outputs, options, attack.online)
        parts = [pair.map(lambda index, of=of: of[index]) for of in (points, outputs.labels) for pair in (scored, known)]
        scores[name] = Scores(*parts)
    return scores


def population_warnings(attacks: Iterable[str], population: int, fpr: float) -> list[str]:
    """What a reader of RMIA's TPR at `fpr` must know, where it is among the `attacks` and its population is too small."""
    if population * fpr >= 1 or not any(name.startswith("rmia") for name in attacks):
        return []
    return [
        f"RMIA's population are the {population:,} known non-members, fewer than 1 / FPR: its scores tie at the top, and its "
        f"TPR at {100 * fpr:g}% FPR may be far too low, even 0."
    ]
