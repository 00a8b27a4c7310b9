"""`python -m common.new_dataset`, as a user runs it; and images of 64 x 64 from partition to rows through the real commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Call, refusal, run_script, tiny_run, write_profile
from diffusers import UNet2DModel
from faces import make_folders, make_utkface, save_image
from omegaconf import OmegaConf

from common.commands import data_partition, evaluate_mia, train_ddpm, train_defense
from common.config import DDPM
from common.data import DATASETS
from common.data.own import Description, own_datasets
from common.data.partition import load_split
from common.diffence.ddpm import Padded, build_unet, load_reconstructor
from common.errors import UserError
from common.new_dataset import main, profiles
from common.profiles import load_config

CLASSES = ("cat", "dog", "owl")
SIZE = "data.image_size=64"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree in which a data set may be made, and a folder of images beside it."""
    place = tmp_path_factory.mktemp("own")
    for name in ("common", "svhn"):
        ignored = shutil.ignore_patterns("__pycache__", "data" if name == "svhn" else "", "final-all-models")
        shutil.copytree(ROOT / name, place / "tree" / name, ignore=ignored)
    images = make_folders(place / "images", CLASSES, 70, (70, 96))
    (images / "cat" / "0003.jpg").write_bytes(b"no image")
    return place / "tree"


# The paper's pipeline at 64 x 64


def test_images_of_64_by_64_from_partition_to_rows(tmp_path: Path, call: Call) -> None:
    root = make_utkface(tmp_path / "official", 440, (80, 72))
    sizes = ["data.members=60", "data.reference=20", "data.non_members=60", "data.fit=10", "data.known=15", "data.scored=30"]
    options = [
        *sizes,
        SIZE,
        "model.width=16",
        "train.epochs=3",
        "train.batch_size=20",
        "ddpm.channels=[4,4,4]",
        "ddpm.steps=10",
        "diffence.n=2",
    ]
    profile = write_profile(tmp_path / "tiny.yaml", *options, "ddpm.flip=true", "attack.nn_epochs=1", "diffence.t=100")
    folder = tmp_path / "utkface"
    for command, *arguments in (
        (data_partition, "--root", root),
        (train_defense, "--defense", "undefended", "--device", "cpu"),
        (train_ddpm, "--device", "cpu"),
        (evaluate_mia, "--defense", "undefended", "--scenario", "3", "--device", "cpu"),
    ):
        answer = call(command, folder, "--profile", profile, *arguments)
        assert (answer.code, answer.err) == (0, ""), command
    run = tiny_run(folder, profile)
    assert load_split(run).members.images.shape == (60, 3, 64, 64)
    assert UNet2DModel.from_pretrained(run.ddpm_dir / "unet").config.sample_size == 64
    shard = np.load(next(run.candidates_dir.glob("*/members_000000.npy")))
    assert shard.shape == (60, 2, 3, 64, 64) and shard.astype(float).std() > 0.01
    row = json.loads((run.results_dir("clean") / "undefended_w_Diffence_scenario3.json").read_text())
    assert row["dataset"] == "utkface" and row["config"]["data"]["image_size"] == 64
    assert row["scored"] == {"members": 30, "non_members": 30}
    assert row["diffence"]["labels_changed"] == {"members": 0, "non_members": 0}


def test_the_colours_of_faces_are_learned(tmp_path: Path, call: Call) -> None:
    """From pixels on the disk: a class has a colour, so that training for a few epochs classifies images that it never saw."""
    root = make_utkface(tmp_path / "official", 440, (20, 20))
    sizes = ["data.members=120", "data.reference=20", "data.non_members=100", "data.image_size=16", "model.width=16"]
    profile = write_profile(
        tmp_path / "tiny.yaml",
        *sizes,
        "data.fit=20",
        "data.known=20",
        "data.scored=40",
        "train.batch_size=20",
        "train.epochs=10",
    )
    assert call(data_partition, tmp_path / "utkface", "--profile", profile, "--root", root).code == 0
    answer = call(train_defense, tmp_path / "utkface", "--defense", "undefended", "--profile", profile, "--device", "cpu")
    assert float(answer.out.split(" on non-members")[0].split()[-1]) > 0.6  # guessing has 0.25


# Images whose sides a UNet cannot halve often enough


def test_a_unet_takes_images_of_any_size() -> None:
    torch.manual_seed(0)
    unet = build_unet(DDPM(channels=[4, 4, 4], groups=4, layers=1, attention=[]), (22, 18)).eval()
    assert tuple(unet.config.sample_size) == (22, 18)
    padded, x = Padded(unet), torch.randn(2, 3, 22, 18)
    with pytest.raises(RuntimeError), torch.no_grad():
        unet(x, 5)
    with torch.no_grad():
        by_hand = torch.cat([x, x[:, :, -1:].expand(-1, -1, 2, -1)], 2)
        by_hand = torch.cat([by_hand, by_hand[..., -1:].expand(-1, -1, -1, 2)], 3)
        torch.testing.assert_close(padded(x, 5)[0], unet(by_hand, 5).sample[..., :22, :18], rtol=0, atol=0)
        fits = torch.randn(2, 3, 16, 24)
        assert torch.equal(padded(fits, torch.tensor([1, 7]))[0], unet(fits, torch.tensor([1, 7])).sample)


def test_a_diffusion_model_is_trained_at_the_official_size(tmp_path: Path, call: Call) -> None:
    """Images of 200 x 200, of which the deepest of five levels has 12.5 x 12.5."""
    root = make_utkface(tmp_path / "official", 60, (200, 200))
    few = ["data.members=8", "data.reference=4", "data.non_members=8", "data.fit=1", "data.known=1", "data.scored=2"]
    small = ["ddpm.channels=[4,4,4,4,4]", "ddpm.steps=1", "ddpm.batch_size=2"]
    profile = write_profile(tmp_path / "tiny.yaml", *few, *small)
    assert call(data_partition, tmp_path / "utkface", "--profile", profile, "--root", root).code == 0
    answer = call(train_ddpm, tmp_path / "utkface", "--profile", profile, "--device", "cpu")
    assert (answer.code, answer.err) == (0, "")
    run = tiny_run(tmp_path / "utkface", profile)
    images = load_split(run).members.pixels(slice(2))
    assert load_reconstructor(run)(images, torch.arange(2), torch.zeros(2, dtype=torch.int64)).shape == images.shape


# A data set of one's own


def test_a_data_set_of_ones_own(tree: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made, partitioned and trained by the commands that it prints."""
    made = call(main, tree, "pets", "--from", tree.parent / "images")
    assert (made.code, made.err) == (0, "")
    assert "left out: 1 files, such as cat/0003.jpg: unreadable" in made.out
    files = {path.relative_to(tree / "svhn") for path in (tree / "svhn").rglob("*") if path.suffix in (".py", ".sh")}
    own = {path.relative_to(tree / "pets") for path in (tree / "pets").rglob("*") if path.suffix in (".py", ".sh")}
    assert own == files and len(own) > 10
    assert all((tree / "pets" / path).read_bytes() == (tree / "svhn" / path).read_bytes() for path in own)
    assert (tree / "pets" / "evaluate_MIAs" / "evaluate_mia.sh").stat().st_mode & 0o100
    dataset = own_datasets(tree)["pets"]
    assert (dataset.classes, dataset.size, dataset.root) == (3, (70, 96), tree.parent / "images")
    assert abs(np.array(dataset.mean) - [106 / 255, 106 / 255, 60 / 255]).max() < 0.04  # colours 0, 1 and 2 of tests/faces.py
    assert not [path for path in tree.iterdir() if path.name.startswith(".")]

    small = ["--profile", "small"]
    commands = [line.split() for line in made.out.splitlines() if line.startswith("  ")]
    assert [words[1] for words in commands] == [
        "pets/data_partition.py",
        "pets/train_defense.py",
        "pets/diff_defense/train_ddpm.py",
        "pets/evaluate_MIAs/evaluate_mia.sh",
    ]
    assert all(words[words.index("--profile") :][:2] == small for words in commands)
    partitioned = run_script(tree, *commands[0][1:])  # in a process of its own, which finds the data set by its folder
    assert partitioned.code == 0, partitioned.err
    monkeypatch.setitem(DATASETS, "pets", dataset)
    options = ["--set", "train.epochs=1", "--device", "cpu"]
    assert call(train_defense, tree / "pets", *commands[1][2:], *options).code == 0
    assert (tree / "pets" / "final-all-models" / "small" / "seed0" / "resnet18" / "undefended.pt").is_file()

    assert "pets exists already" in refusal(call(main, tree, "pets", "--from", tree.parent / "images"))


def test_profiles_follow_from_the_images(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for train, test, side in ((80, 40, 32), (3_000, 900, 64), (200_000, 30_000, 256)):
        for name, text in profiles("pets", train, test, side).items():
            (tmp_path / "configs" / f"{name}.yaml").write_text(text)
            config = load_config(tmp_path, name)
            assert config.data.members + config.data.reference <= train and config.data.non_members <= test
            assert config.data.image_size == (side if name == "paper" else min(side, 64))
            lowest = config.data.image_size // 2 ** (len(config.ddpm.channels) - 1)
            assert lowest == (4 if name == "paper" else 8)
            if name == "paper":
                assert side // 2 ** config.ddpm.attention[0] == 16
                assert (
                    config.diffence == load_config(ROOT / "svhn", "paper", [f"diffence.batch={config.diffence.batch}"]).diffence
                )
    assert load_config(tmp_path, "paper").data.members == 25_000


@pytest.mark.parametrize(
    ("name", "folder", "words"),
    [
        ("Pets", "images", "'Pets' is no name: use small letters, digits and _"),
        ("svhn", "images", "svhn exists already: choose another name"),
        ("pets2", "nowhere", "nowhere is no folder"),
        ("pets2", "images/cat", "has 0 folders with images, and a classifier needs at least two"),
        ("pets2", "splits", "training set in train, and its folders are train, val: name two folders, `train` and `test`"),
        ("pets2", "interpolated", r"class1\$\{a\}: rename it, since \$\{ stands for a variable in dataset.yaml"),
        ("pets2", "few", "training and [0-9]+ test images, and a data set needs at least 80 and 40"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused(tree: Path, name: str, folder: str, words: str) -> None:
    for label in range(2):
        save_image(tree.parent / "few" / f"class{label}" / "1.jpg", label, label)
        save_image(tree.parent / "interpolated" / ("class0", "class1${a}")[label] / "1.jpg", label, label)
        for part in ("train", "val"):
            save_image(tree.parent / "splits" / part / f"class{label}" / "1.jpg", label, label)
    before = sorted(tree.iterdir())
    with pytest.raises(UserError, match=words) as caught:
        main(tree, [name, "--from", str(tree.parent / folder)])
    assert "\n" not in str(caught.value)
    assert sorted(tree.iterdir()) == before


@pytest.mark.parametrize(
    "content",
    [
        "classes: [a",
        "classes: [a, b]",
        "{images: x, classes: [a, b], size: [1]}",
        "{images: x, classes: [a, '${b}']}",
        "colour: red",
    ],
)
def test_a_damaged_description_is_refused_where_it_is_used(tmp_path: Path, content: str) -> None:
    """Every command reads all of them, and must go on with the others."""
    for name in ("pets", "toys"):
        (tmp_path / name).mkdir()
        OmegaConf.save(OmegaConf.structured(Description(str(tmp_path), ["a", "b"])), tmp_path / name / "dataset.yaml")
    (tmp_path / "pets" / "dataset.yaml").write_text(content)
    found = own_datasets(tmp_path)
    assert list(found) == ["pets", "toys"] and found["toys"].classes == 2
    for use in (lambda: found["pets"].classes, lambda: found["pets"].load(tmp_path), lambda: found["pets"].image_size(8)):
        with pytest.raises(UserError, match=r"pets/dataset\.yaml is damaged .*common\.new_dataset again") as caught:
            use()
        assert "\n" not in str(caught.value)
    OmegaConf.save(OmegaConf.structured(Description(str(tmp_path), ["a", "b"])), tmp_path / "pets" / "dataset.yaml")
    assert own_datasets(tmp_path)["pets"].classes == 2
