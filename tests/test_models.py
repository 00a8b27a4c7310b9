"""The four models: sizes as published, standardised input, and per-sample gradients under Opacus."""

import pytest
import torch
from opacus.grad_sample import wrap_model
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn import functional as F

from common.errors import UserError
from common.models import MODELS, Classifier, build_classifier
from common.models.resnet import BasicBlock, ResNet18

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SMALL = {"resnet18": (8, 1), "densenet121": (4, 2), "vgg16": (8, 1), "vit": (16, 2)}  # (width, depth)


def small(name: str, classes: int = 7) -> Classifier:
    torch.manual_seed(0)
    width, depth = SMALL[name]
    return build_classifier(name, classes, width, depth, mean=MEAN, std=STD)


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_220_132),
        ("densenet121", 10, 6_956_298),
        ("vgg16", 10, 14_728_266),
        ("vit", 10, 9_523_722),
    ],
)
def test_the_papers_own_size(name: str, classes: int, expected: int) -> None:
    with torch.device("meta"):  # shapes only: nothing is allocated or initialised
        net = MODELS[name](classes)
        logits = net(torch.empty(2, 3, 32, 32))
    assert logits.shape == (2, classes)
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize("name", MODELS)
def test_size_options(name: str) -> None:
    width, depth = SMALL[name]

    def count(width: int, depth: int) -> int:
        return sum(p.numel() for p in build_classifier(name, 7, width, depth, mean=MEAN, std=STD).parameters())

    assert count(width, depth) < count(2 * width, depth)
    assert count(width, depth) < count(width, depth + 1)


@pytest.mark.parametrize("classes", [7, 100])
@pytest.mark.parametrize("name", MODELS)
def test_output_shape(name: str, classes: int) -> None:
    logits = small(name, classes)(images(3))
    assert logits.shape == (3, classes)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "size"), [*((name, (64, 48)) for name in MODELS), ("resnet18", (5, 3)), ("vgg16", (218, 178))]
)
def test_images_of_other_sizes(name: str, size: tuple[int, int]) -> None:
    """The weights have the shapes of those for 32 x 32, but for the patches of the ViT, of which there are always 64."""
    width, depth = 2 * SMALL[name][0], SMALL[name][1]
    model = build_classifier(name, 7, width, depth, mean=MEAN, std=STD, size=size).eval()
    small_images = build_classifier(name, 7, width, depth, mean=MEAN, std=STD)
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2))
    assert model(x).shape == (2, 7)
    changed = x.clone()
    changed[0, :, -2:, -2:] = 1 - changed[0, :, -2:, -2:]
    assert not torch.equal(model(x)[0], model(changed)[0])  # the last corner counts too
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (model, small_images)]
    assert {key for key in shapes[0] if shapes[0][key] != shapes[1][key]} == ({"net.embed.weight"} if name == "vit" else set())


@pytest.mark.parametrize(
    ("name", "size"),
    [("vgg16", (31, 64)), ("densenet121", (64, 7)), ("vit", (218, 178)), ("vit", (64, 60))],
)
def test_a_size_that_a_model_does_not_take_is_refused(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"{name} .*{size[0]} x {size[1]}") as caught:
        build_classifier(name, 7, *SMALL[name], mean=MEAN, std=STD, size=size)
    assert "\n" not in str(caught.value)


def test_standardises_each_channel() -> None:
    classifier = Classifier(nn.Identity(), MEAN, STD)
    x = images(2)
    expected = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    torch.testing.assert_close(classifier(x), expected)
    assert set(classifier.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_in_place(name: str) -> None:
    assert not any(getattr(module, "inplace", False) for module in small(name).modules())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name: str) -> None:
    # In eval mode: in train mode BatchNorm cancels the bias of the convolution before it.
    model = small(name).eval()
    F.cross_entropy(model(images(4)), torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", MODELS)
def test_eval_does_not_depend_on_the_batch(name: str) -> None:
    model = small(name)
    model(images(8))  # moves BatchNorm's running statistics off their initial values
    model.eval()
    x = images(4)
    with torch.no_grad():
        alone = torch.cat([model(x[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(model(x), alone, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # true of any first layer: images need no gradient
@pytest.mark.parametrize(("name", "mode"), [*((name, "hooks") for name in MODELS), ("vit", "functorch")])
def test_per_sample_gradients_under_opacus(name: str, mode: str) -> None:
    model = ModuleValidator.fix(small(name)).double().train()  # Opacus collects gradients in train mode only
    assert ModuleValidator.validate(model) == []
    x, y = images(3).double(), torch.tensor([0, 3, 6])

    torch.manual_seed(2)  # the same dropout masks in both forward passes
    losses = F.cross_entropy(model(x), y, reduction="none")
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]

    wrapped = wrap_model(model, grad_sample_mode=mode)
    torch.manual_seed(2)
    F.cross_entropy(wrapped(x), y).backward()
    for key, parameter, *one_by_one in zip(names, parameters, *expected, strict=True):
        torch.testing.assert_close(parameter.grad_sample, torch.stack(one_by_one), rtol=1e-7, atol=1e-10, msg=key)


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="Did you mean 'resnet18'"):
        build_classifier("resnet", 10, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    ("name", "width", "depth"), [("resnet18", -1, 0), ("resnet18", 0, -1), ("vgg16", 0, 4), ("vit", 12, 0)]
)
def test_an_impossible_size_is_refused(name: str, width: int, depth: int) -> None:
    with pytest.raises(UserError):
        build_classifier(name, 10, width, depth, mean=MEAN, std=STD)


@pytest.mark.parametrize("channels", [4, 15, 16])
def test_a_narrow_shortcut_is_the_strided_convolution(channels: int) -> None:
    """In float64, which oneDNN does not compute."""
    block = BasicBlock(channels, 2 * channels, 2).double()
    convolution, norm = block.shortcut.children()
    images = torch.rand(2, channels, 9, 10, dtype=torch.float64)
    expected = norm(F.conv2d(images, convolution.get_parameter("weight"), stride=2))
    torch.testing.assert_close(block.shortcut(block.sampled(images)), expected)


def test_a_narrow_network_trains_in_either_format() -> None:
    """A strided 1x1 convolution of 4 channels ends the process on some CPUs (oneDNN's issue 6035)."""
    for memory_format in (torch.channels_last, torch.contiguous_format):
        model = ResNet18(10, width=4, depth=1, size=(64, 64)).to(memory_format=memory_format)
        model(torch.rand(4, 3, 64, 64).contiguous(memory_format=memory_format)).sum().backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
