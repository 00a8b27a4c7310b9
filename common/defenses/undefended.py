"""No defense: the classifier is trained as in the paper's Section IV-A."""

from torch import nn

from common.data.partition import Split
from common.run import Run
from common.training import Objective, target_classifier, train_target


def train(run: Run, split: Split) -> nn.Module:
    """Train a classifier on the members with cross-entropy."""
    objective = Objective(target_classifier(run), split.members, run.config.train, run.device)
    return train_target(run, "undefended", objective, split)
