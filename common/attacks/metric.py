"""The attacks that threshold one number (paper Section IV-A; formulas of Song & Mittal, USENIX Security 2021).

Each is a function of `Outputs` and returns scores, float64 [n], higher = more likely a member.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax

from common.attacks.contract import Outputs
from common.metrics.privacy import Floats, phi

MetricAttack = Callable[[Outputs], Floats]

# Song & Mittal clamp probabilities at 1e-30 inside a logarithm; this is -log(1e-30), in nats.
LARGEST_SURPRISE = 30 * np.log(10)


def loss(outputs: Outputs) -> Floats:
    """Minus the cross-entropy of the true label: at most 0; 0 = certain and right (Yeom et al.)."""
    return -outputs.loss


def confidence(outputs: Outputs) -> Floats:
    """The probability of the true label, as its logarithm log p_y (at most 0).

    p_y and log p_y rank alike, but p_y rounds to 1 beyond 16 digits and would tie the most confident members. The score
    is therefore the same as that of `loss`, as in the paper, where both attacks are listed.
    """
    return -outputs.loss


def entropy(outputs: Outputs) -> Floats:
    """Minus the entropy of the prediction, in nats: -log C (uniform) .. 0 (certain). Ignores the label."""
    return np.asarray((outputs.probabilities * log_softmax(outputs.logits, axis=1)).sum(axis=1))


def m_entropy(outputs: Outputs) -> Floats:
    """Minus the modified entropy M = (1 - p_y) log*(p_y) + sum over k != y of p_k log*(1 - p_k), in nats.

    log*(p) = -log max(p, 1e-30). M is 0 for a certain right answer and 2 * 30 * ln 10 = 138.16 for a certain wrong one.
    1 - p is taken as the sum of the other probabilities, in logarithms: as a difference it would round to 0 for the
    confident predictions that matter.
    """
    p, top = outputs.probabilities, outputs.logits.argmax(axis=1)
    image = np.arange(len(outputs))
    log_rest = -np.logaddexp(0, phi(outputs.logits))  # log(1 - p) of the top class; every other class has p <= 1/2
    p_others = p.copy()
    p_others[image, top] = 0
    log_one_minus_p = np.log1p(-p_others)
    log_one_minus_p[image, top] = log_rest
    terms = p * np.minimum(-log_one_minus_p, LARGEST_SURPRISE)
    own = image, outputs.labels
    terms[own] = np.exp(log_one_minus_p[own]) * np.minimum(outputs.loss, LARGEST_SURPRISE)
    return np.asarray(-terms.sum(axis=1))


def correctness(outputs: Outputs) -> Floats:
    """1 where the prediction is right, else 0: the gap attack, the floor that any attack on confidences should beat.

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
