"""The command lines of a data set's scripts.

Every command parses its options before it imports PyTorch, so that --help and the refusal of a wrong option take
less than a second.
"""

from common.commands.experiments import (
    attack_diffence,
    frontier,
    intervals,
    label_only,
    n_and_t,
    overhead,
    training_cost,
    worst_case,
)
from common.commands.steps import data_partition, draw_candidates, evaluate_mia, train_ddpm, train_defense, train_shadows

__all__ = [
    "attack_diffence",
    "data_partition",
    "draw_candidates",
    "evaluate_mia",
    "frontier",
    "intervals",
    "label_only",
    "n_and_t",
    "overhead",
    "train_ddpm",
    "train_defense",
    "train_shadows",
    "training_cost",
    "worst_case",
]
