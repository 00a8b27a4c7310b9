"""VGG16 with BatchNorm (Simonyan & Zisserman, ICLR 2015), a target model of the paper (Section IV-A, Appendix A-A).

Five max-pools reduce 32x32 pixels to one. What is left of a larger image is averaged, so that a single linear layer
replaces the three of the article.
"""

import torch
from torch import nn

from common.errors import UserError

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (channels as a multiple of the width, convolutions)


class VGG16(nn.Module):
    """Five stages of 3x3 conv-BN-ReLU layers, with a max-pool at the end of each; 14,728,266 parameters for 10 classes.

    `width` is the number of channels of the first stage. `depth`, in 1..3, is the largest number of convolutions of a stage.
    `size` is (H, W) of the images. Raises UserError for a larger depth, and for images with a side below 32.
    """

    def __init__(self, classes: int, width: int = 64, depth: int = 3, size: tuple[int, int] = (32, 32)) -> None:
        super().__init__()
        if min(size) < 32:
            raise UserError(f"vgg16 halves an image five times, so its sides must be at least 32, not {size[0]} x {size[1]}.")
        if depth > 3:
            raise UserError(f"vgg16 has at most 3 convolutions per stage; give a depth of 1 to 3, not {depth}.")
        layers: list[nn.Module] = []
        channels = 3
        for multiple, convolutions in STAGES:
            for _ in range(min(convolutions, depth)):
                outputs = width * multiple
                layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised images [B, 3, H, W] -> logits [B, classes]."""
        return self.head(self.features(x).mean(dim=(2, 3)))
