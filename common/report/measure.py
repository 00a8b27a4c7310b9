"""The numbers of a row: privacy, from the scores of attacks, and utility, from the released predictions."""

from typing import Any

import numpy as np

from common.attacks import Outputs, Scores
from common.attacks.shadow import population_warnings
from common.config import Attack
from common.metrics.calibration import calibration_bins, ece, nll
from common.metrics.privacy import attack_report, pool_warnings
from common.pair import Pair

# The paper's five attacks. The `best` of a row is the best of these. On ties the first one wins.
PAPER_ATTACKS = ("nn", "m-entropy", "loss", "confidence", "entropy")


def measure(scores: dict[str, Scores], null: dict[str, Scores], protocol: str, options: Attack) -> dict[str, Any]:
    """The part of a row that is about attacks.

    `scores` are the scores of every attack by name, `null` those under shuffled membership.

    Keys of the result:
    - attacks: `attack_report` of each attack
    - best: the best of the paper's five attacks
    - gap_floor: the AUC of the gap attack, below which a defense that keeps the predicted labels cannot push an attacker
    - null: AUC and accuracies of each attack, and of the best of the five, under shuffled membership
    - warnings: sentences for the reader, if there are too few points for an error rate of `options.fpr`
    """
    attacks = {name: report_of(attack_scores, protocol, options) for name, attack_scores in scores.items()}
    null_attacks = {name: report_of(attack_scores, protocol, options) for name, attack_scores in null.items()}
    gap = scores["correctness"]
    too_few = pool_warnings(len(gap.scored.members), len(gap.scored.non_members), options.fpr, strict=protocol == "released")
    return {
        "attacks": attacks,
        "best": best_of(attacks),
        "gap_floor": attacks["correctness"]["auc"],
        "null": {"attacks": null_report(null_attacks), "best": best_of(null_attacks)},
        "warnings": too_few + population_warnings(scores, len(gap.known.non_members), options.fpr),
    }


def null_report(attacks: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The null of a row: AUC and accuracies of every attack, from their reports under shuffled membership."""
    return {name: {key: report[key] for key in ("auc", "accuracy", "accuracy_oracle")} for name, report in attacks.items()}


def report_of(scores: Scores, protocol: str, options: Attack) -> dict[str, Any]:
    """`attack_report` of the scores of an attack under a protocol, with thresholds per class if `options.per_class` is set."""
    labels = (scores.scored_labels, scores.known_labels) if options.per_class else (None, None)
    return attack_report(scores.scored, scores.known, protocol == "released", options.fpr, *labels)


def best_of(attacks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Name and AUC of the paper's attack with the largest AUC, and the largest accuracies of the paper's attacks.

    Each kind of accuracy is maximised by itself, so that the best accuracy may be that of another attack.
    """
    five = {name: attacks[name] for name in PAPER_ATTACKS}
    best = max(five, key=lambda name: five[name]["auc"])
    accuracies = [key for key in five[best] if key.startswith("accuracy")]
    return {
        "attack": best,
        "auc": five[best]["auc"],
        **{key: max(report[key] for report in five.values()) for key in accuracies},
    }


def utility(outputs: Pair[Outputs], original: Pair[np.ndarray]) -> dict[str, Any]:
    """What released predictions are worth to a user (paper Section IV-B2).

    `outputs` are the released predictions. `original` are the classifier's logits [n, C], before Diffence and before
    post-inference defenses.

    Keys of the result, of which all but label_agreement are measured on the non-members, which are test images:
    - accuracy: 0..1
    - label_agreement: the share of members, and of non-members, whose released label is that of the classifier, 0..1
    - ece: expected calibration error in 10 bins (Eq. 6), 0..1
    - nll: mean negative log-likelihood of the true label, in nats
    - bins: the 10 bins of a reliability diagram (Figure 6), with counts, mean confidence and accuracy, null in empty bins
    """
    test = outputs.non_members
    bins = calibration_bins(test.probabilities, test.labels)
    means = {"confidence": bins.confidence, "accuracy": bins.accuracy}
    agreement = outputs.map(lambda side, logits: float((side.logits.argmax(1) == logits.argmax(1)).mean()), original)
    return {
        "accuracy": float((test.logits.argmax(1) == test.labels).mean()),
        "label_agreement": agreement.as_dict(),
        "ece": ece(test.probabilities, test.labels),
        "nll": nll(test.logits, test.labels),
        "bins": {
            "counts": [int(count) for count in bins.counts],
            **{name: [None if np.isnan(mean) else float(mean) for mean in values] for name, values in means.items()},
        },
    }
