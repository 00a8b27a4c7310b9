"""Image files as a data set: what is left out and counted or refused, their pixels, and images that stay on the disk."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Call, tiny_run, write_profile
from faces import COUNTS, make_celeba, make_folders, make_utkface, save_image
from PIL import Image

from common.commands import data_partition
from common.config import Config, Data
from common.data import DATASETS, own
from common.data.files import ImageFiles, StoredImages, pixels_of, usable, write_images
from common.data.folder import list_images, read_image
from common.data.partition import PARTS, Examples, load_split, partition_settings, write_partition
from common.data.sources import Source
from common.diffence.ddpm import ddpm_settings
from common.errors import UserError
from common.experiments.shadow_models import shadow_pool
from common.run import Run
from common.training.targets import settings_of, target_classifier

FEW = ("data.members=12", "data.reference=8", "data.non_members=12", "data.fit=2", "data.known=3", "data.scored=4")


def run_of(folder: Path, name: str, *changes: str) -> Run:
    folder.mkdir(exist_ok=True)
    return tiny_run(folder / name, write_profile(folder / "tiny.yaml", *FEW, *changes))


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


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I;16", "tif"), ("I;16B", "tif")])
def test_16_bits_become_8(tmp_path: Path, mode: str, suffix: str) -> None:
    """0, 257, 514 .. 65535 are 0, 1, 2 .. 255, and so are their neighbours. Pillow's own conversion clips at 255."""
    grey = np.arange(256).reshape(16, 16)
    deep = (257 * grey + [100, -100] * 8).clip(0, 65535).astype(">u2" if mode == "I;16B" else "<u2")
    file = tmp_path / f"a.{suffix}"
    read = pixels_of(encoded(Image.frombytes(mode, (16, 16), deep.tobytes()), file))
    np.testing.assert_array_equal(read, np.stack([grey] * 3))
    np.testing.assert_allclose(read_image(file), np.stack([grey] * 3) / 255, atol=1e-7)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_32_bits_are_refused(tmp_path: Path, kind: type) -> None:
    """Their white is unknown: 1, 255 or another number."""
    file = tmp_path / "a.tif"
    Image.fromarray(np.linspace(0, 1000, 64).reshape(8, 8).astype(kind)).save(file)
    with pytest.raises(UserError, match=rf"{file} has pixels of 32 bits.*: give 8-bit images\."):
        read_image(file)
    files = ImageFiles(tmp_path, ["a.tif"])
    with pytest.raises(UserError, match=rf"{file} has pixels of 32 bits.*: give 8-bit images\."):
        list(files.decode(0, (8, 8)))
    assert usable(files)[1]["unreadable"] == ["a.tif"]


# Links


def test_links_to_folders_are_refused_and_links_to_files_read(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "images", "ab", 3)
    (root / "a" / "link.jpg").symlink_to(root / "b" / "0000.jpg")
    assert len(list_images(root)) == len(own.list_images(root)) == 7
    (root / "c").symlink_to(root / "b")
    for listed in (list_images, own.list_images):
        with pytest.raises(UserError, match=rf"{root}/c is a link to a folder.*: put the folder itself there"):
            listed(root)
    (tmp_path / "all").symlink_to(root)
    (root / "c").unlink()
    assert len(list_images(tmp_path / "all")) == 7  # the folder that is named may be a link


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


def test_a_partition_of_files_is_what_the_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    celeba = make_celeba(tmp_path / "official", monkeypatch, COUNTS, (218, 178))
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
