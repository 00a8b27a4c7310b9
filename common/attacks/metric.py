"""Attacks that threshold a metric of the prediction (paper Section IV-A; formulas of Song & Mittal, USENIX Security 2021).

Each attack is a function from `Outputs` of n images to scores float64 [n], higher = more likely a member.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax

from common.attacks.contract import Outputs
from common.metrics.privacy import Floats, phi

MetricAttack = Callable[[Outputs], Floats]

# -log(1e-30), in nats: Song & Mittal clamp probabilities inside a logarithm at 1e-30.
LARGEST_SURPRISE = 30 * np.log(10)


def loss(outputs: Outputs) -> Floats:
    """Minus the cross-entropy of the true label (Yeom et al.), at most 0. 0 = certain and correct."""
    return -outputs.loss


def confidence(outputs: Outputs) -> Floats:
    """The confidence in the true label, as log p_y, at most 0.

    log p_y ranks points as p_y does, but p_y itself rounds to 1 beyond 16 digits, so that the most confident members would tie.
    The score is therefore the same as that of `loss`. The paper lists both attacks.
    """
    return -outputs.loss


def entropy(outputs: Outputs) -> Floats:
    """Minus the entropy of the prediction, in nats, from -log C (uniform) to 0 (certain). It ignores the true label."""
    return np.asarray((outputs.probabilities * log_softmax(outputs.logits, axis=1)).sum(axis=1))


def m_entropy(outputs: Outputs) -> Floats:
    """Minus the modified entropy M = (1 - p_y) log*(p_y) + sum over k != y of p_k log*(1 - p_k), in nats.

    log*(p) = -log max(p, 1e-30). M is 0 for a prediction that is certain and correct, and 2 * 30 * ln 10 = 138.16 for one that
    is certain and wrong. Example: for p = (.9, .1), M is .1 * .105 + .1 * .105 = .021 if y = 0, and .9 * 2.303 * 2 = 4.145 if
    y = 1.
    """
    p, images = outputs.probabilities, np.arange(len(outputs))
    predicted, true = (images, outputs.logits.argmax(axis=1)), (images, outputs.labels)
    # For the predicted class, 1 - p may round to 0, so that log(1 - p) is computed from phi. Other classes have p <= 1/2.
    p_others = p.copy()
    p_others[predicted] = 0
    log_one_minus_p = np.log1p(-p_others)
    log_one_minus_p[predicted] = -np.logaddexp(0, phi(outputs.logits))
    terms = p * np.minimum(-log_one_minus_p, LARGEST_SURPRISE)
    terms[true] = np.exp(log_one_minus_p[true]) * np.minimum(outputs.loss, LARGEST_SURPRISE)
    return np.asarray(-terms.sum(axis=1))


def correctness(outputs: Outputs) -> Floats:
    """The gap attack: 1 where the prediction is correct, else 0. An attack on confidences should do better than it.

    Its AUC and its accuracy are both (training accuracy + 1 - test accuracy) / 2 (paper Appendix A-B).
    """
    return np.asarray(outputs.logits.argmax(axis=1) == outputs.labels, dtype=np.float64)


METRIC_ATTACKS: dict[str, MetricAttack] = {
    "loss": loss,
    "confidence": confidence,
    "entropy": entropy,
    "m-entropy": m_entropy,
    "correctness": correctness,
}
