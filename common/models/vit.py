"""Vision transformer (Dosovitskiy et al., ICLR 2021), a target model of the paper (Section IV-A, Appendix A-A).

An image is cut into 8x8 patches, which have 4x4 pixels where it has 32x32. The patches and a class token pass through pre-norm
layers, and the output of the class token is classified. No LayerNorm follows the patch embedding, and the query-key-value
projection has no bias. With these two choices the network has 9,523,722 parameters for 10 classes.
"""

import torch
from torch import nn

from common.errors import UserError

GRID = 8  # patches in a row and in a column
PATCHES = GRID**2
HEADS = 8
DROPOUT = 0.1


class ClassAndPosition(nn.Module):
    """Prepend the class token and add the learned position embedding: [B, PATCHES, dim] -> [B, PATCHES + 1, dim].

    The two parameters are in a module of their own because of Opacus. It differentiates a module that owns parameters directly
    as a whole, with all of its children, by vmap. If the ViT owned them, that would be the whole ViT, and vmap refuses its
    dropout.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, PATCHES + 1, dim))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        token = self.token.expand(len(patches), -1, -1)
        return torch.cat([token, patches], dim=1) + self.position


class Attention(nn.Module):
    """Self-attention with HEADS heads of dim / HEADS dimensions each: [B, N, dim] -> [B, N, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # [B, N, 3 dim] -> three of [B, HEADS, N, dim/HEADS]
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        # Not PyTorch's fused attention, because its backward pass on CUDA is by default not deterministic. With 65 tokens this
        # costs little.
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and a two-layer MLP, each with a LayerNorm before it and a shortcut around it: [B, N, dim] -> [B, N, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(dim), Attention(dim), nn.Dropout(DROPOUT))
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(dim, dim),
            nn.Dropout(DROPOUT),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(x)
        return x + self.mlp(x)


class ViT(nn.Module):
    """Vision transformer; 9,523,722 parameters for 10 classes.

    `width` is the dimension of the embedding, `depth` the number of layers, `size` (H, W) of the images. Raises UserError
    unless `width` is a multiple of 8, the number of heads, and H and W are multiples of 8, the number of patches in a row.
    """

    def __init__(self, classes: int, width: int = 512, depth: int = 6, size: tuple[int, int] = (32, 32)) -> None:
        super().__init__()
        if width % HEADS:
            raise UserError(f"the width of vit is shared by {HEADS} heads; give a multiple of {HEADS}, not {width}.")
        if size[0] % GRID or size[1] % GRID:
            raise UserError(
                f"vit cuts an image into {GRID} x {GRID} patches, so its sides must be multiples of {GRID}, not {size[0]} x "
                f"{size[1]}: set data.image_size."
            )
        patch = size[0] // GRID, size[1] // GRID
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.tokens = ClassAndPosition(width)
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised images [B, 3, H, W] -> logits [B, classes]."""
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.layers(self.dropout(self.tokens(patches)))
        return self.head(tokens[:, 0])
