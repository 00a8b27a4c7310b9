"""A post-inference defense acts behind Diffence, on what Diffence selects (paper Section III-B4), once for each image."""

import numpy as np
import torch
from torch import nn

from common.diffence.candidates import query_ids
from common.diffence.select import Selector
from common.evaluate import Released, guard
from common.targets import PostInference


class Doubling(PostInference):
    """Doubles logits and remembers whom it answered."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(1, 1)
        self.asked: list[torch.Tensor] = []

    def release(self, logits: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        self.asked.append(keys)
        return 2 * logits


def test_the_selected_logits_are_guarded_each_image_under_its_own_key() -> None:
    shown = Released(Selector("3"), np.ones((3, 4), np.float32), np.full((2, 4), 5, np.float32))
    defense = Doubling()
    guarded = guard(shown, defense)
    assert guarded.selector is shown.selector
    assert (guarded.members == 2).all() and (guarded.non_members == 10).all()
    keys = torch.cat(defense.asked)
    assert torch.equal(keys, torch.cat([query_ids("members", range(3)), query_ids("non_members", range(2))]))
    assert len(keys.unique()) == 5


def test_without_one_nothing_changes() -> None:
    shown = Released(None, np.ones((3, 4)), np.ones((2, 4)))
    assert guard(shown, None) is shown
