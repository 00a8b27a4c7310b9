"""The numbers of a row: the privacy that attacks' scores show, and the utility of what is released."""

from typing import Any

import numpy as np

from common.attacks import Outputs, Scores
from common.attacks.shadow import population_warnings
from common.config import Attack
from common.metrics.calibration import ece, nll
from common.metrics.privacy import attack_report, pool_warnings
from common.pair import Pair

BEST_OF = ("nn", "m-entropy", "loss", "confidence", "entropy")  # the paper's five attacks: "best" is the best of these


def measure(scores: dict[str, Scores], null: dict[str, Scores], protocol: str, options: Attack) -> dict[str, Any]:
    """The metrics of every attack, by name, from its scores and from its scores under shuffled membership (`null`).

    attacks: `attack_report` of each attack. best: the best of the paper's five. gap_floor: the AUC of the gap attack, below
    which defenses that keep labels cannot go. null: the same under shuffled membership. warnings: sentences for the reader,
    where points are too few for an error rate of `options.fpr`.
    """
    attacks, chance = ({name: report_of(one, protocol, options) for name, one in by_name.items()} for by_name in (scores, null))
    gap = scores["correctness"]
    few = pool_warnings(len(gap.scored.members), len(gap.scored.non_members), options.fpr, strict=protocol == "released")
    return {
        "attacks": attacks,
        "best": best_of(attacks),
        "gap_floor": attacks["correctness"]["auc"],
        "null": {"attacks": null_report(chance), "best": best_of(chance)},
        "warnings": few + population_warnings(scores, len(gap.known.non_members), options.fpr),
    }


def null_report(attacks: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """AUC and accuracies of every attack under shuffled membership; the rest of its report is left out."""
    return {name: {key: report[key] for key in ("auc", "accuracy", "accuracy_oracle")} for name, report in attacks.items()}


def report_of(scores: Scores, protocol: str, options: Attack) -> dict[str, Any]:
    """`attack_report` of an attack's scores under a protocol, with thresholds per class where `options` ask for them."""
    labels = (scores.scored_labels, scores.known_labels) if options.per_class else (None, None)
    return attack_report(scores.scored, scores.known, protocol == "released", options.fpr, *labels)


def best_of(attacks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The best of the paper's five attacks: its name and AUC, and the largest accuracy of any of the five."""
    five = {name: attacks[name] for name in BEST_OF}
    name = max(five, key=lambda attack: five[attack]["auc"])
    accuracies = [key for key in five[name] if key.startswith("accuracy")]
    return {"attack": name, "auc": five[name]["auc"]} | {key: max(one[key] for one in five.values()) for key in accuracies}


def utility(outputs: Pair[Outputs], original: Pair[np.ndarray]) -> dict[str, Any]:
    """What released predictions are worth to a user (paper Section IV-B2).

    `outputs` are the released ones. `original` are the classifier's logits [n, C], before Diffence and before post-inference
    defenses. label_agreement is the share of images that keep their label, 0..1, on each side. The rest is measured on the
    non-members, which are test images: accuracy, 0..1; ece, 0..1, in 10 bins (Eq. 6); nll of the true label, in nats.
    """
    test = outputs.non_members
    agreement = outputs.map(lambda side, before: float((side.logits.argmax(1) == before.argmax(1)).mean()), original)
    return {
        "accuracy": float((test.logits.argmax(1) == test.labels).mean()),
        "label_agreement": agreement.as_dict(),
        "ece": ece(test.probabilities, test.labels),
        "nll": nll(test.logits, test.labels),
    }
