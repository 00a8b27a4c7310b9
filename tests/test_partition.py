"""Members, reference and non-members: disjoint, drawn from the seed, written with a manifest, checked when read."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Call, refusal, tiny_run, write_profile

from common.commands import data_partition
from common.config import Data
from common.data import partition
from common.data.partition import PARTS, draw_indices, evaluation_pools, load_split, write_partition
from common.data.sources import Source
from common.errors import UserError
from common.run import Run

SMALL = Data(members=30, reference=20, non_members=25, fit=4, known=6, scored=10)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthetic: Source) -> Run:
    """A run on the embedded data set, generated once."""
    entry = replace(partition.DATASETS["synthetic"], load=lambda root: synthetic)
    monkeypatch.setitem(partition.DATASETS, "synthetic", entry)
    return tiny_run(tmp_path / "synthetic", write_profile(tmp_path / "tiny.yaml"))


def manifest_of(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.partition_dir / "manifest.json").read_text())
    return content


# Drawing


def test_parts_are_disjoint_draws_without_repetition() -> None:
    drawn = draw_indices(SMALL, train_size=50, test_size=40)
    assert {part: len(index) for part, index in drawn.items()} == {"members": 30, "reference": 20, "non_members": 25}
    assert sorted([*drawn["members"], *drawn["reference"]]) == list(range(50))
    assert len(set(drawn["non_members"])) == 25
    assert set(drawn["non_members"]) <= set(range(40))
    for index in drawn.values():
        assert list(index) != sorted(index)


def test_the_draw_depends_on_its_seed_alone() -> None:
    first = draw_indices(SMALL, 50, 40)
    again = draw_indices(replace(SMALL), 50, 40)
    other = draw_indices(replace(SMALL, seed=1), 50, 40)
    for part in PARTS:
        assert list(first[part]) == list(again[part])
        assert set(first[part]) != set(other[part])
    assert first["members"][:5].tolist() == [30, 47, 27, 8, 15]  # on every machine
    assert first["non_members"][:5].tolist() == [9, 10, 8, 13, 29]
    fewer = draw_indices(replace(SMALL, members=20, reference=0), 50, 40)
    assert list(fewer["members"]) == list(first["members"][:20])


def test_members_are_a_fair_sample() -> None:
    drawn = draw_indices(Data(members=25_000, reference=25_000, non_members=10_000), 50_000, 10_000)
    assert abs(drawn["members"].mean() - 25_000) < 400  # 6 standard deviations
    counts = np.histogram(drawn["members"], bins=10, range=(0, 50_000))[0]
    assert abs(counts - 2_500).max() < 160  # 5 standard deviations


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(UserError, match="= 50 exceed the 49 official training images"):
        draw_indices(SMALL, 49, 40)
    with pytest.raises(UserError, match=r"data\.non_members = 25 exceed the 24 official test images"):
        draw_indices(SMALL, 50, 24)


# Pools


def test_clean_pools_are_disjoint() -> None:
    places = evaluation_pools(SMALL, "clean")
    assert (places.fit, places.known, places.scored) == (range(0, 4), range(4, 10), range(10, 20))
    assert places.used == range(20)


def test_released_pools_share_their_points() -> None:
    places = evaluation_pools(SMALL, "released")
    assert (places.fit, places.known, places.scored) == (range(6), range(6), range(10))
    assert places.used == range(10)


def test_pools_of_the_paper() -> None:
    """Appendix E: 1,000 known and 2,000 scored a side."""
    released, clean = (evaluation_pools(Data(), protocol) for protocol in ("released", "clean"))
    assert (len(released.known), len(released.scored)) == (1_000, 2_000)
    assert set(released.fit) == set(released.known) <= set(released.scored)
    parts = [set(part) for part in (clean.fit, clean.known, clean.scored)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 4_000
    assert len(clean.scored) == 2_000


# Writing and reading


def test_what_is_written_is_what_is_read(run: Run, synthetic: Source) -> None:
    assert write_partition(run, Path("nowhere")) == {"members": 200, "reference": 100, "non_members": 200}
    manifest, split = manifest_of(run), load_split(run)
    official = {"members": "train", "reference": "train", "non_members": "test"}
    for part, kind in official.items():
        index, examples = manifest["index"][part], getattr(split, part)
        assert examples.images.dtype == torch.uint8
        assert examples.labels.dtype == torch.int64
        np.testing.assert_array_equal(examples.images.numpy(), getattr(synthetic, f"{kind}_images")[index])
        np.testing.assert_array_equal(examples.labels.numpy(), getattr(synthetic, f"{kind}_labels")[index])
    pixels = split.members.pixels(slice(3))
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 3, 32, 32))
    assert torch.equal((pixels * 255).round().to(torch.uint8), split.members.images[:3])


def test_no_image_is_in_two_parts(run: Run) -> None:
    write_partition(run, Path("nowhere"))
    split = load_split(run)
    images = [image.numpy().tobytes() for part in PARTS for image in getattr(split, part).images]
    assert len(set(images)) == len(images) == 500


def test_the_manifest_says_what_the_partition_is(run: Run, synthetic: Source) -> None:
    write_partition(run, Path("nowhere"))
    manifest = manifest_of(run)
    assert manifest["dataset"] == "synthetic"
    unset = ("canaries", "image_size")  # the former changes no partition, the latter is not set
    assert manifest["settings"] == {name: value for name, value in vars(run.config.data).items() if name not in unset}
    assert manifest["settings"]["seed"] == 0
    assert manifest["source_md5"] == synthetic.md5
    assert manifest["counts"] == {part: len(index) for part, index in manifest["index"].items()}
    assert manifest["pools"] == {
        "clean": {"fit": [0, 40], "known": [40, 100], "scored": [100, 200]},
        "released": {"fit": [0, 60], "known": [0, 60], "scored": [0, 100]},
    }
    for protocol, stated in manifest["pools"].items():
        assert {name: range(*ends) for name, ends in stated.items()} == vars(evaluation_pools(run.config.data, protocol))


def test_writing_again_gives_the_same_bytes(run: Run) -> None:
    write_partition(run, Path("nowhere"))
    first = {path.name: path.read_bytes() for path in run.partition_dir.iterdir()}
    shutil.rmtree(run.partition_dir)
    write_partition(run, Path("nowhere"))
    assert {path.name: path.read_bytes() for path in run.partition_dir.iterdir()} == first
    assert set(first) == {"members.npz", "reference.npz", "non_members.npz", "manifest.json"}


# What is wrong


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fill(path: Path) -> None:
    path.write_text("[]")


FILES = ("members.npz", "reference.npz", "non_members.npz", "manifest.json")
DAMAGE = [(name, damage) for name in FILES for damage in (flip, cut, empty, fill, Path.unlink)]


# One flipped bit of a JSON text may leave its content as it is.
@pytest.mark.parametrize(("name", "damage"), [pair for pair in DAMAGE if pair != ("manifest.json", flip)])
def test_damage_is_refused_with_the_command_that_repairs_it(run: Run, name: str, damage: Callable[[Path], object]) -> None:
    write_partition(run, Path("nowhere"))
    damage(run.partition_dir / name)
    with pytest.raises(UserError, match=rf"{name} is .*: python synthetic/data_partition\.py --profile") as caught:
        load_split(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["data.seed=1", "data.members=201", "data.scored=99"])
def test_other_settings_are_refused_and_named(run: Run, call: Call, override: str) -> None:
    write_partition(run, Path("nowhere"))
    before = {path: path.read_bytes() for path in run.partition_dir.iterdir()}
    sentence = refusal(call(data_partition, run.folder, "--profile", run.profile, "--set", override))
    key, value = override.removeprefix("data.").split("=")
    assert f"{key}: {getattr(run.config.data, key)} -> {value}" in sentence
    assert str(run.partition_dir) in sentence
    assert before == {path: path.read_bytes() for path in run.partition_dir.iterdir()}


def test_a_failed_write_leaves_no_partition(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full while the third part is written: the next call starts over and succeeds."""
    whole, written = np.savez, []

    def full(file: Any, **content: Any) -> None:
        written.append(file)
        if len(written) == 3:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        whole(file, **content)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        write_partition(run, Path("nowhere"))
    assert {path.name for path in run.partition_dir.iterdir()} == {"members.npz", "reference.npz"}
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        load_split(run)
    write_partition(run, Path("nowhere"))
    load_split(run)


def test_the_command_makes_it_once(run: Run, call: Call) -> None:
    first = call(data_partition, run.folder, "--profile", run.profile)
    assert (first.code, first.err) == (0, "")
    assert first.out == f"{run.partition_dir}: 200 members, 100 reference, 200 non-members\n"
    times = {path: path.stat().st_mtime_ns for path in run.partition_dir.iterdir()}
    again = call(data_partition, run.folder, "--profile", run.profile)
    assert (again.code, again.out) == (0, f"{run.partition_dir} exists and is intact.\n")
    assert times == {path: path.stat().st_mtime_ns for path in run.partition_dir.iterdir()}
    cut(run.partition_dir / "members.npz")
    assert "members.npz is missing or damaged" in refusal(call(data_partition, run.folder, "--profile", run.profile))
