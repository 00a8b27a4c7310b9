"""Data sets of image files: CelebA's and UTKFace's official layouts, what is refused or counted, and images on the disk."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Call, refusal, tiny_run, write_profile
from faces import colour, expect, make_celeba, make_folders, make_utkface, save_image
from PIL import Image

from common.commands import data_partition
from common.config import Config, Data
from common.data import DATASETS
from common.data.faces import ATTRIBUTES, UTKFACE_NAME
from common.data.files import ImageFiles, StoredImages, pixels_of, usable, write_images
from common.data.own import image_folder
from common.data.partition import PARTS, Examples, load_split, partition_settings, write_partition
from common.data.sources import Source, is_test_image
from common.diffence.ddpm import ddpm_settings
from common.errors import UserError
from common.experiments.shadow_models import shadow_pool
from common.run import Run
from common.training.targets import settings_of, target_classifier

COUNTS = {"train": 40, "valid": 3, "test": 24}
FEW = ("data.members=12", "data.reference=8", "data.non_members=12", "data.fit=2", "data.known=3", "data.scored=4")


def label_in_pixels(pixels: np.ndarray) -> int:
    """The class whose colour an image [3, H, W] of tests/faces.py has."""
    return sum(1 << bit for bit in range(3) if pixels[bit].mean() > 130)


@pytest.fixture
def celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_celeba(tmp_path / "official", monkeypatch, COUNTS, (218, 178))


def run_of(folder: Path, name: str, *changes: str) -> Run:
    folder.mkdir(exist_ok=True)
    return tiny_run(folder / name, write_profile(folder / "tiny.yaml", *FEW, *changes))


# CelebA


def test_celeba_has_the_classes_and_the_sets_of_its_files(celeba: Path) -> None:
    source = DATASETS["celeba"].load(celeba)
    assert ATTRIBUTES == ("Heavy_Makeup", "Mouth_Slightly_Open", "Smiling")
    assert source.train_labels.tolist() == [number % 8 for number in range(40)]
    assert source.test_labels.tolist() == [number % 8 for number in range(43, 67)]  # the validation set is between them
    for images, labels in ((source.train_images, source.train_labels), (source.test_images, source.test_labels)):
        decoded = list(images.decode(0, (218, 178)))
        assert [label_in_pixels(pixels) for pixels in decoded] == labels.tolist()
        assert {(pixels.shape, str(pixels.dtype)) for pixels in decoded} == {((3, 218, 178), "uint8")}
    assert len(source.md5) == 6 and not any(source.left_out.values())


def test_celeba_is_not_downloaded(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.CelebA, "download", lambda self: pytest.fail("a download"))
    (tmp_path / "celeba" / "configs").mkdir(parents=True)
    (tmp_path / "celeba" / "configs" / "paper.yaml").touch()
    sentence = refusal(call(data_partition, tmp_path / "celeba", "--root", tmp_path / "root"))
    for word in (f"{tmp_path}/root/celeba", "https://mmlab", "img_align_celeba", "--root DIR", "DIFFENCE_DATA"):
        assert word in sentence
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("file", "pattern", "replacement"),
    [
        ("list_attr_celeba.txt", "Smiling", "Smirking"),
        ("list_attr_celeba.txt", r"(000007.jpg.*) \S+\n", r"\1\n"),
        ("list_attr_celeba.txt", r"000067.jpg.*\n", ""),
        ("list_eval_partition.txt", r"(000007.jpg) 0", r"\1 train"),
    ],
)
def test_missing_attributes_of_celeba_are_refused(
    celeba: Path, monkeypatch: pytest.MonkeyPatch, file: str, pattern: str, replacement: str
) -> None:
    """Even where torchvision's check of the md5 would let them through."""
    path = celeba / "celeba" / file
    text = path.read_text()
    assert re.search(pattern, text)
    path.write_text(re.sub(pattern, replacement, text))
    for _ in ("another md5", "the expected md5"):
        with pytest.raises(UserError, match="not all there, or are not the official ones"):
            DATASETS["celeba"].load(celeba)
        expect(celeba / "celeba", monkeypatch)


def test_missing_images_of_celeba_are_refused(celeba: Path) -> None:
    for name in ("000003.jpg", "000066.jpg"):
        (celeba / "celeba" / "img_align_celeba" / name).unlink()
    with pytest.raises(UserError, match=r"2 CelebA images such as 000003\.jpg are missing: .*mmlab"):
        DATASETS["celeba"].load(celeba)


# UTKFace


def test_utkface_has_the_races_of_its_names(tmp_path: Path) -> None:
    root = make_utkface(tmp_path, 100)
    official = ["61_1_20170109142408075.jpg.chip.jpg", "39_1_20170116174525125.jpg.chip.jpg", "1_1_7_2017.jpg", "a_0_1_2.jpg"]
    for number, name in enumerate(official):
        save_image(root / "UTKFace" / name, 0, 500 + number)
    source = DATASETS["utkface"].load(root)
    labels = np.concatenate([source.train_labels, source.test_labels])
    assert np.bincount(labels).tolist() == [20] * 4
    assert {reason: len(names) for reason, names in source.left_out.items() if names} == {
        "name is not age_gender_race_time.jpg": 4,
        "race Others": 20,
    }
    assert sorted(source.left_out["name is not age_gender_race_time.jpg"]) == sorted(official)
    for images, of_images in ((source.train_images, source.train_labels), (source.test_images, source.test_labels)):
        assert [label_in_pixels(pixels) for pixels in images.decode(0, (64, 64))] == of_images.tolist()
        assert len(images) > 25
    assert all(is_test_image(name) for name in source.test_images.names)


@pytest.mark.parametrize("name", ["100_0_0_20170112213500903.jpg.chip.jpg", "1_1_3_20170109194453835.jpg"])
def test_official_names_of_utkface_are_read(name: str) -> None:
    match = UTKFACE_NAME.fullmatch(name)
    assert match and match["race"] == name.split("_")[2]


def test_without_utkface(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/UTKFace needs .*https://susanqq.*--root DIR or DIFFENCE_DATA") as caught:
        DATASETS["utkface"].load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_half_that_tests_is_a_half() -> None:
    tests = sum(is_test_image(f"{number}.jpg") for number in range(4000))
    assert abs(tests - 2000) < 150  # 4.7 standard deviations


# Broken files and copies


def test_unreadable_files_and_copies_are_left_out_and_counted(tmp_path: Path, call: Call) -> None:
    root = make_utkface(tmp_path / "root", 110)
    files = sorted((root / "UTKFace").glob("*_[0-3]_*.jpg"))
    races = [path for path in files if path.name.split("_")[2] != "4"]
    races[0].write_bytes(races[0].read_bytes()[:400])  # cut in the middle of its pixels
    races[1].write_bytes(b"no image")
    races[2].write_bytes(b"")
    shutil.copy(races[5], races[6])
    run = run_of(tmp_path / "run", "utkface", "data.image_size=64")
    answer = call(data_partition, run.folder, "--profile", run.profile, "--root", root)
    assert (answer.code, answer.err) == (0, "")
    manifest = json.loads((run.partition_dir / "manifest.json").read_text())
    assert sorted(manifest["left_out"]["unreadable"]) == sorted(path.name for path in races[:3])
    assert manifest["left_out"]["copy of another file"] == [races[6].name]
    assert "left out: 3 files" in answer.out and "unreadable" in answer.out
    used = {name for names in manifest["files"].values() for name in names}
    assert len(used) == 32 and not used & {path.name for path in (*races[:3], races[6])}


def test_a_file_that_breaks_after_the_check_is_refused(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "images", "a", 4)
    files = ImageFiles(root, [f"a/{number:04d}.jpg" for number in range(4)])
    (root / "a" / "0002.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"{root}/a/0002\.jpg cannot be read as an image"):
        write_images(tmp_path / "images.npy", [files], 0, (64, 64))
    assert not (tmp_path / "images.npy").exists()
    assert usable(files)[0].tolist() == [0, 1, 3]


def test_images_of_another_size_are_refused_by_name(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "images", "a", 3)
    save_image(root / "a" / "0001.jpg", 0, 7, (48, 64))
    files = ImageFiles(root, [f"a/{number:04d}.jpg" for number in range(3)])
    with pytest.raises(UserError, match=r"0001\.jpg has 48 x 64 pixels and not 64 x 64: .*data\.image_size"):
        list(files.decode(0, (64, 64)))
    assert {pixels.shape for pixels in files.decode(32, (32, 32))} == {(3, 32, 32)}


# Pixels


def encoded(image: Image.Image, path: Path, **options: Any) -> bytes:
    image.save(path, **options)
    return path.read_bytes()


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    read = pixels_of(encoded(image, tmp_path / "a.png"))
    np.testing.assert_array_equal(read, pixels.transpose(2, 0, 1))
    assert read.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(
        pixels_of(encoded(image.convert("L"), tmp_path / "grey.png"))[0], np.asarray(image.convert("L"))
    )
    assert pixels_of(encoded(image.convert("CMYK"), tmp_path / "cmyk.jpg")).shape == (3, 20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees to see it upright
    turned = pixels_of(encoded(image, tmp_path / "turned.png", exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1).transpose(2, 0, 1))


def test_a_square_is_cut_from_the_middle_and_averaged(tmp_path: Path) -> None:
    """As PyTorch's antialiased resizing of the whole image, of which the middle is taken; and unchanged at its own size."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    resized = pixels_of(encoded(Image.fromarray(pixels), tmp_path / "a.png"), (10, 10))
    whole = torch.from_numpy(pixels.transpose(2, 0, 1)).float()[None]
    expected = F.interpolate(whole, (10, 20), mode="bilinear", antialias=True)[0, :, :, 5:15]
    assert abs(resized - expected.numpy()).max() < 1.01
    same = pixels_of(encoded(Image.fromarray(pixels[:, 20:60]), tmp_path / "b.png"), (40, 40))
    np.testing.assert_array_equal(same, pixels[:, 20:60].transpose(2, 0, 1))


# On the disk


@pytest.fixture
def stored(tmp_path: Path) -> StoredImages:
    pixels = np.arange(6 * 3 * 4 * 5, dtype=np.int64).reshape(6, 3, 4, 5).astype(np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    return StoredImages.open(tmp_path / "images.npy")


@pytest.mark.parametrize(
    "index", [slice(1, 4), torch.tensor([5, 0, 0]), torch.tensor([True, False, True, False, False, True]), slice(None)]
)
def test_stored_images_answer_as_a_tensor_does(stored: StoredImages, index: torch.Tensor | slice) -> None:
    labels = torch.arange(6)
    on_disk, in_memory = Examples(stored, labels), Examples(stored.read(), labels)
    cpu = torch.device("cpu")
    for examples in (on_disk, on_disk.to(cpu), on_disk.take(slice(None))):
        assert torch.equal(examples.pixels(index), in_memory.pixels(index))
        assert torch.equal(examples.take(index).read(slice(None)), in_memory.images[index])
        assert torch.equal(examples.take(index).labels, labels[index])
    assert on_disk.images.shape == in_memory.images.shape and len(stored[index]) == len(labels[index])
    twice, as_tensors = (x.take(index).followed_by(x.take(slice(2))) for x in (on_disk, in_memory))
    assert isinstance(twice.images, StoredImages)
    assert torch.equal(twice.read(slice(None)), as_tensors.images) and torch.equal(twice.labels, as_tensors.labels)


def anonymous_memory() -> int:
    """The MiB of this process that are no pages of files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) // 1024


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """Ten batches of ten images from a file of 1 GB, which is sparse and has no blocks on the disk."""
    count = 33_000
    with open(tmp_path / "many.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, 3, 100, 100)})
        file.truncate(file.tell() + count * 30_000)
    before = anonymous_memory()
    images = StoredImages.open(tmp_path / "many.npy")
    examples = Examples(images, torch.zeros(len(images), dtype=torch.int64))
    kept = [examples.take(torch.arange(len(images)) % 2 == 0).to(torch.device("cpu")), examples.followed_by(examples)]
    for batch in torch.arange(0, 10_000, 100).split(10):
        assert all(part.pixels(batch).shape == (10, 3, 100, 100) for part in kept)
    assert anonymous_memory() - before < 60


def test_a_partition_of_files_is_what_the_files_are(celeba: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "celeba")
    assert write_partition(run, celeba) == {"members": 12, "reference": 8, "non_members": 12}
    split, manifest = load_split(run), json.loads((run.partition_dir / "manifest.json").read_text())
    for part in PARTS:
        examples = getattr(split, part)
        assert isinstance(examples.images, StoredImages)
        expected = [pixels_of((celeba / "celeba" / "img_align_celeba" / name).read_bytes()) for name in manifest["files"][part]]
        np.testing.assert_array_equal(examples.read(slice(None)).numpy(), np.stack(expected))
        assert [(int(name[:6]) - 1) % 8 for name in manifest["files"][part]] == examples.labels.tolist()
    pool = shadow_pool(split)
    assert isinstance(pool.images, StoredImages) and len(pool) == 24
    assert torch.equal(pool.read(slice(0, 12)), split.members.read(slice(None)))
    assert torch.equal(pool.read(slice(12, 24)), split.non_members.read(slice(None)))
    (run.partition_dir / "images.npy").write_bytes((run.partition_dir / "images.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"images\.npy is missing or damaged"):
        load_split(run)


# The setting data.image_size


def test_the_image_size_is_part_of_settings_only_where_it_is_set(tmp_path: Path) -> None:
    plain, sized = (run_of(tmp_path, "utkface", f"data.image_size={side}") for side in (0, 64))
    assert "image_size" not in plain.config.as_dict()["data"]
    for settings in (
        lambda run: partition_settings(run),
        lambda run: settings_of(run, "undefended")["data"],
        lambda run: ddpm_settings(run),
        lambda run: run.config.as_dict()["data"],
    ):
        without, given = settings(plain), settings(sized)
        assert "image_size" not in without
        assert given == {**without, "image_size": 64}
    assert Config(data=Data(image_size=64)).as_dict()["data"]["image_size"] == 64


def test_an_image_size_is_refused_where_images_are_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = np.zeros((30, 3, 32, 32), np.uint8), np.zeros(30, np.int64)
    entry = replace(DATASETS["synthetic"], load=lambda root: Source(images, labels, images, labels, {}))
    monkeypatch.setitem(DATASETS, "synthetic", entry)
    with pytest.raises(UserError, match=r"data\.image_size is for data sets of image files: leave it out for synthetic"):
        write_partition(run_of(tmp_path, "synthetic", "data.image_size=64"), tmp_path)
    with pytest.raises(UserError, match=r"data\.image_size must be at least 8"):
        Data(image_size=3)


def test_the_classifier_is_made_for_the_size_of_the_images(tmp_path: Path) -> None:
    wide = run_of(tmp_path, "celeba", "model.name=vit", "model.width=16")
    with pytest.raises(UserError, match=r"multiples of 8, not 218 x 178: set data\.image_size"):
        target_classifier(wide)
    sized = replace(wide, config=replace(wide.config, data=replace(wide.config.data, image_size=64)))
    assert target_classifier(sized)(torch.zeros(2, 3, 64, 64)).shape == (2, 8)


# Folders of classes


def test_a_folder_of_classes(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "images", ("cat", "dog"), 20)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    source = image_folder(root, ["cat", "dog"])
    assert source.left_out["name does not end in .jpg .jpeg .png .bmp .webp"] == ["cat/notes.txt"]
    for images, labels in ((source.train_images, source.train_labels), (source.test_images, source.test_labels)):
        assert [label_in_pixels(pixels) for pixels in images.decode(0, (64, 64))] == labels.tolist()
    assert len(source.train_labels) + len(source.test_labels) == 40
    with pytest.raises(UserError, match="has the classes cat, dog and not cat, cow"):
        image_folder(root, ["cat", "cow"])
    np.testing.assert_array_equal(colour(0), [60, 60, 60])


def test_a_folder_with_a_test_set_of_its_own(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("test", 3)):
        make_folders(tmp_path / "images" / split, ("cat", "dog"), count, (64, 64 + count))
    source = image_folder(tmp_path / "images", ["cat", "dog"])
    assert (len(source.train_labels), len(source.test_labels)) == (10, 6)
    assert all(name.startswith("train/") for name in source.train_images.names)
    assert source.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
