"""Candidates on disk: drawn once, redrawn where a shard is lost or torn, extended for a larger N, never mixed up."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_run, write_profile

from common.data.partition import Split, load_split
from common.diffence import candidates
from common.diffence.candidates import draw_all, missing_shards, query_ids, shards
from common.diffence.ddpm import build_unet, load_reconstructor
from common.diffence.reconstruct import DiffusionReconstructor
from common.errors import UserError
from common.run import Run


@pytest.fixture
def run(copied_drawn: Path, tiny: Path) -> Run:
    """All candidates of the clean protocol are drawn."""
    return tiny_run(copied_drawn, tiny)


@pytest.fixture
def fresh(copied: Path, tiny: Path) -> Run:
    """None is drawn."""
    return tiny_run(copied, tiny)


@pytest.fixture
def split(trained: Path, tiny: Path) -> Split:
    return load_split(tiny_run(trained, tiny))


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the diffusion model, call by call."""
    seen: list[int] = []
    forward = DiffusionReconstructor.forward

    def counted(self: DiffusionReconstructor, images: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return forward(self, images, *rest)

    monkeypatch.setattr(DiffusionReconstructor, "forward", counted)
    return seen


def folder(run: Run) -> Path:
    return run.candidates_dir / "t100-steps1-paper"


def stored(run: Run, side: str = "members") -> torch.Tensor:
    return torch.cat(list(shards(run, side, 200)))


def stored_first(run: Run) -> torch.Tensor:
    return next(shards(run, "members", 100))


def test_all_candidates_of_both_sides(fresh: Run, split: Split, evaluations: list[int]) -> None:
    places = [("members", 0), ("members", 100), ("non_members", 0), ("non_members", 100)]
    assert missing_shards(fresh, "clean") == places
    draw_all(fresh, split, "clean")
    assert sum(evaluations) == 2 * 200 * 4
    assert max(evaluations) <= fresh.config.diffence.batch
    assert missing_shards(fresh, "clean") == []
    shape = {path.name: np.load(path).shape for path in folder(fresh).glob("*.npy")}
    assert shape == {f"{side}_{start:06d}.npy": (100, 4, 3, 32, 32) for side, start in places}
    drawn = stored(fresh)
    assert (drawn.shape, drawn.dtype) == ((200, 4, 3, 32, 32), torch.float32)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert [len(part) for part in shards(fresh, "members", 130)] == [100, 30]


def test_a_candidate_is_that_of_its_image_and_number(run: Run, split: Split) -> None:
    """Candidate j of image i, drawn alone, is the stored one; members and non-members have noise of their own."""
    reconstruct = load_reconstructor(run)
    for side, examples in (("members", split.members), ("non_members", split.non_members)):
        for image, number in ((0, 0), (137, 3)):
            query = query_ids(side, range(image, image + 1))
            alone = reconstruct(examples.pixels(slice(image, image + 1)), query, torch.tensor([number]))[0]
            torch.testing.assert_close(stored(run, side)[image, number], alone, atol=1e-3, rtol=0)
    assert set(query_ids("members", range(200)).tolist()).isdisjoint(query_ids("non_members", range(200)).tolist())
    assert (stored(run)[137, 3] - stored(run)[137, 2]).abs().max() > 0.01


@pytest.mark.parametrize("damage", ["lost", "cut", "cut in the header", "empty", "text"])
def test_a_lost_shard_alone_is_drawn_again(run: Run, split: Split, evaluations: list[int], damage: str) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder(run).glob("*.npy")}
    path = folder(run) / "non_members_000100.npy"
    whole = path.read_bytes()
    path.unlink()
    if damage != "lost":
        left = {"cut": whole[:-1], "cut in the header": whole[:20], "empty": b"", "text": b"not an array"}
        path.write_bytes(left[damage])
    assert missing_shards(run, "clean") == [("non_members", 100)]
    draw_all(run, split, "clean")
    assert sum(evaluations) == 100 * 4
    for other, (content, time) in before.items():
        assert other.read_bytes() == content
        assert (other.stat().st_mtime_ns == time) == (other != path)


def test_drawing_stopped_midway_continues(
    run: Run, split: Split, evaluations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {path.name: path.read_bytes() for path in folder(run).iterdir()}
    for path in folder(run).iterdir():
        path.unlink()
    draw, drawn = candidates.draw_shard, []

    def stop_at_the_third(*arguments: object) -> np.ndarray:
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(candidates, "draw_shard", stop_at_the_third)
        draw_all(run, split, "clean")
    assert len(missing_shards(run, "clean")) == 2
    evaluations.clear()
    draw_all(run, split, "clean")
    assert sum(evaluations) == 2 * 100 * 4
    assert {path.name: path.read_bytes() for path in folder(run).iterdir()} == whole


def test_a_larger_n_extends_the_same_candidates(run: Run, split: Split, tiny: Path, evaluations: list[int]) -> None:
    few = stored(run)
    more = tiny_run(run.folder, tiny, "diffence.n=6")
    draw_all(more, split, "clean")
    torch.testing.assert_close(stored(more)[:, :4], few, atol=1e-3, rtol=0)
    assert stored(more).shape[1] == 6
    evaluations.clear()
    draw_all(run, split, "clean")  # the smaller N is a part of the larger
    assert evaluations == []
    assert stored(run).shape[1] == 4


def test_the_released_protocol_needs_fewer(run: Run) -> None:
    for side in ("members", "non_members"):
        (folder(run) / f"{side}_000100.npy").unlink()
    assert missing_shards(run, "released") == []
    assert missing_shards(run, "clean") == [("members", 100), ("non_members", 100)]


def test_a_shard_of_a_smaller_partition_is_extended(fresh: Run, split: Split, tmp_path: Path) -> None:
    """A last shard of fewer images, of a time when the partition had fewer, does not pass for a whole one."""
    profile = write_profile(tmp_path / "tiny.yaml", "data.non_members=150", "data.scored=50")
    fewer = Split(split.members, split.reference, split.non_members.take(slice(150)))
    draw_all(tiny_run(fresh.folder, profile), fewer, "clean")
    assert np.load(folder(fresh) / "non_members_000100.npy").shape[0] == 50
    assert missing_shards(fresh, "clean") == [("non_members", 100)]
    draw_all(fresh, split, "clean")
    assert len(stored(fresh, "non_members")) == 200


@pytest.mark.parametrize("override", ["diffence.t=99", "diffence.steps=2", "diffence.forward=released"])
def test_other_ways_of_drawing_lie_apart(run: Run, split: Split, tiny: Path, override: str) -> None:
    before = stored_first(run)
    other = tiny_run(run.folder, tiny, override)
    assert len(missing_shards(other, "released")) == 2
    draw_all(other, split, "released")
    assert (stored_first(other) - before).abs().max() > 0.01
    assert torch.equal(stored_first(run), before)


def test_candidates_of_another_diffusion_model_are_refused(run: Run, split: Split) -> None:
    before = {path: path.read_bytes() for path in folder(run).iterdir()}
    unet = run.ddpm_dir / "unet"
    torch.manual_seed(1)
    build_unet(run.config.ddpm).save_pretrained(unet)
    with pytest.raises(UserError, match=rf"^{folder(run)} was made under other settings \(weights: \w+ -> \w+\): delete it"):
        draw_all(run, split, "released")
    assert before == {path: path.read_bytes() for path in folder(run).iterdir()}


def test_a_damaged_diffusion_model_is_not_blamed_on_the_candidates(run: Run, split: Split, tiny: Path) -> None:
    with pytest.raises(UserError, match=rf"^{run.ddpm_dir}/unet was made under other settings \(steps: 20 -> 21\)"):
        draw_all(tiny_run(run.folder, tiny, "ddpm.steps=21"), split, "released")
    weights = run.ddpm_dir / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(UserError, match=rf"^{run.ddpm_dir}/unet is damaged"):
        draw_all(run, split, "released")
