"""DenseNet121 for small images (Huang et al., CVPR 2017), a target model of the paper (Section IV-A, Appendix A-A).

It is a DenseNet-BC: bottleneck layers, and compression by 0.5 between blocks. Because the images are small, its first layer is
a 3x3 convolution of stride 1, and no max-pool follows.
"""

import torch
from torch import nn

from common.errors import UserError


class DenseLayer(nn.Module):
    """BN-ReLU-1x1 conv-BN-ReLU-3x3 conv, concatenated to its input: [B, inputs, H, H] -> [B, inputs + growth, H, H]."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        bottleneck = 4 * growth
        self.new = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, bottleneck, 1, bias=False),
            nn.BatchNorm2d(bottleneck),
            nn.ReLU(),
            nn.Conv2d(bottleneck, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.new(x)], dim=1)


def transition(inputs: int) -> nn.Sequential:
    """The layers between two blocks: [B, inputs, H, H] -> [B, inputs/2, H/2, H/2]. As in the article, they have no ReLU."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.Conv2d(inputs, inputs // 2, 1, bias=False),
        nn.AvgPool2d(2),
    )


class DenseNet121(nn.Module):
    """Four dense blocks; 6,956,298 parameters for 10 classes.

    `width` is the growth rate. `depth` is the number of layers of each block; a single number stands for all four blocks.
    `size` is (H, W) of the images. Raises UserError for images with a side below 8.
    """

    def __init__(
        self,
        classes: int,
        width: int = 32,
        depth: int | tuple[int, int, int, int] = (6, 12, 24, 16),
        size: tuple[int, int] = (32, 32),
    ) -> None:
        super().__init__()
        if min(size) < 8:
            raise UserError(
                f"densenet121 halves an image three times, so its sides must be at least 8, not {size[0]} x {size[1]}."
            )
        blocks = (depth,) * 4 if isinstance(depth, int) else depth
        channels = 2 * width
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for index, length in enumerate(blocks):
            if index > 0:
                layers.append(transition(channels))
                channels //= 2
            for _ in range(length):
                layers.append(DenseLayer(channels, growth=width))
                channels += width
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised images [B, 3, H, W] -> logits [B, classes]."""
        return self.head(self.features(x).mean(dim=(2, 3)))
