"""No defense: the paper's plain recipe (Section IV-A)."""

from torch import nn

from common.data.partition import Split
from common.run import Run
from common.training.loop import Objective
from common.training.targets import target_classifier, train_target


def train(run: Run, split: Split) -> nn.Module:
    """Cross-entropy on the members."""
    objective = Objective(target_classifier(run), split.members, run.config.train, run.device)
    return train_target(run, "undefended", objective, split)
