"""ResNet18 for small images (He et al., CVPR 2016), a target model of the paper (Section IV-A, Appendix A-A).

The first layer is a 3x3 convolution of stride 1, and no max-pool follows, so that the first stage has the full resolution.
As in all of `common.models`, no operation is in place, because Opacus hooks the output of every layer and does not allow it to
be changed afterwards.
"""

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut: [B, inputs, H, H] -> [B, outputs, H/stride, H/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.sampled: nn.Module = nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 and inputs < 16:
            # Sampling first gives the same numbers. A strided 1x1 convolution of so few channels writes outside of its memory
            # on CPUs: https://github.com/uxlfoundation/oneDNN/issues/6035
            self.sampled, stride = nn.AvgPool2d(1, stride), 1
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(x) + self.shortcut(self.sampled(x)))


class ResNet18(nn.Module):
    """Four stages of `depth` basic blocks with `width` x 1, 2, 4, 8 channels; 11,173,962 parameters for 10 classes.

    It takes images of any `size` (H, W), because it averages over what is left of them.
    """

    def __init__(self, classes: int, width: int = 64, depth: int = 2, size: tuple[int, int] = (32, 32)) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
        for stage in range(4):
            outputs = width * 2**stage
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, outputs, stride))
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised images [B, 3, H, W] -> logits [B, classes]."""
        return self.head(self.features(x).mean(dim=(2, 3)))
