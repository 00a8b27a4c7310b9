"""Any classifier: torchvision's and timm's, any size, folders and loaders; saved and loaded; shared by threads; served."""

import copy
import csv
import json
import secrets
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Call, refusal
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.transforms import Normalize
from torchvision.transforms import v2 as transforms_v2

from common.config import DDPM
from common.data.folder import list_images, read_image
from common.diffence.classifiers import load_classifier, normalised
from common.diffence.ddpm import build_unet
from common.diffence.protect import ProtectedClassifier
from common.diffence.select import Selector, fit_selector
from common.diffence.sources import edm_model
from common.errors import UserError
from common.pair import Pair
from common.protect import protect
from common.serve import __main__ as serve
from common.serve import predictions

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # TorchScript announces its end

TINY = DDPM(channels=[8, 8], layers=1, attention=[], groups=4, dropout=0.0)
SIZE = (10, 12)


def images(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Noise on a colour of the image's own, in steps of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    mixed = (torch.rand(count, 3, 1, 1, generator=generator) + torch.rand(count, 3, *size, generator=generator)) / 2
    return (mixed * 255).round() / 255


def unet() -> Any:
    torch.manual_seed(0)
    return build_unet(TINY)


def classifier() -> nn.Module:
    """A linear one with three classes, whose logits differ from image to image."""
    torch.manual_seed(1)
    linear = nn.Linear(3 * SIZE[0] * SIZE[1], 3)
    with torch.no_grad():
        linear.weight.mul_(6)
    return nn.Sequential(nn.Flatten(), linear).eval()


def protected(**options: Any) -> ProtectedClassifier:
    """Scenario 1, fitted on a few images."""
    given: dict[str, Any] = {
        "members": images(12, 1),
        "non_members": images(12, 2),
        "scenario": "1",
        "n": 4,
        "device": "cpu",
    } | options
    return protect(classifier(), unet(), **given)


def write_images(folder: Path, x: torch.Tensor, name: str = "{:03d}.png") -> Path:
    """The images as PNG files, which keep them exactly."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(x):
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / name.format(i))
    return folder


# Fitting


@pytest.mark.parametrize("scenario", ["1", "2"])
def test_the_interval_is_that_of_the_eager_selector(scenario: str) -> None:
    made = protected(scenario=scenario)
    fit = Pair(images(12, 1), images(12, 2)).map(lambda x, first: made.all_logits(x, 2 * torch.arange(12) + first), Pair(0, 1))
    expected = fit_selector(scenario, fit)
    assert (made.selector.scenario, made.selector.low, made.selector.high) == (scenario, expected.low, expected.high)
    assert np.isfinite(expected.low)
    assert expected.high > expected.low


def test_folders_loaders_and_tensors_are_one(tmp_path: Path) -> None:
    members, others = images(12, 1), images(12, 2)
    loader = DataLoader(TensorDataset(members, torch.zeros(12)), batch_size=5)
    folder = write_images(tmp_path / "others", others)
    (folder / "notes.txt").write_text("no image, and not meant to be one")
    assert protected(members=loader, non_members=folder).selector == protected().selector
    assert protected(members=loader, non_members=str(folder)).size == SIZE


def test_files_that_are_no_images_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path, images(12, 1))
    (folder / "zzz.png").write_bytes(b"no image")
    assert protected(members=folder).selector == protected().selector
    assert f"left out: {folder / 'zzz.png'} is damaged, or is no image." in capsys.readouterr().err


def test_files_of_another_size_are_resized_and_cropped(tmp_path: Path) -> None:
    """A wide picture loses its sides, and keeps its proportions."""
    wide = torch.zeros(3, 20, 60)
    wide[:, :, 20:40] = 1.0
    (path,) = list_images(write_images(tmp_path, wide[None]))
    middle = read_image(path, (10, 10))
    assert middle.shape == (3, 10, 10)
    assert (middle > 0.9).float().mean() >= 0.8
    assert read_image(path).shape == (3, 20, 60)
    assert protect(classifier(), unet(), tmp_path, size=SIZE, device="cpu").size == SIZE


def test_refusals_of_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scenario 1 needs non-members: pass non_members, or take scenario 3"):
        protected(non_members=None)
    with pytest.raises(UserError, match="there are no members"):
        protected(members=[])
    with pytest.raises(UserError, match="unknown scenario '4'"):
        protected(scenario="4")
    with pytest.raises(UserError, match="is no folder"):
        protected(members=tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no image files"):
        protected(members=tmp_path)
    write_images(tmp_path, images(1))
    write_images(tmp_path, images(1, size=(4, 4)), "other{}.png")
    with pytest.raises(UserError, match=r"is 4 x 4, others are 10 x 12: name the size"):
        protected(members=tmp_path)


# Classifiers of others


def test_a_torchvision_classifier_with_its_weights_transform() -> None:
    """Its mean and std are used, and images have the size that it crops to."""
    transform = ResNet18_Weights.DEFAULT.transforms()
    torch.manual_seed(0)
    bare = resnet18(num_classes=4)
    made = protect(bare, unet(), transform=transform, n=2, device="cpu")
    assert made.size == (224, 224)
    x = images(2, size=(40, 56))
    free = ProtectedClassifier(made.classifier, made.reconstruct, Selector("3"), 2)
    expected = bare.eval()(Normalize(transform.mean, transform.std)(x))
    assert free(x).shape == (2, 4)
    torch.testing.assert_close(made.classifier(x), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(free(x).argmax(1), expected.argmax(1))


def test_a_timm_classifier() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    bare = timm.create_model("resnet10t", num_classes=4)
    config = bare.default_cfg
    x = images(3, size=(40, 56))
    made = protect(bare, unet(), transform=Normalize(config["mean"], config["std"]), n=2, device="cpu")
    assert not bare.training
    assert torch.equal(made(x).argmax(1), bare(Normalize(config["mean"], config["std"])(x)).argmax(1))


def test_transforms() -> None:
    x, net = images(2), classifier()
    for transform in (Normalize((0.5,) * 3, (0.2,) * 3), transforms_v2.Normalize([0.5] * 3, [0.2] * 3)):
        torch.testing.assert_close(normalised(net, transform)(x), net((x - 0.5) / 0.2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(normalised(net, nn.Hardtanh(0.2, 0.4))(x), net(x.clamp(0.2, 0.4)))
    assert normalised(net) is net
    with pytest.raises(UserError, match="must be torchvision's Normalize"):
        normalised(net, lambda x: x)


class Tuple(nn.Module):
    def forward(self, images: torch.Tensor) -> Any:
        return (images.mean((2, 3)),)


@pytest.mark.parametrize(("bad", "returned"), [(Tuple(), "a tuple"), (nn.Identity(), r"the shape \[2, 3, 10, 12\]")])
def test_a_classifier_must_return_logits(bad: nn.Module, returned: str) -> None:
    with pytest.raises(UserError, match=rf"must return logits of the shape \[B, C\], not {returned}"):
        protect(bad, unet(), n=1, device="cpu")(images(2))


def test_classifiers_from_files_and_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, net = images(3), classifier()
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)), tmp_path / "a.pt2")
    torch.jit.save(torch.jit.trace(net, x), tmp_path / "b.pt")
    (tmp_path / "my_net.py").write_text("from test_plug import classifier\n\ndef load():\n    return classifier()\n")
    monkeypatch.syspath_prepend(tmp_path)
    for source in (tmp_path / "a.pt2", tmp_path / "b.pt", "my_net:load"):
        torch.testing.assert_close(load_classifier(source)(x[:2]), net(x[:2]))
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="weights alone do not tell the network"):
        load_classifier(tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"'nowhere.pt' is no file here, and no module:function"):
        load_classifier("nowhere.pt")


# Saved and loaded


@pytest.mark.parametrize("key", [None, b"0123456789abcdef"])
@pytest.mark.parametrize("kind", ["module", "normalised", "TorchScript"])
def test_answers_are_the_same_after_a_restart(tmp_path: Path, key: bytes | None, kind: str) -> None:
    net = classifier()
    source = torch.jit.trace(net, images(1)) if kind == "TorchScript" else net
    transform = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)) if kind == "normalised" else None
    made = protect(source, unet(), images(12, 1), images(12, 2), scenario="1", n=4, key=key, transform=transform, device="cpu")
    x = images(7, 3)
    made.save_pretrained(tmp_path)
    loaded = ProtectedClassifier.from_pretrained(tmp_path, key, device="cpu")
    answers = made(x)
    assert torch.equal(loaded(x), answers)
    assert torch.allclose(loaded(x[2:5]), answers[2:5], atol=1e-4) == (key is not None)  # else they are new queries
    assert loaded.selector == made.selector
    assert not torch.equal(answers, made.classifier(x))
    loaded.save_pretrained(tmp_path / "again")
    again = ProtectedClassifier.from_pretrained(tmp_path / "again", key, device="cpu")
    assert torch.equal(again(x), answers)


def test_the_key_is_in_no_file_and_no_text(tmp_path: Path) -> None:
    key = secrets.token_hex(16).encode()
    made = protected(key=key)
    made.save_pretrained(tmp_path)
    torch.save(made.state_dict(), tmp_path / "state.pt")
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or (key not in path.read_bytes() and key.hex().encode() not in path.read_bytes()), path
    assert key.decode() not in repr(made)
    with pytest.raises(UserError, match="was saved with a key for stable answers: pass the same one"):
        ProtectedClassifier.from_pretrained(tmp_path, device="cpu")
    protected().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="was saved without a key") as caught:
        ProtectedClassifier.from_pretrained(tmp_path, key, device="cpu")
    assert key.decode() not in str(caught.value)


class Branching(nn.Module):
    """torch.export cannot follow it, because its way depends on the pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * (2 if images.sum() > 1 else 3)


def test_what_cannot_be_saved_is_passed_again(tmp_path: Path) -> None:
    def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return 0.9 * x

    made = protect(Branching(), edm_model(denoiser, 8), size=SIZE, n=2, device="cpu")
    with pytest.raises(UserError, match=r"torch.export cannot follow the classifier .*with_classifier=False") as caught:
        made.save_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    made.save_pretrained(tmp_path, with_classifier=False)
    with pytest.raises(UserError, match="without its classifier"):
        ProtectedClassifier.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(UserError, match="without its diffusion model"):
        ProtectedClassifier.from_pretrained(tmp_path, classifier=Branching(), device="cpu")
    loaded = ProtectedClassifier.from_pretrained(tmp_path, classifier=Branching(), unet=edm_model(denoiser, 8), device="cpu")
    x = images(3)
    assert torch.equal(loaded(x), made(x))


def test_refusals_of_folders_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no protected classifier: make one with"):
        ProtectedClassifier.from_pretrained(tmp_path)
    made = protect(classifier(), unet(), n=1, device="cpu")
    with pytest.raises(UserError, match=r"images of one size: name it with ProtectedClassifier\(..., size"):
        made.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="images must be 10 x 12, not 8 x 8"):
        protected()(images(1, size=(8, 8)))
    by_hand = ProtectedClassifier(classifier(), lambda x, queries, numbers: x, Selector("3"), size=SIZE)
    with pytest.raises(UserError, match="only a ProtectedClassifier around a DiffusionReconstructor"):
        by_hand.save_pretrained(tmp_path)


# Threads


def test_threads_share_one_numbering() -> None:
    """Every query has a number of its own, none is left out, and each answer is that of its number."""
    numbers: list[int] = []
    lock = threading.Lock()

    class Slow(nn.Module):
        """A reconstructor that notes the queries."""

        def forward(self, x: torch.Tensor, queries: torch.Tensor, numbers_: torch.Tensor) -> torch.Tensor:
            with lock:
                numbers.extend(queries.tolist())
            return x

    made = ProtectedClassifier(classifier(), Slow(), Selector("3"), n=1)
    x = images(3)

    def ask() -> None:
        for count in (1, 2, 3) * 40:
            made(x[:count])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(8 * 40 * 6))
    assert made.served == len(numbers)
    assert copy.deepcopy(made).served == made.served


# Serving


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    made = protected()
    made.classes = ["ant", "bee", "cat"]
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine images in two folders, and two files that are none."""
    folder = tmp_path / "photos"
    write_images(folder / "a", images(5, 3))
    write_images(folder / "b", images(4, 4))
    (folder / "a" / "002b.png").write_bytes(b"no image")
    (folder / "b" / "zz.jpg").write_bytes((folder / "b" / "000.png").read_bytes()[:60])
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_serve_writes_a_line_for_each_file(saved: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    answer = call(serve.main, saved, saved, "--images", photos, "--output", tmp_path / "p.csv", "--logits", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert answer.out.endswith("p.csv: 9 predictions, 2 files that are no images\n")
    lines = read_csv(tmp_path / "p.csv")
    files = list_images(photos)
    assert [line["image"] for line in lines] == [path.relative_to(photos).as_posix() for path in files]
    x = torch.cat([images(5, 3), images(4, 4)])
    queries = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9])  # of the files that are images
    expected = ProtectedClassifier.from_pretrained(saved, device="cpu")(x, queries)
    good = [line for line in lines if not line["error"]]
    logits = torch.tensor([[float(value) for value in line["logits"].split()] for line in good])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert [line["label"] for line in good] == [str(label) for label in expected.argmax(1).tolist()]
    assert [line["class"] for line in good] == [["ant", "bee", "cat"][int(line["label"])] for line in good]
    confidences = expected.softmax(1).amax(1).tolist()
    assert [float(line["confidence"]) for line in good] == pytest.approx(confidences, abs=1e-4)
    assert [line["error"] for line in lines if line["error"]] == [
        f"{photos / 'a' / '002b.png'} is damaged, or is no image.", f"{photos / 'b' / 'zz.jpg'} is damaged, or is no image."
    ]  # fmt: skip
    assert answer.err.count("is no image.\n") == 2


def test_a_killed_run_continues(saved: Path, photos: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (saved, "--images", photos, "--batch", 3, "--device", "cpu", "--output")
    assert call(serve.main, saved, *arguments, tmp_path / "whole.csv").code == 0
    predict_files, calls = predictions.predict_files, 0

    def killed(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return predict_files(*given)

    with monkeypatch.context() as patch:
        patch.setattr(predictions, "predict_files", killed)
        assert call(serve.main, saved, *arguments, tmp_path / "cut.csv").code == 130
    with open(tmp_path / "cut.csv", "a") as file:
        file.write("b/000.png,1,b")  # as a kill within a line leaves it
    begun: list[int] = []

    def counted(protected: Any, files: Any, names: Any, positions: range, *rest: Any) -> Any:
        begun.append(positions.start)
        return predict_files(protected, files, names, positions, *rest)

    monkeypatch.setattr(predictions, "predict_files", counted)
    for _ in range(2):  # the second time nothing is left to do
        answer = call(serve.main, saved, *arguments, tmp_path / "cut.csv")
        assert answer.out.endswith("9 predictions, 2 files that are no images\n")
    assert begun == [6, 9]
    assert (tmp_path / "cut.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_serve_refuses_another_model_or_other_images(saved: Path, photos: Path, tmp_path: Path, call: Call) -> None:
    output = tmp_path / "p.csv"
    assert call(serve.main, saved, saved, "--images", photos, "--output", output, "--device", "cpu").code == 0
    answer = call(serve.main, saved, saved, "--images", photos / "a", "--output", output)
    assert "was made under other settings" in refusal(answer)
    (photos / "a" / "000.png").rename(photos / "a" / "new.png")
    answer = call(serve.main, saved, saved, "--images", photos, "--output", output)
    assert "has lines of other images" in refusal(answer)
    answer = call(serve.main, saved, tmp_path, "--images", photos, "--output", output)
    assert "holds no protected classifier" in refusal(answer)


def test_serve_with_a_key_from_a_file(photos: Path, tmp_path: Path, call: Call) -> None:
    protected(key=b"secret key").save_pretrained(tmp_path / "keyed")
    (tmp_path / "key").write_bytes(b"secret key")
    arguments = (tmp_path / "keyed", "--images", photos / "b", "--output", tmp_path / "p.csv", "--device", "cpu", "--logits")
    assert "was saved with a key" in refusal(call(serve.main, photos, *arguments))
    assert "cannot be read" in refusal(call(serve.main, photos, *arguments, "--key-file", tmp_path / "absent"))
    answer = call(serve.main, photos, *arguments, "--key-file", tmp_path / "key")
    assert answer.code == 0, answer.err
    expected = protected(key=b"secret key")(images(4, 4))
    lines = [line for line in read_csv(tmp_path / "p.csv") if not line["error"]]
    found = torch.tensor([[float(value) for value in line["logits"].split()] for line in lines])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    written = (tmp_path / "p.csv").read_text() + (tmp_path / "p.csv.json").read_text() + answer.out + answer.err
    assert "secret" not in written
    assert json.loads((tmp_path / "keyed" / "protected.json").read_text())["settings"]["stable"] is True
