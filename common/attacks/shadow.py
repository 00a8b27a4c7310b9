"""LiRA and RMIA behind one contract: what shadow models answer about the points in, `Scores` of every attack out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from common.attacks.contract import Scores
from common.attacks.lira import Bools, checked_shadows, lira
from common.attacks.rmia import rmia
from common.config import Attack
from common.metrics import Floats, Ints


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


# what shadow models answer, settings -> scores [n]
ShadowAttack = Callable[[ShadowOutputs, Attack], Floats]

SHADOW_ATTACKS: dict[str, ShadowAttack] = {
    "lira-online": partial(_lira, online=True),
    "lira-offline": partial(_lira, online=False),
    "rmia-online": partial(_rmia, online=True),
    "rmia-offline": partial(_rmia, online=False),
}


def possible(keep: Bools) -> list[str]:
    """The attacks that shadow models trained on `keep` [M, n] allow.

    All need an OUT model of every point, online ones an IN model too, and LiRA on each side that it uses two models of some
    point, between which to find a spread.
    """
    found = []
    for name in SHADOW_ATTACKS:
        models = 2 if name.startswith("lira") else 1
        sides = (keep, ~keep) if name.endswith("online") else (~keep,)
        if all(side.any(axis=0).all() and side.sum(axis=0).max() >= models for side in sides):
            found.append(name)
    return found


def shadow_attacks(outputs: ShadowOutputs, parts: Sequence[Ints], options: Attack) -> dict[str, Scores]:
    """Scores of every attack that is `possible`. Raises UserError where a point has no OUT model, as none is then.

    `parts`: positions of the scored members and non-members and of the attacker's known ones, in the order of `Scores`.
    """
    checked_shadows(outputs.target, outputs.shadow, outputs.keep, online=False)
    labels = [outputs.labels[part] for part in parts]
    every = {name: SHADOW_ATTACKS[name](outputs, options) for name in possible(outputs.keep)}
    return {name: Scores(*(points[part] for part in parts), labels=labels) for name, points in every.items()}


def population_warnings(attacks: Iterable[str], population: int, fpr: float) -> list[str]:
    """What a reader of RMIA's TPR at `fpr` must know, where it is among the `attacks` and its population is too small."""
    if population * fpr >= 1 or not any(name.startswith("rmia") for name in attacks):
        return []
    return [
        f"RMIA's population are the {population:,} known non-members, fewer than 1 / FPR: its scores tie at the top, and its "
        f"TPR at {100 * fpr:g}% FPR may be far too low, even 0."
    ]
