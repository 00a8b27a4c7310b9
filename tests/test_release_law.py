"""The law of what is released (paper Section III-B2): a chi-square of the served defense on a toy reconstructor.

A toy candidate is one of six kinds, drawn from (query, number) alone: label lost; phi = 1, 4, 5, 6 or 9.
"""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from common.diffence.protect import ProtectedClassifier
from common.diffence.select import Selector

KINDS = np.array([0.3, 0.15, 0.05, 0.1, 0.15, 0.25])
LOST, LOW, HIGH, ORIGINAL = 0, 1, 5, 6  # kinds 2, 3 and 4 lie in the interval [3.5, 7.5]; 9 is nearer to it than 1
LOGITS = torch.tensor([[0.0, 4, 0], [1, 0, 0], [4, 0, 0], [5, 0, 0], [6, 0, 0], [9, 0, 0], [20, 0, 0]])
LOGITS[1:, 0] += float(np.log(2))  # two other classes


def toy_reconstructor(images: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The kind of each candidate as the brightness of its pixels."""
    pairs = zip(queries.tolist(), numbers.tolist(), strict=True)
    uniform = np.array([np.random.default_rng(pair).random() for pair in pairs])
    kinds = torch.from_numpy(np.searchsorted(KINDS.cumsum(), uniform)).float() / 10
    return kinds[:, None, None, None].expand_as(images)


class ToyClassifier(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return LOGITS[(10 * images[:, 0, 0, 0]).round().long()]


def serve(selector: Selector, n: int, queries: int, draws: int = 1) -> tuple[np.ndarray, int]:
    """How often each kind is released for original images of kind 6, and how many candidates were drawn."""
    protected = ProtectedClassifier(ToyClassifier(), toy_reconstructor, selector, n, draws)
    released = protected(torch.full((queries, 3, 1, 1), 0.6))
    return np.bincount(kinds_of(released), minlength=len(LOGITS)), int(protected.drawn.sum())


def kinds_of(logits: torch.Tensor) -> np.ndarray:
    """Which kinds these logits [n, C] belong to, int64 [n]."""
    return (logits[:, None] == LOGITS).all(2).int().argmax(1).numpy()


def law_of_the_paper(n: int) -> np.ndarray:
    """A uniformly chosen one of those inside; where none of n is, the nearest; where none keeps the label, the original."""
    lost, low, inside, high = KINDS[LOST], KINDS[LOW], KINDS[2:5], KINDS[HIGH]
    outside = 1 - inside.sum()
    law = np.zeros(len(LOGITS))
    law[2:5] = (1 - outside**n) * inside / inside.sum()
    law[HIGH] = outside**n - (outside - high) ** n
    law[LOW] = (lost + low) ** n - lost**n
    law[ORIGINAL] = lost**n
    return law


@pytest.mark.parametrize(("n", "draws"), [(1, 1), (3, 1), (3, 2), (8, 3)])
def test_the_released_candidate_has_the_law_of_a_random_qualifying_one(n: int, draws: int) -> None:
    counts, _ = serve(Selector("1", 3.5, 7.5), n, 6000, draws)
    law = law_of_the_paper(n)
    assert law.sum() == pytest.approx(1)
    frequent = 6000 * law > 5  # else the statistic has another law
    assert chisquare(counts[frequent], law[frequent] / law[frequent].sum() * counts[frequent].sum()).pvalue > 1e-3
    assert counts[~frequent].sum() <= 15
    assert counts[LOST] == 0


def test_the_law_of_scenario_3_is_that_of_a_label_keeping_candidate() -> None:
    counts, drawn = serve(Selector("3"), 60, 4000)
    p = 1 - KINDS[LOST]
    assert counts[LOST] == counts[ORIGINAL] == 0
    assert chisquare(counts[1:6], 4000 * KINDS[1:] / p).pvalue > 1e-3
    assert abs(drawn / 4000 - 1 / p) < 4 * np.sqrt((1 - p) / p**2 / 4000)


def test_the_chi_square_notices_another_rule() -> None:
    """Of three candidates, the first inside passes, the one of greatest phi inside does not."""
    drawn = toy_reconstructor(torch.zeros(18_000, 3, 1, 1), torch.arange(18_000) // 3, torch.arange(18_000) % 3)
    kinds = kinds_of(ToyClassifier()(drawn)).reshape(6000, 3)
    kinds = kinds[((kinds >= 2) & (kinds <= 4)).any(1)]
    inside = (kinds >= 2) & (kinds <= 4)
    first = np.take_along_axis(kinds, inside.argmax(1)[:, None], 1)[:, 0]
    greatest = np.where(inside, kinds, 0).max(1)
    expected = len(kinds) * KINDS[2:5] / KINDS[2:5].sum()
    assert chisquare(np.bincount(first)[2:], expected).pvalue > 1e-3
    assert chisquare(np.bincount(greatest)[2:], expected).pvalue < 1e-9
