"""The same predictions through implementations that others wrote: figures agree to 1e-6 where definitions agree.

Compared: scikit-learn (ROC, balanced accuracy, log loss, logistic regression, Gaussian naive Bayes), SciPy (Mann-Whitney,
entropy, exact binomial intervals, bootstrap), pandas (binning), the standard library's NormalDist, and
adversarial-robustness-toolbox (ART). RMIA meets nobody else's code, as no package of the registry has it, but its own brute
force (test_rmia.py). Definitions that differ, each shown by a test below whose name starts with `test_differs`:

| | others | here |
| --- | --- | --- |
| TPR at an FPR | ART: FPR <= f, from an ROC curve without its collinear points, which may miss the best one | all points |
| | released code and LiRA's: FPR < f; others interpolate (np.interp), to rates that no threshold attains | FPR <= f, counts |
| log loss | scikit-learn clips p at the float's epsilon: at most 36.04 nats | from logits, unbounded |
| ECE | bins [a, b) with np.histogram and SciPy's binned_statistic | bins (a, b], paper Eq. 6 |
| LiRA | a Gaussian classifier (naive Bayes) centres at the mean | at the median, as the published code |
| AUC interval | bootstrap: random, agrees with DeLong's to about a tenth of its width | DeLong |
| gap attack | ART guesses 0 or 1; of labels as numbers it takes C to be how many it sees | score 0 or 1 |
"""

from functools import partial
from statistics import NormalDist, pstdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import auc as area
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_curve
from sklearn.naive_bayes import GaussianNB

from common.attacks import METRIC_ATTACKS, Outputs
from common.attacks.lira import lira
from common.metrics.calibration import ece, nll
from common.metrics.privacy import attack_report, balanced_accuracy, best_threshold, tpr_at_fpr
from common.pair import Pair

CLASSES, POINTS = 10, 600
close = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)


def predictions(seed: int, margin: float) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, POINTS)
    logits = rng.normal(size=(POINTS, CLASSES))
    logits[np.arange(POINTS), labels] += rng.gamma(2.0, margin, POINTS)
    return Outputs(logits, labels)


MEMBERS, OTHERS = predictions(0, 2.0), predictions(1, 1.2)
TRUTH = np.repeat([1, 0], POINTS)
SCORES = {name: (attack(MEMBERS), attack(OTHERS)) for name, attack in METRIC_ATTACKS.items()}
REPORTS = {name: attack_report(Pair(*both), Pair(*both), False, 0.01) for name, both in SCORES.items()}


@pytest.mark.parametrize("name", SCORES)
def test_auc_accuracy_and_rates_are_those_of_scikit_learn_and_scipy(name: str) -> None:
    members, others = SCORES[name]
    pooled, report = np.concatenate([members, others]), REPORTS[name]
    fpr, tpr, _ = roc_curve(TRUTH, pooled, drop_intermediate=False)
    close(report["auc"], area(fpr, tpr))
    close(report["auc"], stats.mannwhitneyu(members, others).statistic / POINTS**2)
    close(report["accuracy_oracle"], (1 + tpr - fpr).max() / 2)
    threshold = best_threshold(members, others)[0]
    close(balanced_accuracy(members, others, threshold), balanced_accuracy_score(TRUTH, pooled >= threshold))
    close(report["tpr_at_fpr"]["rate"], tpr[fpr <= 0.01].max())
    close(report["tnr_at_fnr"]["rate"], (1 - fpr)[1 - tpr <= 0.01 + 1e-12].max())


def test_intervals_are_those_of_scipy() -> None:
    rate = REPORTS["loss"]["tpr_at_fpr"]
    exact = stats.binomtest(rate["hits"], rate["positives"]).proportion_ci(0.95, method="exact")
    close(rate["interval"], exact)


def test_differs_auc_interval_of_the_bootstrap() -> None:
    members, others = SCORES["loss"]

    def auc_of(a: np.ndarray, b: np.ndarray, axis: int = -1) -> Any:
        return stats.mannwhitneyu(a, b, axis=axis, method="asymptotic").statistic / POINTS**2

    drawn = stats.bootstrap((members, others), auc_of, n_resamples=999, method="percentile", rng=np.random.default_rng(0))
    low, high = REPORTS["loss"]["auc_interval"]
    assert not np.allclose(drawn.confidence_interval, (low, high), rtol=0, atol=1e-6)
    close(drawn.confidence_interval, (low, high), atol=0.1 * (high - low))


def test_entropy_and_log_loss_are_those_of_scipy_and_scikit_learn() -> None:
    p = softmax(OTHERS.logits, axis=1)
    close(-SCORES["entropy"][1], stats.entropy(p, axis=1))
    expected = log_loss(OTHERS.labels, p, labels=range(CLASSES))
    close(-SCORES["loss"][1].mean(), expected)
    close(nll(OTHERS.logits, OTHERS.labels), expected)


def test_differs_log_loss_of_a_sure_and_wrong_prediction() -> None:
    wrong = Outputs(np.array([[50.0, 0.0]]), np.array([1]))
    assert log_loss([1], softmax(wrong.logits, axis=1), labels=[0, 1]) == pytest.approx(36.0437, abs=1e-4)
    assert wrong.loss[0] == pytest.approx(50, abs=1e-6)


def test_ece_is_that_of_pandas_bins_and_of_scikit_learns_calibration_curve() -> None:
    p = softmax(OTHERS.logits, axis=1)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == OTHERS.labels
    edges = np.linspace(0, 1, 11).tolist()
    binned = pd.DataFrame({"c": confidence, "r": right}).groupby(pd.cut(confidence, edges), observed=True)
    gaps, weights = (binned["r"].mean() - binned["c"].mean()).abs(), binned.size() / POINTS
    close(ece(p, OTHERS.labels), (gaps * weights).sum())
    accuracy, mean = calibration_curve(right, confidence, n_bins=10, strategy="uniform")
    close(ece(p, OTHERS.labels), np.abs(accuracy - mean) @ weights)


def test_differs_ece_of_a_confidence_on_the_edge_of_a_bin() -> None:
    p, labels = np.array([[0.75, 0.25], [0.6, 0.4]]), np.array([0, 1])  # 4 bins: .75 is in (.5, .75] here, with .6
    sides = stats.binned_statistic([0.75, 0.6], [1 - 0.75, 0 - 0.6], "sum", bins=4, range=(0, 1)).statistic
    assert ece(p, labels, bins=4) == pytest.approx(abs(0.25 - 0.6) / 2)
    assert np.abs(sides).sum() / 2 == pytest.approx((0.25 + 0.6) / 2)


def shadow_phi(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """phi of a target [1, n] and of 20 shadow models [20, 1, n], of which the first 10 trained on every point."""
    rng = np.random.default_rng(seed)
    keep = np.repeat([True, False], 10)[:, None].repeat(30, axis=1)
    return rng.normal(size=(1, 30)), rng.normal(size=(20, 1, 30)) * 1.5 + 2 * keep[:, None], keep


def naive_bayes_ratio(target: np.ndarray, shadow: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """log p(phi | IN) - log p(phi | OUT) of scikit-learn's Gaussian classifier, fitted to each point on its own."""
    fitted = [GaussianNB(priors=[0.5, 0.5], var_smoothing=0).fit(shadow[:, :, i], keep[:, i]) for i in range(keep.shape[1])]
    joint = np.concatenate([one.predict_joint_log_proba(target[:, i, None]) for i, one in enumerate(fitted)])
    return np.asarray(joint[:, 1] - joint[:, 0])


def test_lira_is_a_gaussian_classifier_of_scikit_learn_where_mean_and_median_agree() -> None:
    target, shadow, keep = shadow_phi(0)
    centres = np.where(keep[:, None], 2.0, 0.0)
    pairs = shadow - centres
    pairs[5:10], pairs[15:] = -pairs[:5], -pairs[10:15]  # symmetric about the centre
    ours = lira(target, pairs + centres, keep, online=True, variance="example")
    close(ours, naive_bayes_ratio(target, pairs + centres, keep))
    assert np.ptp(ours) > 1


def test_differs_lira_centres_at_the_median() -> None:
    target, shadow, keep = shadow_phi(1)
    ours, theirs = lira(target, shadow, keep, online=True, variance="example"), naive_bayes_ratio(target, shadow, keep)
    assert np.abs(ours - theirs).max() > 0.1
    assert stats.spearmanr(ours, theirs).statistic > 0.8


def test_offline_lira_is_the_quantile_of_the_standard_librarys_normal() -> None:
    target, shadow, keep = shadow_phi(2)
    out = shadow[10:, 0]
    normals = [NormalDist(float(np.median(column)), pstdev(column.tolist())) for column in out.T]
    expected = [normal.cdf(float(phi)) for normal, phi in zip(normals, target[0], strict=True)]
    ours = lira(target, shadow, keep, online=False, variance="example", tail="one-sided")
    close(stats.norm.cdf(ours), expected)


# adversarial-robustness-toolbox


@pytest.fixture(scope="module")
def art() -> SimpleNamespace:
    """ART's attacks and metrics, and a classifier of ART's that answers with the predictions of both sides by their number."""
    from art.attacks.inference import membership_inference as inference
    from art.estimators.classification import BlackBoxClassifier
    from art.metrics.privacy import get_roc_for_fpr

    p = softmax(np.concatenate([MEMBERS.logits, OTHERS.logits]), axis=1)
    classifier = BlackBoxClassifier(lambda x: p[x[:, 0].astype(int)], (1,), CLASSES)
    numbers = np.arange(2 * POINTS, dtype=np.float64)[:, None]
    one_hot = np.eye(CLASSES)[np.concatenate([MEMBERS.labels, OTHERS.labels])]
    return SimpleNamespace(inference=inference, roc=get_roc_for_fpr, classifier=classifier, x=numbers, y=one_hot)


def test_gap_attack_is_arts_rule_based_attack(art: SimpleNamespace) -> None:
    guessed = art.inference.MembershipInferenceBlackBoxRuleBased(art.classifier).infer(art.x, art.y)
    np.testing.assert_array_equal(guessed, np.concatenate(SCORES["correctness"]))
    accuracy = balanced_accuracy_score(TRUTH, guessed)
    for key in ("auc", "accuracy"):
        close(REPORTS["correctness"][key], accuracy)


def test_differs_gap_attack_with_labels_as_numbers(art: SimpleNamespace) -> None:
    few = art.x[:1]
    with pytest.raises((IndexError, ValueError)):
        art.inference.MembershipInferenceBlackBoxRuleBased(art.classifier).infer(few, np.array([CLASSES - 1]))


@pytest.mark.parametrize("fpr", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("name", ["loss", "entropy", "m-entropy"])
def test_tpr_at_fpr_is_arts_worst_case_rate(name: str, fpr: float, art: SimpleNamespace) -> None:
    ((their_fpr, their_tpr, threshold),) = art.roc(np.concatenate(SCORES[name]), TRUTH, targeted_fpr=fpr)
    ours = tpr_at_fpr(*SCORES[name], fpr)
    close(ours.rate, their_tpr)
    assert ours.errors / ours.negatives >= their_fpr  # more are accused only where that finds nobody more
    assert (SCORES[name][0] >= threshold).sum() == ours.hits


def test_differs_tpr_at_fpr(art: SimpleNamespace) -> None:
    tied = np.arange(10.0)  # each threshold finds one member more and accuses one non-member more: a straight ROC curve
    assert tpr_at_fpr(tied, tied, 0.35).rate == 0.3
    assert art.roc(np.concatenate([tied, tied]), np.repeat([1, 0], 10), targeted_fpr=0.35)[0][1] < 0.3
    members, others = np.array([5.0, 4, 3, 2]), np.array([4.5, *np.zeros(999)])
    ((_, theirs, _),) = art.roc(np.concatenate([members, others]), np.repeat([1, 0], [4, 1000]), targeted_fpr=0.001)
    assert (theirs, tpr_at_fpr(members, others, 0.001).rate) == (1, 1)
    assert tpr_at_fpr(members, others, 0.001, strict=True).rate == 0.25
    fpr, tpr, _ = roc_curve(np.repeat([1, 0], 10), np.concatenate([tied, tied]))
    assert np.interp(0.35, fpr, tpr) == pytest.approx(0.35)


def test_arts_learned_attack_on_the_loss_alone_is_a_threshold_on_it(art: SimpleNamespace) -> None:
    """A logistic regression of one number ranks as that number does, so its AUC is that of the loss attack."""
    losses = [-side[:, None] for side in SCORES["loss"]]
    attack = art.inference.MembershipInferenceBlackBox(art.classifier, attack_model_type="lr", scaler_type=None)
    attack.fit(pred=losses[0], test_pred=losses[1])
    guessed = attack.infer(None, pred=np.concatenate(losses), probabilities=True)[:, 0]
    points = Pair(guessed[:POINTS], guessed[POINTS:])
    report = attack_report(points, points, False)
    close(report["auc"], REPORTS["loss"]["auc"])
    close(report["accuracy_oracle"], REPORTS["loss"]["accuracy_oracle"])
