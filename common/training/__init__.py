"""Training: the loop, and the target classifiers of a run. What the author of a defense needs is importable from here."""

from common.training.loop import Objective, Stateful, fit, predict
from common.training.targets import options_of, target_classifier, train_target

__all__ = ["Objective", "Stateful", "fit", "options_of", "predict", "target_classifier", "train_target"]
