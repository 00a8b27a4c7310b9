"""The paper's four target models by name (Section IV-A, Appendix A-A), and the classifier that adds the normalisation.

To add a model, write a class `Net(classes, width=..., depth=..., size=...)` for standardised images and one line in `MODELS`.
"""

from collections.abc import Sequence

import torch
from torch import nn

from common.errors import UserError, check_name
from common.models.densenet import DenseNet121
from common.models.resnet import ResNet18
from common.models.vgg import VGG16
from common.models.vit import ViT

MODELS: dict[str, type[nn.Module]] = {
    "resnet18": ResNet18,
    "densenet121": DenseNet121,
    "vgg16": VGG16,
    "vit": ViT,
}


class Classifier(nn.Module):
    """A network for images in [0, 1]: it standardises each channel by `mean` and `std`, then calls `net`.

    Attacks and the diffusion model therefore need no statistics of a data set. The checkpoint of the classifier holds them.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] -> logits [B, C], unbounded. The network gets images of the same type."""
        return self.net(((images - self.mean) / self.std).to(images.dtype))


def build_classifier(
    name: str,
    classes: int,
    width: int = 0,
    depth: int = 0,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int] = (32, 32),
) -> Classifier:
    """A classifier for `classes` classes with new random weights. `mean` and `std` are per channel, of images in [0, 1].

    `size` is (H, W) of the images. vit needs sides that are multiples of 8, vgg16 sides of at least 32, densenet121 of at least
    8, and resnet18 takes any.

    `width` and `depth` set the size of the network. 0 stands for the paper's size, which is in brackets:

      resnet18     width: channels of the first stage (64);  depth: blocks per stage (2)
      densenet121  width: growth rate (32);                  depth: layers in each of the four blocks (6, 12, 24, 16)
      vgg16        width: channels of the first stage (64);  depth: convolutions per stage at most, 1 to 3 (3)
      vit          width: embedding, a multiple of 8 (512);  depth: transformer layers (6)

    Raises UserError for an unknown name, an invalid width or depth, and images that the model does not take.
    """
    check_name("model", name, MODELS)
    sizes = {"width": width, "depth": depth}
    for option, value in sizes.items():
        if value < 0:
            raise UserError(f"{option} must be positive, or 0 for the paper's own size, not {value}.")
    net = MODELS[name](classes, size=size, **{option: value for option, value in sizes.items() if value})
    return Classifier(net, mean, std)
