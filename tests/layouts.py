"""Diffusion models as other codebases lay them out. The plain networks are what converted checkpoints are compared with."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from torch import nn

from common.config import DDPM
from common.diffence.ddpm import build_unet

TINY = DDPM(channels=[8, 8], layers=1, attention=[], groups=4, dropout=0.0)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)


# pytorch-ddpm


class Attention(nn.Module):
    """One head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group_norm = norm(channels)
        self.proj_q, self.proj_k, self.proj_v, self.proj = (conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.group_norm(x)
        q, k, v = (part(h).flatten(2).mT for part in (self.proj_q, self.proj_k, self.proj_v))
        mixed = (q @ k.mT / math.sqrt(x.shape[1])).softmax(-1) @ v
        return x + self.proj(mixed.mT.reshape(x.shape))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, times: int, attends: bool) -> None:
        super().__init__()
        self.block1 = nn.Sequential(norm(inputs), nn.SiLU(), conv(inputs, outputs))
        self.temb_proj = nn.Sequential(nn.SiLU(), nn.Linear(times, outputs))
        self.block2 = nn.Sequential(norm(outputs), nn.SiLU(), nn.Dropout(0.1), conv(outputs, outputs))
        self.shortcut = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attn = Attention(outputs) if attends else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.block2(self.block1(x) + self.temb_proj(time)[:, :, None, None])
        return self.attn(h + self.shortcut(x))


class Resample(nn.Module):
    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.main = conv(channels, channels, stride=1 if up else 2)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.main(x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.up else x)


class TimeEmbedding(nn.Module):
    """Sine and cosine of each frequency stand side by side."""

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        table = torch.zeros(steps, width)
        for i in range(width // 2):
            angle = torch.arange(steps) * 10_000 ** (-2 * i / width)
            table[:, 2 * i], table[:, 2 * i + 1] = angle.sin(), angle.cos()
        self.timembedding = nn.Sequential(
            nn.Embedding.from_pretrained(table), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
        )


class PytorchDDPM(nn.Module):
    """The layout of w86763777/pytorch-ddpm."""

    def __init__(self, steps: int, width: int, multiples: list[int], attention: list[int], layers: int) -> None:
        super().__init__()
        self.time_embedding = TimeEmbedding(steps, width)
        self.head = conv(3, width)
        self.downblocks, self.upblocks = nn.ModuleList(), nn.ModuleList()
        channels, kept = width, [width]
        for level, multiple in enumerate(multiples):
            for _ in range(layers):
                self.downblocks.append(Block(channels, width * multiple, 4 * width, level in attention))
                channels = width * multiple
                kept.append(channels)
            if level < len(multiples) - 1:
                self.downblocks.append(Resample(channels, up=False))
                kept.append(channels)
        self.middleblocks = nn.ModuleList([Block(channels, channels, 4 * width, attends) for attends in (True, False)])
        for level, multiple in reversed(list(enumerate(multiples))):
            for _ in range(layers + 1):
                self.upblocks.append(Block(channels + kept.pop(), width * multiple, 4 * width, level in attention))
                channels = width * multiple
            if level:
                self.upblocks.append(Resample(channels, up=True))
        self.tail = nn.Sequential(norm(width), nn.SiLU(), conv(width, 3))

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        time = self.time_embedding.timembedding(timesteps)
        x = self.head(x)
        kept = [x]
        for block in self.downblocks:
            x = block(x, time)
            kept.append(x)
        for block in self.middleblocks:
            x = block(x, time)
        for block in self.upblocks:
            x = block(torch.cat([x, kept.pop()], 1) if isinstance(block, Block) else x, time)
        return self.tail(x)


# guided-diffusion


class GuidedBlock(nn.Module):
    """A residual block that may halve or double the resolution first; its time embedding scales and shifts."""

    def __init__(self, inputs: int, outputs: int, times: int, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(norm(inputs), nn.SiLU(), conv(inputs, outputs))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(times, 2 * outputs))
        self.out_layers = nn.Sequential(norm(outputs), nn.SiLU(), nn.Dropout(0.0), conv(outputs, outputs))
        self.skip_connection = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def change(self, x: torch.Tensor) -> torch.Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.resample == "up" else x

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.in_layers[2](self.change(self.in_layers[:2](x)))
        scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, 1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        return self.skip_connection(self.change(x)) + h


class GuidedAttention(nn.Module):
    """Heads of 64 channels. Each head has its query, its key and its value in rows of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj_out = (
            norm(channels),
            nn.Conv1d(channels, 3 * channels, 1),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        heads = self.qkv(self.norm(flat)).split(3 * 64, dim=1)
        mixed = []
        for head in heads:
            q, k, v = head.split(64, dim=1)
            mixed.append(v @ (q.mT @ k / 8).softmax(-1).mT)
        return x + self.proj_out(torch.cat(mixed, 1)).view(x.shape)


class GuidedDiffusion(nn.Module):
    """The layout of openai/guided-diffusion with the options of its unconditional ImageNet network."""

    def __init__(self, width: int, multiples: list[int], attention: list[int], layers: int) -> None:
        super().__init__()
        self.width, times = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, times), nn.SiLU(), nn.Linear(times, times))
        channels, kept = width, [width]
        self.input_blocks = nn.ModuleList([nn.ModuleList([conv(3, width)])])
        for level, multiple in enumerate(multiples):
            for _ in range(layers):
                parts: list[nn.Module] = [GuidedBlock(channels, width * multiple, times)]
                channels = width * multiple
                parts += [GuidedAttention(channels)] if level in attention else []
                self.input_blocks.append(nn.ModuleList(parts))
                kept.append(channels)
            if level < len(multiples) - 1:
                self.input_blocks.append(nn.ModuleList([GuidedBlock(channels, channels, times, "down")]))
                kept.append(channels)
        middle = [GuidedBlock(channels, channels, times), GuidedAttention(channels), GuidedBlock(channels, channels, times)]
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(multiples))):
            for block in range(layers + 1):
                parts = [GuidedBlock(channels + kept.pop(), width * multiple, times)]
                channels = width * multiple
                parts += [GuidedAttention(channels)] if level in attention else []
                parts += [GuidedBlock(channels, channels, times, "up")] if level and block == layers else []
                self.output_blocks.append(nn.ModuleList(parts))
        self.out = nn.Sequential(norm(width), nn.SiLU(), conv(width, 6))

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        angles = timesteps[:, None] * torch.tensor([10_000 ** (-i / half) for i in range(half)])
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))
        kept = []
        for parts in self.input_blocks:
            for part in parts.children():
                x = part(x) if isinstance(part, nn.Conv2d) else part(x, time)
            kept.append(x)
        for part in self.middle_block:
            x = part(x, time)
        for parts in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for part in parts.children():
                x = part(x, time)
        return self.out(x)


# diffusers


def save_model(folder: Path, **scheduler: Any) -> UNet2DModel:
    """A folder as diffusers' DDPMPipeline writes it, with a tiny network of random weights."""
    torch.manual_seed(0)
    unet = build_unet(TINY)
    unet.register_to_config(sample_size=8)
    unet.save_pretrained(folder / "unet")
    DDIMScheduler(**scheduler).save_pretrained(folder / "scheduler")
    return unet
