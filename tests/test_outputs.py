"""What a classifier answers on images and candidates: computed once, kept, and made again where it no longer holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_run

from common.data.partition import Split, load_split
from common.defenses import DEFENSES, with_options
from common.diffence.candidates import shards
from common.errors import UserError
from common.experiments.collect import collect
from common.files import save_checkpoint
from common.pair import SIDES
from common.profiles import load_config
from common.run import Run
from common.training.targets import ANSWER_OPTIONS, load_target, model_path, settings_of, target_classifier


@pytest.fixture
def run(copied_drawn: Path, tiny: Path) -> Run:
    return tiny_run(copied_drawn, tiny)


@pytest.fixture
def split(run: Run) -> Split:
    return load_split(run)


def test_answers_are_kept_until_the_weights_change(run: Run, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_target(run, "undefended", "clean", target_classifier(run))
    first = collect(run, "undefended", "clean", model, split)
    for side, examples, logits in zip(SIDES, split.evaluated, first, strict=True):
        assert logits.candidates.shape == (200, 4, 10)
        assert logits.labels.tolist() == examples.labels[:200].tolist()
        with torch.no_grad():
            np.testing.assert_allclose(logits.original[:50], model(examples.pixels(slice(50))).numpy(), atol=1e-4)
            drawn = model(list(shards(run, side, 200))[1][37]).numpy()
        np.testing.assert_allclose(logits.candidates[137], drawn, atol=1e-4)

    paths = sorted(run.outputs_dir.glob("*.npz"))
    times = [path.stat().st_mtime_ns for path in paths]
    monkeypatch.setattr(type(model), "forward", None)
    again = collect(run, "undefended", "clean", model, split)
    np.testing.assert_array_equal(again.members.candidates, first.members.candidates)
    assert times == [path.stat().st_mtime_ns for path in paths]
    monkeypatch.undo()

    weights = run.models_dir / "undefended.pt"
    weights.write_bytes((run.models_dir / "undefended.best.pt").read_bytes() + b"\0")
    collect(run, "undefended", "clean", model, split)
    assert all(path.stat().st_mtime_ns != time for path, time in zip(paths, times, strict=True))


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_torn_answers_are_made_again(run: Run, split: Split, damage: str) -> None:
    model = load_target(run, "undefended", "clean", target_classifier(run))
    first = collect(run, "undefended", "clean", model, split)
    path = run.outputs_dir / "undefended-clean-members.npz"
    path.write_bytes({"cut": path.read_bytes()[:-40], "empty": b"", "text": b"not an archive"}[damage])
    again = collect(run, "undefended", "clean", model, split)
    np.testing.assert_array_equal(again.members.candidates, first.members.candidates)


def test_options_that_act_on_answers_need_no_new_weights(copied_drawn: Path, tiny: Path) -> None:
    """HAMP's output modification: the same checkpoint, other answers, and none of the cached ones."""

    def opened(*options: str) -> Run:
        return with_options(tiny_run(copied_drawn, tiny, *options))

    plain, modified = opened(), opened("defenses.hamp.test_time=true")
    content = {"model": target_classifier(plain).state_dict(), "settings": settings_of(plain, "hamp")}
    save_checkpoint(model_path(plain, "hamp"), content)
    answers = []
    for run in (plain, modified, plain):
        model = load_target(run, "hamp", "clean", DEFENSES["hamp"].build(run))
        answers.append(collect(run, "hamp", "clean", model, load_split(run)).members.original)
    np.testing.assert_array_equal(answers[0], answers[2])
    np.testing.assert_array_equal(answers[0].argmax(1), answers[1].argmax(1))
    assert not np.allclose(answers[0], answers[1])
    for other in ("defenses.hamp.gamma=0.5", "defenses.hamp.scaling=per_sample"):
        with pytest.raises(UserError, match=r"options\.(gamma|scaling)"):
            load_target(opened(other), "hamp", "clean", target_classifier(plain))
    assert settings_of(opened("defenses.memguard.epsilon=0.3"), "memguard") == settings_of(plain, "memguard")
    assert settings_of(opened("defenses.memguard.lr=0.3"), "memguard") != settings_of(plain, "memguard")


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn", "synthetic"])
@pytest.mark.parametrize("profile", ["paper", "small"])
def test_settings_are_the_options_in_every_profile(dataset: str, profile: str) -> None:
    """So that a checkpoint says what it was made under, and one made before an option was told apart still holds."""
    folder = ROOT / dataset
    run = with_options(Run(folder, profile, load_config(folder, profile), 0, torch.device("cpu")))
    for name in DEFENSES:
        assert settings_of(run, name)["options"] == run.config.defenses[name]
    for name, options in ANSWER_OPTIONS.items():
        assert options.items() <= vars(DEFENSES[name].options()).items()
