"""Any classifier behind Diffence: torchvision's and timm's, any size, folders and loaders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plugged import SIZE, classifier, images, protected, unet, write_images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.transforms import Normalize
from torchvision.transforms import v2 as transforms_v2

from common.data.folder import list_images, read_image
from common.diffence.classifiers import load_classifier, normalised
from common.diffence.protect import ProtectedClassifier
from common.diffence.select import Selector, fit_selector
from common.errors import UserError
from common.pair import Pair
from common.protect import answers, protect

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # TorchScript announces its end

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
    for batch in (256, 4):  # in batches of 4, the last one has no image
        assert protected(members=folder, batch=batch).selector == protected(batch=batch).selector
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
    assert protect(classifier(), unet(), size=list(SIZE), device="cpu").size == SIZE  # type: ignore[arg-type]


def test_refusals_of_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scenario 1 needs non-members: pass non_members, or take scenario 3"):
        protected(non_members=None)
    with pytest.raises(UserError, match="there are no members"):
        protected(members=[])
    with pytest.raises(UserError, match="unknown scenario '4'"):
        protected(scenario="4")
    with pytest.raises(UserError, match=r"unknown scenario 1\. Did you mean '1'"):
        protected(scenario=1)
    with pytest.raises(UserError, match=r"images come as a folder, a tensor .* not as a ndarray"):
        protected(members=images(2).numpy())
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(SIZE), classifier())
    with pytest.raises(UserError, match="images must be 40 x 56, not 10 x 12"):
        protect(pooled, unet(), images(4, 1), images(4, 2), scenario="1", size=(40, 56), seed=0, device="cpu")
    for members in (images(4, 1), write_images(tmp_path / "some", images(4, 1))):
        with pytest.raises(UserError, match="batch must be at least 1, not 0"):
            protected(members=members, batch=0)
    with pytest.raises(UserError, match="is no folder"):
        protected(members=tmp_path / "nowhere")
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image files"):
        protected(members=empty)
    write_images(empty, images(1))
    write_images(empty, images(1, size=(4, 4)), "other{}.png")
    with pytest.raises(UserError, match=r"is 4 x 4, others are 10 x 12: name the size"):
        protected(members=empty)


def test_the_user_s_generator_stays_as_it_is() -> None:
    net, model = classifier(), unet()
    before = torch.get_rng_state()
    protect(net, model, images(4, 1), scenario="2", n=2, seed=0, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


# Classifiers of others


def test_a_torchvision_classifier_with_its_weights_transform() -> None:
    """Its mean and std are used, and images have the size that it crops to."""
    transform = ResNet18_Weights.DEFAULT.transforms()
    torch.manual_seed(0)
    bare = resnet18(num_classes=4)
    made = protect(bare, unet(), transform=transform, n=2, seed=0, device="cpu")
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
    made = protect(bare, unet(), transform=Normalize(config["mean"], config["std"]), n=2, seed=0, device="cpu")
    assert not bare.training
    assert torch.equal(made(x).argmax(1), bare(Normalize(config["mean"], config["std"])(x)).argmax(1))


def test_a_call_puts_the_classifier_back_into_evaluation_mode() -> None:
    """Also where one layer was switched to training mode by somebody who has the classifier."""
    net = nn.Sequential(nn.Dropout(0.5), classifier())
    made = protect(net, unet(), size=SIZE, n=2, seed=0, device="cpu")
    x, queries = images(4), torch.arange(4)
    expected = made(x, queries)
    for switched in (net, net[0]):
        switched.train()
        assert torch.equal(made(x, queries), expected)
        assert not net[0].training
    net.train()
    np.testing.assert_array_equal(made.all_logits(x, queries).original, net(x).detach().numpy())


def test_transforms() -> None:
    x, net = images(2), classifier()
    for transform in (Normalize((0.5,) * 3, (0.2,) * 3), transforms_v2.Normalize([0.5] * 3, [0.2] * 3)):
        torch.testing.assert_close(normalised(net, transform)(x), net((x - 0.5) / 0.2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(normalised(net, nn.Hardtanh(0.2, 0.4))(x), net(x.clamp(0.2, 0.4)))
    assert normalised(net) is net
    with pytest.raises(UserError, match="must be torchvision's Normalize"):
        normalised(net, lambda x: x)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_classifier_of_another_type_gets_images_of_its_type(tmp_path: Path, kind: torch.dtype) -> None:
    """And gives float32 logits, also behind a normalisation, and after it was saved."""
    x, net = images(3), classifier().to(kind)
    transform = Normalize((0.5,) * 3, (0.2,) * 3)
    made = protect(net, unet(), size=SIZE, transform=transform, n=2, seed=0, device="cpu")
    expected = net(transform(x.to(kind).float()).to(kind)).float()
    torch.testing.assert_close(made.logits(x), expected)
    answers = made(x)
    assert answers.dtype == torch.float32
    assert torch.equal(answers.argmax(1), expected.argmax(1))
    made.save_pretrained(tmp_path)
    assert torch.equal(ProtectedClassifier.from_pretrained(tmp_path, device="cpu")(x), answers)


class Tuple(nn.Module):
    def forward(self, images: torch.Tensor) -> Any:
        return (images.mean((2, 3)),)


@pytest.mark.parametrize(("bad", "returned"), [(Tuple(), "a tuple"), (nn.Identity(), r"the shape \[2, 3, 10, 12\]")])
def test_a_classifier_must_return_logits(bad: nn.Module, returned: str) -> None:
    with pytest.raises(UserError, match=rf"must return logits of the shape \[B, C\], not {returned}"):
        protect(bad, unet(), n=1, seed=0, device="cpu")(images(2))


def test_a_binary_classifier_must_return_two_logits() -> None:
    """The label of one logit would always be 0, so that candidates of the other label would be released."""
    binary = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], 1))
    with pytest.raises(UserError, match=r"at least 2 logits for each image, not 1: .* return \(0, z\)"):
        protect(binary, unet(), size=SIZE, n=1, seed=0, device="cpu")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_classifier_that_returns_probabilities_is_refused(kind: torch.dtype) -> None:
    """At once where the size is known, else at the first call."""
    net = nn.Sequential(classifier(), nn.Softmax(1)).to(kind)
    with pytest.raises(UserError, match="returns probabilities, which sum to 1: leave out its softmax"):
        protect(net, unet(), size=SIZE, n=1, device="cpu")
    made = protect(net, unet(), n=1, device="cpu")
    with pytest.raises(UserError, match="returns probabilities, which sum to 1: leave out its softmax"):
        made(images(2))


class Clipped(nn.Module):
    """Its logits sum to 1 for black images, and to 3 for others."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([1.0, 0.0, 0.0]) + (images.amax((1, 2, 3)) > 0)[:, None]


def test_logits_that_sum_to_1_by_chance_are_served() -> None:
    made = protect(Clipped(), unet(), n=1, device="cpu")
    x = images(2)
    x[0] = 0
    assert made(x).shape == (2, 3)
    assert made(x[:1]).shape == (1, 3)


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
    for name in (":load", ".my_net:load"):
        with pytest.raises(UserError, match=f"'{name}' is no module:function: write it as in"):
            load_classifier(name)


def test_fingerprints_tell_weights_apart() -> None:
    """Of any type, a number without dimensions included."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).bfloat16()
    before = answers.fingerprint(net)
    assert answers.fingerprint(net) == before
    dict(net.named_buffers())["1.num_batches_tracked"].add_(1)
    assert answers.fingerprint(net) != before
