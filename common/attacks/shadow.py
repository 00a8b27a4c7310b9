"""LiRA and RMIA behind one contract: what shadow models answer about the points in, `Scores` of every attack out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from common.attacks.contract import Scores
from common.attacks.lira import Bools, lira
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


def shadow_attacks(outputs: ShadowOutputs, parts: Sequence[Ints], options: Attack, online: bool = True) -> dict[str, Scores]:
    """Scores of every attack, without `online` of the offline ones.

    `parts`: positions of the scored members and non-members and of the attacker's known ones, in the order of `Scores`.
    """
    chosen = {name: attack for name, attack in SHADOW_ATTACKS.items() if online or name.endswith("offline")}
    labels = [outputs.labels[part] for part in parts]
    every = {name: attack(outputs, options) for name, attack in chosen.items()}
    return {name: Scores(*(points[part] for part in parts), labels=labels) for name, points in every.items()}
