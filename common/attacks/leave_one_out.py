"""Attacks on M models, each of which is the target once while the others are its shadow models.

Models 2j and 2j + 1 are trained on complementary halves of one pool. While one of them is the target, both are left out. If the
target alone were left out, its members would have one IN model fewer than its non-members. Their medians would then vary more,
and attacks without any signal would have an AUC below .5.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from tqdm import tqdm

from common.attacks.lira import Bools
from common.attacks.shadow import SHADOW_ATTACKS, ShadowOutputs, possible_attacks
from common.config import Attack
from common.metrics.privacy import Floats, Ints


def shadow_scores_of_all(phi: Floats, in_mask: Bools, labels: Ints, known: Ints, options: Attack) -> dict[str, Floats]:
    """Scores [M, n] of LiRA and RMIA on every model, by name, with the M - 2 models of the other pairs as shadow models.

    `phi` float64 [M, n] is that of the true label of each point under each model, `in_mask` bool [M, n] the membership and
    `labels` int64 [n] the true classes. The population of RMIA are the known points (positions `known`) that are not members of
    the target. Raises UserError where a point has no OUT model.
    """
    models = len(phi)
    scores: dict[str, list[Floats]] = {}
    for target in range(models):
        others = np.flatnonzero(_outside(models, target))
        population = known[~in_mask[target, known]]
        outputs = ShadowOutputs(phi[[target]], phi[others][:, None], in_mask[others], labels, population)
        for name in possible_attacks(in_mask[others]):
            attack = SHADOW_ATTACKS[name]
            scores.setdefault(name, []).append(attack.score(outputs, options, attack.online))
    return {name: np.stack(of_models) for name, of_models in scores.items() if len(of_models) == models}


def knowing_scores(features: Floats, phi: Floats, in_mask: Bools, seed: int) -> Floats:
    """Scores float64 [M, n] of an attacker who knows the defense and has trained shadow models behind it, 0..1.

    `features` float64 [M, n, F] are what the attacker sees of each point under each model. `phi` and `in_mask` are those of
    `shadow_scores_of_all`. Two features are added: phi minus its median over the IN models of the point, and phi minus that
    over its OUT models, among the models of neither the target's pair nor the pair of the model in question. For every target,
    gradient-boosted trees learn membership from all points under the M - 2 models of the other pairs.
    """
    scores = []
    for target in tqdm(range(len(phi)), desc="attacker who knows", unit="model", leave=False, disable=None):
        shadows = np.flatnonzero(_outside(len(phi), target))
        tables = {model: _with_offsets(features[model], phi, in_mask, model, target) for model in (*shadows, target)}
        trees = HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=8, early_stopping=False, random_state=seed % 2**32)
        trees.fit(np.concatenate([tables[model] for model in shadows]), np.concatenate([in_mask[model] for model in shadows]))
        scores.append(trees.predict_proba(tables[target])[:, 1])
    return np.stack(scores)


def _with_offsets(features: Floats, phi: Floats, in_mask: Bools, model: int, target: int) -> Floats:
    """The features [n, F + 2] of the points under `model`, compared with the models outside its and the target's pair."""
    others = _outside(len(phi), model, target)
    offsets = [phi[model] - _median(phi[others], mask) for mask in (in_mask[others], ~in_mask[others])]
    return np.column_stack([features, *offsets])


def _outside(models: int, *left_out: int) -> Bools:
    """Which models are in no pair with one of `left_out`: bool [M]."""
    pairs = [number // 2 for number in left_out]
    return ~np.isin(np.arange(models) // 2, pairs)


def _median(phi: Floats, mask: NDArray[np.bool_]) -> Floats:
    """The median of phi [m, n] over the models in `mask` [m, n], for each point; NaN where there is none."""
    masked = np.ma.masked_array(phi, ~mask)
    return np.asarray(np.ma.median(masked, axis=0).filled(np.nan), dtype=np.float64)
