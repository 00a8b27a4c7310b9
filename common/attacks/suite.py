"""Every attack on one defended model, and the same attacks where there is nothing to find."""

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

    `known` and `scored` are positions in `outputs`. The known points are outputs of the defended model too: attackers are
    adaptive. A point that is known as well as scored is not scored by attacks that were trained on it.
    """
    known_outputs, unseen = outputs.map(Outputs.take, known), scored.map(np.setdiff1d, known)
    scores = {}
    for name, attack in tqdm(ATTACKS.items(), desc="attacks", leave=False, disable=None):
        scored_outputs = outputs.map(Outputs.take, unseen if name in TRAINED else scored)
        scores[name] = attack(known_outputs, scored_outputs, options, derive_seed("attack", name, seed))
    return scores


def attack_shuffled(
    outputs: Pair[Outputs], known: Pair[Ints], scored: Pair[Ints], options: NNOptions, seed: int, shuffle_seed: int
) -> dict[str, Scores]:
    """The null: scores of every attack after membership was shuffled, so that there is nothing to find.

    Membership is shuffled once, among all known and scored points of both sides together; attacks that train do so again. Each
    AUC is then .5 give or take sqrt((2n + 1) / 12) / n, which is .013 at 1,000 + 1,000 scored points. The best of the paper's
    five attacks is .509 on average, because three of them rank almost alike. An attack that chooses its epoch on the scored
    points (`select_on="scored"`) finds more. Otherwise nothing is chosen there, no number of epochs can move the null, and the
    NN attack trains for a fifth of them.
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
    """Where `points` are among the sorted points `used`."""
    return used.map(lambda all_points, some: np.asarray(np.searchsorted(all_points, some)), points)
