"""All defenses share one set of candidates: once they are drawn, evaluating a defense never asks the diffusion model."""

import shutil
from pathlib import Path

import pytest
from conftest import Call, tiny_run
from matplotlib.figure import Figure

from common.commands import evaluate_mia
from common.defenses import DEFENSES, with_options
from common.diffence.reconstruct import DiffusionReconstructor
from common.experiments.shadow_models import shadow_run
from common.files import save_checkpoint
from common.training.targets import model_path, settings_of

OPTIONS = ["defenses.memguard.steps=2", "attack.nn_epochs=1"]


@pytest.fixture(scope="module")
def shared(drawn: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The candidates, and an untrained checkpoint of every defense."""
    folder = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("shared") / "synthetic"))
    run = with_options(tiny_run(folder, tiny, *OPTIONS))
    for name, defense in DEFENSES.items():
        content = {"model": defense.build(run).state_dict(), "settings": settings_of(run, name), "facts": {}, "history": [{}]}
        save_checkpoint(model_path(run, name), content)
    return folder


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the diffusion model, call by call."""
    seen: list[int] = []
    forward = DiffusionReconstructor.forward

    def counted(self: DiffusionReconstructor, images: object, *rest: object) -> object:
        seen.append(len(images))  # type: ignore[arg-type]
        return forward(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusionReconstructor, "forward", counted)
    monkeypatch.setattr(Figure, "savefig", lambda *rest, **options: None)  # two thirds of the time
    return seen


def arguments(name: str, tiny: Path) -> list[object]:
    return ["--defense", name, "--profile", tiny, "--device", "cpu", *(word for one in OPTIONS for word in ("--set", one))]


@pytest.mark.parametrize("name", DEFENSES)
def test_a_further_defense_costs_no_network_evaluation(
    shared: Path, tiny: Path, call: Call, evaluations: list[int], name: str
) -> None:
    answer = call(evaluate_mia, shared, *arguments(name, tiny), "--scenario", "1", "3")
    assert (answer.code, answer.err) == (0, "")
    assert evaluations == []
    rows = {path.stem for path in shared.glob(f"evaluate_MIAs/results/*/{name}*.json")}
    assert rows >= {name, f"{name}_w_Diffence", f"{name}_w_Diffence_scenario3"}


def test_what_is_scored_matters_to_a_guard_and_to_shadow_models(shared: Path, tiny: Path) -> None:
    """MemGuard's guard trains on no scored member, and no reference image of a shadow model is scored."""
    runs = [with_options(tiny_run(shared, tiny, *OPTIONS, *change)) for change in ([], ["data.scored=20"])]
    assert settings_of(runs[0], "undefended") == settings_of(runs[1], "undefended")
    assert settings_of(runs[0], "memguard") != settings_of(runs[1], "memguard")
    first, second = (settings_of(shadow_run(run, 0), "advreg") for run in runs)
    assert first != second


def test_the_count_counts(shared: Path, tiny: Path, call: Call, evaluations: list[int]) -> None:
    """Without one shard that shard's 100 images are drawn again, 4 candidates each, for whichever defense comes next."""
    (shared / "diff_defense/candidates/tiny/seed0/t100-steps1-paper/members_000100.npy").unlink()
    assert call(evaluate_mia, shared, *arguments("hamp", tiny)).code == 0
    assert sum(evaluations) == 100 * 4
    assert call(evaluate_mia, shared, *arguments("relaxloss", tiny)).code == 0
    assert sum(evaluations) == 100 * 4
