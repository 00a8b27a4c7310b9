"""`python <data set>/evaluate_MIAs/intervals.py --defense NAME`: the choice of scenario 1's interval (paper Section IV-C1).

Figure 9: every interval that the search compares, with the Jensen-Shannon divergence that it has on the defender's points and
the AUC that attacks reach on the scored points. Figure 10: how many candidates an image needs until one falls into an interval,
for intervals that hold a given share of the defender's candidates. Both need the logits that an evaluation has collected, and
draw nothing.
"""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

from common.attacks import METRIC_ATTACKS, Outputs
from common.config import Diffence
from common.data.partition import Pools, evaluation_pools, load_split
from common.defenses import load_defended_model
from common.diffence.select import CandidateLogits, Selector, interval_divergences, interval_ends, label_keeping_phi
from common.experiments.collect import LabelledLogits, collect
from common.files import write_json
from common.metrics.privacy import auc, best_threshold, phi
from common.pair import SIDES, Pair
from common.run import Run, provenance

ATTACKS = ("loss", "entropy", "m-entropy")  # those of the paper's five that train nothing and do not rank alike
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the defender's candidates that an interval of Figure 10 holds


def intervals(run: Run, defense: str, protocol: str) -> dict[str, Any]:
    """Compare all intervals of scenario 1 on the classifier of a defense; writes and returns the row.

    What a defense does to answers, such as the noise of MemGuard, is left out.
    """
    split, pools = load_split(run), evaluation_pools(run.config.data, protocol)
    model = load_defended_model(run, defense, protocol)
    collected = collect(run, defense, protocol, model.classifier, split)
    config = run.config.diffence
    points = compare_intervals(collected, pools, config)
    correlation = spearmanr([point["js"] for point in points], [point["best_auc"] for point in points])
    row = {
        "kind": "intervals",
        **provenance(run, defense, protocol),
        "n": config.n,
        "t": config.t,
        "scored": {"members": len(pools.scored), "non_members": len(pools.scored)},
        "attacks": list(ATTACKS),
        "intervals": points,
        "rank_correlation": {"js_and_auc": _finite(correlation.statistic), "p_value": _finite(correlation.pvalue)},
        "draws": [draws_until_inside(collected, pools, share) for share in SHARES],
    }
    write_json(result_path(run, defense, protocol), row)
    return row


def _finite(number: float) -> float | None:
    """`number`, or None where it is no number, as the correlation of divergences that are all equal."""
    return float(number) if np.isfinite(number) else None


def result_path(run: Run, defense: str, protocol: str) -> Path:
    """The file of a row, beside those of evaluate_mia."""
    config = run.config.diffence
    return run.results_dir(protocol) / f"intervals-{defense}-n{config.n}-t{config.t}.json"


def compare_intervals(collected: Pair[LabelledLogits], pools: Pools, config: Diffence) -> list[dict[str, float]]:
    """Figure 9: a dict of plain numbers for every interval between two of `config.grid` + 1 points, in the order of the search.

    low, high: the interval of phi. js: Jensen-Shannon divergence in nats, on the defender's points. best_auc and best_accuracy:
    the largest of ATTACKS on the scored points, the accuracy at the best threshold of these points, as in the paper's figure.
    """
    fit = collected.map(lambda side: side.take(pools.fit))
    scored = collected.map(lambda side: side.take(pools.scored))
    ends = interval_ends(fit, config.grid)
    divergences = interval_divergences(fit, ends, config.js_bins, config.fallback)
    first, last = np.triu_indices(len(ends), k=1)
    points = []
    pairs = list(zip(ends[first].tolist(), ends[last].tolist(), divergences.tolist(), strict=True))
    for low, high, js in tqdm(pairs, desc="intervals", unit="interval", disable=None):
        released = scored.map(lambda side, low=low, high=high: _release(side, Selector("1", low, high, config.fallback)))
        scores = [released.map(METRIC_ATTACKS[name]) for name in ATTACKS]
        points.append(
            {
                "low": low,
                "high": high,
                "js": js,
                "best_auc": max(auc(*pair) for pair in scores),
                "best_accuracy": max(best_threshold(*pair)[1] for pair in scores),
            }
        )
    return points


def _release(side: LabelledLogits, selector: Selector) -> Outputs:
    return Outputs(selector.release(side.candidates, side.original), side.labels)


def draws_until_inside(collected: Pair[LabelledLogits], pools: Pools, share: float) -> dict[str, Any]:
    """Figure 10: the share of scored images of which one of the first 1, 2, .., N candidates lies inside an interval.

    The interval holds the middle `share` of phi of the defender's candidates that keep their label. later_hits: of the images
    whose first candidate misses it, the share of which a later one hits it, 0..1 (None where no first candidate misses).
    """
    fit = collected.map(lambda side: side.take(pools.fit))
    fit_phi = np.concatenate([*Pair(*SIDES).map(lambda name, side: label_keeping_phi(side, name), fit)])
    low, high = np.quantile(fit_phi, [0.5 - share / 2, 0.5 + share / 2])
    inside = np.concatenate([_inside(side.take(pools.scored), low, high) for side in collected])
    reached = np.logical_or.accumulate(inside, axis=1)
    missed = ~inside[:, 0]
    return {
        "share": share,
        "interval": [float(low), float(high)],
        "cdf": reached.mean(axis=0).tolist(),
        "later_hits": float(reached[missed, -1].mean()) if missed.any() else None,
    }


def _inside(side: CandidateLogits, low: float, high: float) -> np.ndarray:
    """Which candidates keep their label and have a phi in [low, high]: bool [n, N]."""
    value = phi(side.candidates)
    return side.keeps_label & (value >= low) & (value <= high)
