"""Every attack on one defended model, and the same attacks under shuffled membership."""

from dataclasses import replace
from operator import attrgetter

import numpy as np
from tqdm import tqdm

from common.attacks import ATTACKS, TRAINED
from common.attacks.contract import Outputs, Scores, shuffle_membership
from common.attacks.nn import NNOptions
from common.metrics.privacy import Ints
from common.pair import Pair
from common.seeds import derive_seed


def attack_all(
    outputs: Pair[Outputs], known: Pair[Ints], scored: Pair[Ints], options: NNOptions, seed: int
) -> dict[str, Scores]:
    """Scores of every attack of ATTACKS, by name.

    `known` and `scored` are positions in `outputs`. The attacker sees its known points through the defense too: it is adaptive.
    A point that is both known and scored is not scored by attacks that train on the known points.
    """
    known_outputs, unknown = outputs.map(Outputs.take, known), scored.map(np.setdiff1d, known)
    scores = {}
    for name, attack in tqdm(ATTACKS.items(), desc="attacks", leave=False, disable=None):
        scored_outputs = outputs.map(Outputs.take, unknown if name in TRAINED else scored)
        scores[name] = attack(known_outputs, scored_outputs, options, derive_seed("attack", name, seed))
    return scores


def attack_shuffled(
    outputs: Pair[Outputs], known: Pair[Ints], scored: Pair[Ints], options: NNOptions, seed: int, shuffle_seed: int
) -> dict[str, Scores]:
    """The null: scores of every attack under shuffled membership, by name.

    Membership is shuffled once, among all known and scored points of both sides together. Attacks that train on the known
    points are trained again. The AUC of an attack then has the mean .5 and the standard error sqrt((2n + 1) / 12) / n for n + n
    scored points. At n = 1,000 that is .013, and the largest AUC of the paper's five attacks is .509 on average, because three
    of them rank points almost alike.

    With `select_on="scored"`, the epoch of the NN attack is selected on the scored points, which raises its AUC under the null.
    With "known", the null does not depend on the number of epochs, and the NN attack is trained for a fifth of them.
    """
    used = known.map(np.union1d, scored)
    order = np.random.default_rng(shuffle_seed).permutation(sum(map(len, used)))
    pooled = outputs.map(Outputs.take, used)
    logits, labels = (shuffle_membership(pooled.map(attrgetter(name)), order) for name in ("logits", "labels"))
    if options.select_on == "known":
        options = replace(options, nn_epochs=-(-options.nn_epochs // 5))
    known, scored = (_positions(used, points) for points in (known, scored))
    return attack_all(logits.map(Outputs, labels), known, scored, options, seed)


def _positions(used: Pair[Ints], points: Pair[Ints]) -> Pair[Ints]:
    """The positions of `points` among the sorted points `used`."""
    return used.map(lambda all_points, subset: np.asarray(np.searchsorted(all_points, subset)), points)
