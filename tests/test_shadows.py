"""Shadow models: each image in exactly half of them, trained like the target, resumed one by one, beside the target's files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Call, defense_run, refusal, tiny_run

from common.commands import train_shadows
from common.config import Data
from common.data.partition import PROTOCOLS, Examples, Split, evaluation_pools, load_split
from common.defenses import DEFENSES
from common.diffence.candidates import candidate_settings, candidates_dir
from common.errors import UserError
from common.experiments.shadow_models import in_mask, shadow_pool, shadow_run, train_shadow
from common.run import Run
from common.training.targets import settings_of


def test_each_image_is_in_exactly_half_of_them_and_each_model_has_half_of_the_images() -> None:
    keep = np.stack([in_mask(index, 100, 0) for index in range(16)])
    assert (keep.sum(0) == 8).all()
    assert (keep.sum(1) == 50).all()
    assert len({row.tobytes() for row in keep}) == 16
    # Two images are together in about half of the models: independent between pairs of models.
    together = (keep[:, :, None] == keep[:, None, :]).mean(0)[np.triu_indices(100, 1)]
    assert together.mean() == pytest.approx(49 / 99, abs=0.01)


def test_the_draw_depends_on_the_seed_and_the_number_alone() -> None:
    assert (in_mask(3, 100, 7) == in_mask(3, 100, 7)).all()
    assert (in_mask(3, 100, 7) != in_mask(3, 100, 8)).any()
    assert (in_mask(2, 100, 7) != in_mask(4, 100, 7)).any()


def numbered(first: int, count: int) -> Examples:
    images = torch.arange(first, first + count)[:, None, None, None].expand(-1, 3, 32, 32).to(torch.uint8)
    return Examples(images, torch.arange(first, first + count))


def test_the_pool_holds_members_then_non_members_then_reference() -> None:
    labels = shadow_pool(Split(numbered(0, 10), numbered(100, 20), numbered(200, 4))).labels.tolist()
    assert labels == [*range(10), *range(200, 204), *range(100, 106)]
    assert len(shadow_pool(Split(numbered(0, 10), numbered(100, 0), numbered(200, 99)))) == 20
    with pytest.raises(UserError, match=r"raise data\.reference"):
        shadow_pool(Split(numbered(0, 10), numbered(100, 5), numbered(200, 4)))


def test_no_scored_image_is_a_reference_image_or_trains_a_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdvReg and MemGuard train on reference images as non-members, and MemGuard on unscored members as members."""
    data = Data(members=60, reference=32, non_members=40, fit=4, known=6, scored=12)
    split = Split(numbered(0, 60), numbered(100, 32), numbered(200, 40))
    given: list[Split] = []

    def record(run: Run, made: Split) -> torch.nn.Module:
        given.append(made)
        return torch.nn.Identity()

    monkeypatch.setitem(DEFENSES, "advreg", replace(DEFENSES["advreg"], train=record))
    for index in (0, 1):
        train_shadow(defense_run(tmp_path, "advreg", data, {}), split, "advreg", index)
    positions = {position for protocol in PROTOCOLS for position in evaluation_pools(data, protocol).scored}
    scored = positions | {200 + position for position in positions}
    pool = shadow_pool(split).labels.tolist()
    for made in given:
        members = set(made.members.labels.tolist())
        left = [label for label in pool if label not in members | scored]
        assert made.reference.labels.tolist() == [*range(120, 132), *left][:32]  # 100 to 119 are in the pool
        assert made.unscored is not None
        assert set(made.members.labels[made.unscored].tolist()) == members - scored


def test_a_shadow_model_shares_candidates_and_nothing_else(drawn: Path, tiny: Path) -> None:
    run = tiny_run(drawn, tiny)
    shadow = shadow_run(run, 3)
    assert candidates_dir(shadow) == candidates_dir(run)
    assert candidate_settings(shadow) == candidate_settings(run)
    assert shadow.models_dir == run.models_dir / "shadows" / "003"
    assert shadow.outputs_dir == run.outputs_dir / "shadows" / "003"
    assert shadow.seed not in (run.seed, shadow_run(run, 2).seed, shadow_run(replace(run, seed=1), 3).seed)
    assert settings_of(shadow, "undefended") != settings_of(shadow_run(run, 2), "undefended")
    assert "train_shadows.py --defense hamp --index 3" in shadow.command("train_defense.py", "--defense hamp")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_the_script_trains_them_in_one_go_or_one_by_one(copied: Path, tiny: Path, call: Call, tmp_path: Path) -> None:
    run = tiny_run(copied, tiny)
    paths = [shadow_run(run, index).models_dir / "undefended.pt" for index in range(2)]
    alone = call(train_shadows, copied, "--defense", "undefended", "--index", 1, "--count", 4, "--profile", tiny)
    assert alone.code == 0, alone.err
    assert [path.is_file() for path in paths] == [False, True]
    first = weights(paths[1])
    time = paths[1].stat().st_mtime_ns
    assert call(train_shadows, copied, "--defense", "undefended", "--count", 4, "--profile", tiny).code == 0
    assert paths[0].is_file() and paths[1].stat().st_mtime_ns == time
    paths[1].unlink()
    assert call(train_shadows, copied, "--defense", "undefended", "--count", 4, "--profile", tiny).code == 0
    again = weights(paths[1])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not paths[1].with_suffix(".best.pt").exists()


def test_it_trains_on_its_own_half_of_the_pool(copied: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many members as the target has, and as many reference images."""
    run = tiny_run(copied, tiny)
    split = load_split(run)
    given: list[Split] = []

    def record(shadow: Run, own: Split) -> torch.nn.Module:
        given.append(own)
        return torch.nn.Identity()

    monkeypatch.setitem(DEFENSES, "advreg", replace(DEFENSES["advreg"], train=record))
    for index in range(4):
        train_shadow(run, split, "advreg", index)
    images = shadow_pool(split)
    for index, own in enumerate(given):
        inside = torch.from_numpy(in_mask(index, len(images), run.seed))
        assert len(own.members) == len(split.members) == int(inside.sum())
        assert torch.equal(own.members.images, images.images[inside]) and torch.equal(own.members.labels, images.labels[inside])
        assert len(own.reference) == len(split.reference)
    assert len(given) == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--count", "3"], "--count must be an even number from 4, not 3."),
        (["--count", "0"], "--count must be an even number from 4, not 0."),
        (["--index", "-1"], "shadow models are numbered from 0; there is no -1."),
    ],
)
def test_refusals(trained: Path, tiny: Path, call: Call, arguments: list[str], sentence: str) -> None:
    answer = call(train_shadows, trained, "--defense", "undefended", "--profile", tiny, *arguments)
    assert refusal(answer) == sentence


def test_a_shadow_model_has_the_target_s_defense(copied: Path, tiny: Path, call: Call) -> None:
    """SELENA with its own sub-models, AdvReg with the other half of the pool as its reference."""
    options = ("--index", 0, "--profile", tiny, "--set", "train.epochs=1", "--set", "defenses.selena={k: 2, l: 1}")
    for defense in ("selena", "advreg"):
        answer = call(train_shadows, copied, "--defense", defense, *options)
        assert answer.code == 0, answer.err
        assert (shadow_run(tiny_run(copied, tiny), 0).models_dir / f"{defense}.pt").is_file()
