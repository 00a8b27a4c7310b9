"""Where official images come from: files found, unpacked, fetched, damaged or absent; real CIFAR-10 and SVHN."""

import hashlib
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision.datasets
from conftest import ROOT, SHARED, Call, refusal

from common.commands import data_partition
from common.data import DATASETS
from common.data.partition import draw_indices
from common.data.sources import Source
from common.errors import UserError
from common.profiles import load_config

FOLDER = "cifar-10-batches-py"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# CIFAR-10: a miniature in the official layout


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with six images in official files, whose md5s torchvision is told to expect."""
    folder = tmp_path / "official" / FOLDER
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    contents: dict[str, Any] = {
        name: {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": list(range(count))}
        for name, count in (("data_batch_1", 4), ("test_batch", 2))
    }
    contents["batches.meta"] = {"label_names": list("0123456789")}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    archive = tmp_path / "official.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, FOLDER)
    dataset: Any = torchvision.datasets.CIFAR10
    monkeypatch.setattr(dataset, "train_list", [["data_batch_1", md5(folder / "data_batch_1")]])
    monkeypatch.setattr(dataset, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(folder / "batches.meta")})
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    return folder.parent


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads break off after some bytes."""

    def download(dataset: Any) -> None:
        (Path(dataset.root) / "half").write_bytes(b"half of it")
        raise ConnectionError("no route to host")

    for name in ("CIFAR10", "CIFAR100", "SVHN"):
        monkeypatch.setattr(getattr(torchvision.datasets, name), "download", download)


def check_small_cifar(source: Source) -> None:
    assert (source.train_images.shape, source.test_images.shape) == ((4, 3, 32, 32), (2, 3, 32, 32))
    assert source.train_images.dtype == np.uint8
    assert source.train_labels.tolist() == [0, 1, 2, 3]
    assert source.test_labels.dtype == np.int64
    assert set(source.md5) == {"data_batch_1", "test_batch"}


def test_official_files_are_taken_where_they_lie(small_cifar: Path, no_network: None) -> None:
    source = DATASETS["cifar10"].load(small_cifar)
    check_small_cifar(source)
    raw = pickle.loads((small_cifar / FOLDER / "data_batch_1").read_bytes())["data"]
    np.testing.assert_array_equal(source.train_images[2], raw[2].reshape(3, 32, 32))
    assert source.train_images.flags["C_CONTIGUOUS"]
    assert [path.name for path in small_cifar.iterdir()] == [FOLDER]


def test_the_official_archive_is_unpacked(small_cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has the archive needs no network; the archive stays as it is."""
    import torchvision.datasets.utils

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", None)
    root, archive = tmp_path / "root", torchvision.datasets.CIFAR10.filename
    root.mkdir()
    shutil.copy(tmp_path / "official.tar.gz", root / archive)
    check_small_cifar(DATASETS["cifar10"].load(root))
    assert sorted(path.name for path in root.iterdir()) == sorted([FOLDER, archive])
    assert md5(root / archive) == md5(tmp_path / "official.tar.gz")


def test_what_is_missing_is_fetched_once(small_cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def download(dataset: Any) -> None:
        if not (Path(dataset.root) / FOLDER).exists():
            fetched.append(dataset.root)
            shutil.copytree(small_cifar / FOLDER, Path(dataset.root) / FOLDER)

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    root = tmp_path / "new" / "root"
    check_small_cifar(DATASETS["cifar10"].load(root))
    assert [path.name for path in root.iterdir()] == [FOLDER]
    check_small_cifar(DATASETS["cifar10"].load(root))
    assert len(fetched) == 1


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_files_are_refused(small_cifar: Path, no_network: None, name: str, damage: str) -> None:
    path = small_cifar / FOLDER / name
    content = path.read_bytes()
    path.unlink()
    if damage != "remove":
        path.write_bytes(content[:-9] if damage == "cut" else content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with pytest.raises(UserError, match=rf"CIFAR10 files under {small_cifar} .*incomplete or damaged.*official") as caught:
        DATASETS["cifar10"].load(small_cifar)
    assert "\n" not in str(caught.value)
    assert path.exists() == (damage != "remove")


# No data, no network


@pytest.mark.parametrize(
    ("name", "official"),
    [("cifar10", FOLDER), ("cifar100", "cifar-100-python"), ("svhn", "train_32x32.mat, test_32x32.mat")],
)
def test_without_data_and_network(name: str, official: str, tmp_path: Path, no_network: None, call: Call) -> None:
    (tmp_path / name / "configs").mkdir(parents=True)
    (tmp_path / name / "configs" / "paper.yaml").touch()
    sentence = refusal(call(data_partition, tmp_path / name, "--root", tmp_path / "root"))
    for word in (str(tmp_path / "root"), "could not be downloaded (ConnectionError)", official, "--root DIR", "DIFFENCE_DATA"):
        assert word in sentence
    assert list((tmp_path / "root").iterdir()) == []
    assert [path.name for path in (tmp_path / name).rglob("*")] == ["configs", "paper.yaml"]


def test_a_root_that_cannot_be_made(tmp_path: Path, no_network: None) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"could not be downloaded \((NotADirectory|FileExists)Error\).*--root DIR"):
        DATASETS["cifar10"].load(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


def test_root_goes_before_the_environment_variable(
    tmp_path: Path, no_network: None, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIFFENCE_DATA", raising=False)
    (tmp_path / "svhn" / "configs").mkdir(parents=True)
    (tmp_path / "svhn" / "configs" / "paper.yaml").touch()
    assert f"under {tmp_path}/svhn/data and" in refusal(call(data_partition, tmp_path / "svhn"))
    monkeypatch.setenv("DIFFENCE_DATA", str(tmp_path / "variable"))
    assert f"under {tmp_path}/variable and" in refusal(call(data_partition, tmp_path / "svhn"))
    assert f"under {tmp_path}/option and" in refusal(call(data_partition, tmp_path / "svhn", "--root", tmp_path / "option"))


# Real data


@pytest.fixture(scope="module")
def official_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (SHARED / "datasets" / FOLDER / "manifest.json").exists():
        pytest.skip(f"the real CIFAR-10 lies in {SHARED}/datasets, which is not here")
    root = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, SHARED / "datasets" / "unpack.py", root, FOLDER], check=True, capture_output=True)
    return root


def test_the_real_cifar10(official_cifar: Path) -> None:
    source = DATASETS["cifar10"].load(official_cifar)
    assert (source.train_images.shape, source.test_images.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert Counter(source.train_labels.tolist()) == dict.fromkeys(range(10), 5_000)
    assert Counter(source.test_labels.tolist()) == dict.fromkeys(range(10), 1_000)
    assert source.md5["data_batch_1"] == "c99cafc152244af753f735de768cd75f"
    assert source.md5 == {name: md5(official_cifar / FOLDER / name) for name in source.md5}
    assert len(source.md5) == 6
    # Published channel means (0.4914, 0.4822, 0.4465), with which the classifiers normalise.
    means = source.train_images.mean((0, 2, 3), dtype=np.float64) / 255
    np.testing.assert_allclose(means, DATASETS["cifar10"].mean, atol=1e-4)


def test_the_real_cifar10_with_one_wrong_bit(official_cifar: Path, tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "root" / FOLDER
    folder.mkdir(parents=True)
    for path in (official_cifar / FOLDER).iterdir():
        (folder / path.name).symlink_to(path)
    content = bytearray((official_cifar / FOLDER / "test_batch").read_bytes())
    content[12_345_678] ^= 1
    (folder / "test_batch").unlink()
    (folder / "test_batch").write_bytes(content)
    (tmp_path / "cifar10" / "configs").mkdir(parents=True)
    (tmp_path / "cifar10" / "configs" / "paper.yaml").touch()
    answer = call(data_partition, tmp_path / "cifar10", "--root", tmp_path / "root")
    assert "CIFAR10 files under" in refusal(answer)
    assert "incomplete or damaged" in answer.err
    assert not (tmp_path / "cifar10" / "data").exists()


@pytest.fixture
def svhn_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first 1,083 official training crops as both splits; torchvision is told to expect them."""
    crops = SHARED / "datasets" / "svhn" / "train_32x32_first1083.mat"
    if not crops.exists():
        pytest.skip(f"the SVHN crops lie in {SHARED}/datasets, which is not here")
    expected = {}
    for split in ("train", "test"):
        shutil.copy(crops, tmp_path / f"{split}_32x32.mat")
        expected[split] = ["http://nowhere", f"{split}_32x32.mat", md5(crops)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", expected)
    return tmp_path


def test_the_real_svhn(svhn_crops: Path, no_network: None) -> None:
    source = DATASETS["svhn"].load(svhn_crops)
    raw = scipy.io.loadmat(str(svhn_crops / "train_32x32.mat"))
    assert (source.train_images.shape, source.train_images.dtype) == ((1_083, 3, 32, 32), np.uint8)
    assert source.test_images.shape == (1_083, 3, 32, 32)
    assert set(raw["y"].ravel()) == set(range(1, 11))
    assert source.train_labels.dtype == np.int64
    np.testing.assert_array_equal(source.train_labels, raw["y"].ravel() % 10)
    np.testing.assert_array_equal(source.train_images[7], raw["X"][..., 7].transpose(2, 0, 1))
    assert source.md5 == {f"{split}_32x32.mat": md5(svhn_crops / "train_32x32.mat") for split in ("train", "test")}


def test_half_of_svhn_is_refused(svhn_crops: Path, no_network: None) -> None:
    (svhn_crops / "test_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"SVHN files under .* \(train_32x32\.mat\) are incomplete or damaged"):
        DATASETS["svhn"].load(svhn_crops)
    assert (svhn_crops / "train_32x32.mat").exists()


def test_the_paper_sizes_fit_the_real_sets() -> None:
    for name, train, test in (("cifar10", 50_000, 10_000), ("cifar100", 50_000, 10_000), ("svhn", 73_257, 26_032)):
        for profile in ("paper", "small"):
            draw_indices(load_config(ROOT / name, profile).data, train, test)
    for profile in ("paper", "small"):
        draw_indices(load_config(ROOT / "synthetic", profile).data, 4_000, 4_000)
