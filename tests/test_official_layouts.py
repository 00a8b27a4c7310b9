"""Data sets of image files in the layouts of CelebA and UTKFace and as folders of classes: labels, sets, and refusals."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Call, refusal
from faces import COUNTS, colour, expect, label_in_pixels, make_celeba, make_folders, make_utkface, save_image

from common.commands import data_partition
from common.data import DATASETS
from common.data.faces import ATTRIBUTES, UTKFACE_NAME
from common.data.own import image_folder
from common.data.sources import is_test_image
from common.errors import UserError


@pytest.fixture
def celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_celeba(tmp_path / "official", monkeypatch, COUNTS, (218, 178))


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
