"""The numbers of a result row, from the scores of every attack and from what is released: privacy and utility."""

from typing import Any

import numpy as np

from common.attacks import Outputs, Scores
from common.attacks.shadow import population_warnings
from common.calibration import ece, nll
from common.config import Attack
from common.metrics import attack_report, pool_warnings

BEST_OF = ("nn", "m-entropy", "loss", "confidence", "entropy")  # the paper's five: "best attack" is the best of these


def measure(scores: dict[str, Scores], null: dict[str, Scores], protocol: str, options: Attack) -> dict[str, Any]:
    """Metrics of every attack, the best of the paper's five, the same under shuffled membership, and warnings.

    `scores` and `null` (of evaluate.null_scores) by attack. gap_floor: the AUC of the gap attack, below which defenses that
    keep labels cannot go. warnings: sentences, where points are too few for an error rate of `options.fpr`.
    """
    attacks, chance = (
        {name: report_of(points, protocol, options) for name, points in found.items()} for found in (scores, null)
    )
    gap = scores["correctness"]
    few = pool_warnings(len(gap.members), len(gap.non_members), options.fpr, strict=protocol == "released")
    return {
        "attacks": attacks,
        "best": best_of(attacks),
        "gap_floor": attacks["correctness"]["auc"],
        "null": {"attacks": null_part(chance), "best": best_of(chance)},
        "warnings": few + population_warnings(scores, len(gap.known_non_members), options.fpr),
    }


def null_part(chance: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of the reports of attacks under shuffled membership what a row keeps."""
    return {name: {key: report[key] for key in ("auc", "accuracy", "accuracy_oracle")} for name, report in chance.items()}


def report_of(scores: Scores, protocol: str, options: Attack) -> dict[str, Any]:
    """`attack_report` of an attack's scores under a protocol; thresholds per class where `options` ask for them."""
    points = (scores.members, scores.non_members, scores.known_members, scores.known_non_members)
    return attack_report(*points, protocol == "released", options.fpr, scores.labels if options.per_class else None)


def best_of(attacks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of the paper's five attacks the largest AUC, whose attack is named, and, each by itself, the largest accuracies."""
    five = {name: attacks[name] for name in BEST_OF}
    name = max(five, key=lambda attack: five[attack]["auc"])
    accuracies = [key for key in five[name] if key.startswith("accuracy")]
    return {"attack": name, "auc": five[name]["auc"]} | {key: max(one[key] for one in five.values()) for key in accuracies}


def utility(outputs: dict[str, Outputs], originals: dict[str, np.ndarray]) -> dict[str, Any]:
    """What predictions are worth to a user (paper Section IV-B2).

    `outputs` are the released ones of members and non_members, `originals` the logits [n, C] of the same classifier without
    Diffence and without a guard. label_agreement: the share of images that keep their label, 0..1. On the non-members,
    which are test images: accuracy, 0..1; ece, 0..1 in 10 bins (Eq. 6); nll of the true label, in nats.
    """
    test = outputs["non_members"]
    agreement = {side: float((o.logits.argmax(1) == originals[side].argmax(1)).mean()) for side, o in outputs.items()}
    return {
        "accuracy": float((test.logits.argmax(1) == test.labels).mean()),
        "label_agreement": agreement,
        "ece": ece(test.probabilities, test.labels),
        "nll": nll(test.logits, test.labels),
    }
