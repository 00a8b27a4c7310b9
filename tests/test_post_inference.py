"""A post-inference defense acts behind Diffence, on what Diffence selects (paper Section III-B4), once for each image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import planted_memguard, tiny_run
from matplotlib.figure import Figure
from torch import nn

from common.attacks import METRIC_ATTACKS, Outputs
from common.config import Config
from common.data.partition import Pools, evaluation_pools, load_split
from common.defenses import DefendedModel
from common.diffence.candidates import query_ids
from common.diffence.select import Selector
from common.experiments.collect import LabelledLogits, collect
from common.experiments.evaluate import DefendedOutputs, defend, evaluate
from common.pair import Pair
from common.run import Run
from common.training.targets import PostInference


class Doubling(PostInference):
    """Doubles logits and remembers whom it answered."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(1, 1)
        self.asked: list[torch.Tensor] = []

    def release(self, logits: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        self.asked.append(keys)
        return 2 * logits


def collected() -> Pair[LabelledLogits]:
    """Three members and two non-members, whose logits tell the sides apart."""
    sides = Pair(np.eye(4, dtype=np.float32)[[0, 1, 2]], 5 * np.eye(4, dtype=np.float32)[[3, 0]])
    return sides.map(lambda logits: LabelledLogits(logits, logits[:, None], np.arange(len(logits))))


def defended(model: DefendedModel, scenario: str | None) -> DefendedOutputs:
    run = Run(Path("synthetic"), "small", Config(), 0, torch.device("cpu"))
    return defend(run, model, collected(), Pools(range(2), range(2), range(2)), scenario)


@pytest.mark.parametrize("scenario", [None, "3"])
def test_each_selected_prediction_is_changed_once_under_a_key_of_its_own(scenario: str | None) -> None:
    defense = Doubling()
    outputs = defended(DefendedModel(defense.classifier, defense), scenario).outputs
    for side, before in zip(outputs, collected(), strict=True):
        np.testing.assert_array_equal(side.logits, 2 * before.original)
        np.testing.assert_array_equal(side.labels, before.labels)
    keys = torch.cat(defense.asked)
    assert torch.equal(keys, torch.cat([query_ids("members", range(3)), query_ids("non_members", range(2))]))
    assert len(keys.unique()) == 5


def test_without_a_post_inference_defense_the_selected_predictions_are_released() -> None:
    outputs = defended(DefendedModel(nn.Identity(), None), None).outputs
    for side, before in zip(outputs, collected(), strict=True):
        np.testing.assert_array_equal(side.logits, before.original)


def test_memguard_is_evaluated_on_what_diffence_selects_from_the_bare_classifier(
    copied_drawn: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored scores are those of: the classifier's answers, then the selection, then MemGuard once for each image."""
    monkeypatch.setattr(Figure, "savefig", lambda *rest, **options: None)  # most of the time
    run = tiny_run(copied_drawn, tiny, "defenses.memguard={steps: 20, epsilon: 0.2}", "attack.nn_epochs=1")
    split, scored = load_split(run), np.array(evaluation_pools(run.config.data, "clean").scored)
    defense = planted_memguard(run)
    evaluate(run, "memguard", "clean", ["3"])
    sides = collect(run, "undefended", "clean", defense.classifier, split)
    for end, selector in (("", None), ("_w_Diffence_scenario3", Selector("3"))):
        expected = []
        for name, side in sides.as_dict().items():
            logits = side.original if selector is None else selector.release(side.candidates, side.original)
            released = defense.release(torch.from_numpy(logits), query_ids(name, range(len(logits)))).numpy()
            expected.append(METRIC_ATTACKS["confidence"](Outputs(released, side.labels).take(scored)))
            assert (np.abs(released - torch.from_numpy(logits).log_softmax(1).numpy()).max(1) > 0.01).mean() > 0.1
        stored = np.load(run.results_dir("clean") / "scores" / f"confidence-based-memguard{end}.npy")[:, 0]
        np.testing.assert_allclose(stored, np.concatenate(expected), atol=1e-4)
