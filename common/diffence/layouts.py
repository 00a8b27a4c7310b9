"""Checkpoints of other codebases, renamed for diffusers' UNet2DModel.

A layout names the tensors of a network in its own way. The configuration of the network is read off the names and shapes, so
that narrow and shallow variants load too. What neither tells is a parameter, whose default is that of the published networks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from common.diffence.reconstruct import DiffusionModel
from common.errors import UserError

State = dict[str, torch.Tensor]

COMMON = {"freq_shift": 0, "norm_eps": 1e-5, "norm_num_groups": 32, "dropout": 0.0}
HEAD_WIDTH = 64  # channels of an attention head in guided-diffusion's published networks; no shape tells it
# H = W of guided-diffusion's published networks, by the channels of their levels over those of the first one.
GUIDED_SIZES = {(1, 1, 2, 2, 4, 4): 256, (1, 1, 2, 3, 4): 128, (1, 2, 3, 4): 64}


@dataclass(frozen=True)
class Layout:
    """How to recognise the tensors of a codebase, and how to make a model of them.

    marker: the name of a tensor that only this layout has.
    convert: of the tensors and of the size H = W of the images, where the user names one.
    """

    marker: str
    convert: Callable[[State, int | None], DiffusionModel]


def pytorch_ddpm(state: State, size: int | None) -> DiffusionModel:
    """The layout of w86763777/pytorch-ddpm, in which the authors of Diffence published their diffusion models (`half.pt`).

    Blocks of one level follow each other in `downblocks` and `upblocks`, and a block called `main` changes the resolution. The
    time embedding interleaves sines and cosines, where that of UNet2DModel has all sines before all cosines. The columns of
    the layer that reads it are therefore reordered.
    """
    down, up = (_levels(state, name, lambda prefix: f"{prefix}.main.weight" in state) for name in ("downblocks", "upblocks"))
    resnet = {
        "block1.0": "norm1",
        "block1.2": "conv1",
        "temb_proj.1": "time_emb_proj",
        "block2.0": "norm2",
        "block2.3": "conv2",
        "shortcut": "conv_shortcut",
    }
    attention = {"group_norm": "group_norm", "proj_q": "to_q", "proj_k": "to_k", "proj_v": "to_v", "proj": "to_out.0"}
    names = {
        "time_embedding.timembedding.1": "time_embedding.linear_1",
        "time_embedding.timembedding.3": "time_embedding.linear_2",
        "head": "conv_in",
        "tail.0": "conv_norm_out",
        "tail.2": "conv_out",
    }
    for old, new, number in _places(down, up, "middleblocks.0", "middleblocks.1"):
        names |= {f"{old}.{part}": f"{new}.resnets.{number}.{name}" for part, name in resnet.items()}
        names |= {f"{old}.attn.{part}": f"{new}.attentions.{number}.{name}" for part, name in attention.items()}
    for kind, blocks in (("down", down), ("up", up)):
        resampling = [block for level in blocks for block in level if f"{block}.main.weight" in state]
        names |= {f"{block}.main": f"{kind}_blocks.{i}.{kind}samplers.0.conv" for i, block in enumerate(resampling)}
    attends = [f"{level[0]}.attn.proj_q.weight" in state for level in down]
    config = COMMON | {
        "sample_size": size or 32,
        "block_out_channels": tuple(len(state[f"{level[0]}.block1.2.weight"]) for level in down),
        "layers_per_block": sum(f"{block}.block1.2.weight" in state for block in down[0]),
        "down_block_types": tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        "up_block_types": tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        "attention_head_dim": None,  # one head
        "downsample_padding": 1,
        "flip_sin_to_cos": False,
    }
    table = state.pop("time_embedding.timembedding.0.weight")  # of sines and cosines, a line for each step
    renamed = _rename(state, names)
    columns = renamed["time_embedding.linear_1.weight"]
    renamed["time_embedding.linear_1.weight"] = torch.cat([columns[:, 0::2], columns[:, 1::2]], dim=1)
    return _fill(config, renamed, DDPMScheduler(len(table), beta_start=1e-4, beta_end=0.02, beta_schedule="linear"))


def guided_diffusion(state: State, size: int | None) -> DiffusionModel:
    """The layout of openai/guided-diffusion, for unconditional networks such as `256x256_diffusion_uncond.pt`.

    The last output block of each level but the last has a residual block more, which doubles the resolution. Query, key and
    value of an attention are one tensor, whose rows are (head, query or key or value, channel of the head). The network may
    predict a variance as well, in the channels 3 to 5 of its output.
    """
    if "label_emb.weight" in state:
        raise UserError("this network wants a class label with each image: take the unconditional one of the same size.")
    up = _levels(state, "output_blocks", lambda prefix: _upsampler(state, prefix) is not None)
    layers = len(up[0]) - 1
    inputs = [f"input_blocks.{i + 1}" for i in range(len(up) * (layers + 1) - 1)]
    down = [inputs[i : i + layers + 1] for i in range(0, len(inputs), layers + 1)]
    resnet = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    attention = {"norm": "group_norm", "to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "proj_out": "to_out.0"}
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    blocks = [(f"{old}.0", f"{old}.1", new, number) for old, new, number in _places([b[:layers] for b in down], up)]
    blocks.append(("middle_block.0", "middle_block.1", "mid_block", 0))
    blocks.append(("middle_block.2", "", "mid_block", 1))
    for block, attends, new, number in blocks:
        names |= {f"{block}.{part}": f"{new}.resnets.{number}.{name}" for part, name in resnet.items()}
        names |= {f"{attends}.{part}": f"{new}.attentions.{number}.{name}" for part, name in attention.items()}
    resampling = [(f"down_blocks.{i}.downsamplers.0", f"{level[layers]}.0") for i, level in enumerate(down[:-1])]
    resampling += [(f"up_blocks.{i}.upsamplers.0", str(_upsampler(state, level[-1]))) for i, level in enumerate(up[:-1])]
    for new, block in resampling:
        names |= {f"{block}.{part}": f"{new}.{name}" for part, name in resnet.items()}
    channels = tuple(len(state[f"{level[0]}.0.in_layers.2.weight"]) for level in down)
    attends_at = [f"{level[0]}.1.qkv.weight" in state for level in down]
    multiples = tuple(width // channels[0] for width in channels)
    if size is None and multiples not in GUIDED_SIZES:
        raise UserError("the size of this network's images cannot be told from its shape: name it (--unet-size).")
    scaled = len(state["middle_block.0.emb_layers.1.weight"]) == 2 * channels[-1]
    config = COMMON | {
        "sample_size": size or GUIDED_SIZES[multiples],
        "out_channels": len(state["out.2.weight"]),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if attend else "ResnetDownsampleBlock2D" for attend in attends_at),
        "up_block_types": tuple("AttnUpBlock2D" if attend else "ResnetUpsampleBlock2D" for attend in reversed(attends_at)),
        "attention_head_dim": HEAD_WIDTH,
        "attn_norm_num_groups": 32,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift" if scaled else "default",
        "flip_sin_to_cos": True,
    }
    scheduler = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    return _fill(config, _rename(_split_qkv(state), names), scheduler)


LAYOUTS = {
    "pytorch-ddpm": Layout("time_embedding.timembedding.0.weight", pytorch_ddpm),
    "guided-diffusion": Layout("input_blocks.0.0.weight", guided_diffusion),
}


def convert(content: Any, size: int | None) -> DiffusionModel:
    """The diffusion model of a loaded checkpoint: its tensors, or a dict that holds them as `ema_model`.

    `size` is H = W of the images, where the layout alone does not tell or tells it wrongly. Raises UserError for an unknown
    layout, and for a network that the layout cannot have.
    """
    state = content.get("ema_model", content) if isinstance(content, dict) else {}
    state = {name.removeprefix("module."): tensor.float() for name, tensor in state.items() if torch.is_tensor(tensor)}
    for name, layout in LAYOUTS.items():
        if layout.marker in state:
            try:
                return layout.convert(state, size)
            except (KeyError, IndexError, RuntimeError, ValueError) as error:
                raise UserError(f"the checkpoint begins as one of {name}, but is another network ({_line(error)}).") from error
    raise UserError(
        f"the checkpoint has none of the known layouts ({', '.join(LAYOUTS)}): save the network as a diffusers folder."
    )


def _levels(state: State, name: str, ends_level: Callable[[str], bool]) -> list[list[str]]:
    """The blocks `name.0`, `name.1`, ... cut into levels. A block for which `ends_level` is true is the last of its level."""
    count = 1 + max(int(key.split(".")[1]) for key in state if key.startswith(f"{name}."))
    levels: list[list[str]] = [[]]
    for block in (f"{name}.{i}" for i in range(count)):
        levels[-1].append(block)
        if ends_level(block):
            levels.append([])
    return levels


def _places(down: list[list[str]], up: list[list[str]], *middle: str) -> list[tuple[str, str, int]]:
    """(old name, new name of its level, number in it) of each block of a network."""
    places = [(block, f"down_blocks.{i}", j) for i, level in enumerate(down) for j, block in enumerate(level)]
    places += [(block, "mid_block", j) for j, block in enumerate(middle)]
    return places + [(block, f"up_blocks.{i}", j) for i, level in enumerate(up) for j, block in enumerate(level)]


def _upsampler(state: State, block: str) -> str | None:
    """The residual block of guided-diffusion's output block that doubles the resolution. It stands last. None without one."""
    return next((f"{block}.{i}" for i in (1, 2) if f"{block}.{i}.in_layers.0.weight" in state), None)


def _split_qkv(state: State) -> State:
    """guided-diffusion's tensors with `to_q`, `to_k` and `to_v` in place of `qkv`."""
    split: State = {}
    for name, tensor in state.items():
        if ".qkv." not in name:
            split[name] = tensor
            continue
        rows = tensor.view(-1, 3, HEAD_WIDTH, *tensor.shape[1:])
        split |= {name.replace(".qkv.", f".to_{part}."): rows[:, i].flatten(0, 1) for i, part in enumerate("qkv")}
    return split


def _rename(state: State, names: dict[str, str]) -> State:
    """The tensors under new names. The 1 x 1 convolutions of an attention become matrices."""
    renamed = {}
    for name, tensor in state.items():
        module, kind = name.rsplit(".", 1)
        new = f"{names[module]}.{kind}"
        renamed[new] = tensor.flatten(1) if re.search(r"\.to_(q|k|v|out\.0)\.weight$", new) else tensor
    return renamed


def _fill(config: dict[str, Any], state: State, scheduler: DDPMScheduler) -> DiffusionModel:
    """A UNet2DModel of that configuration with exactly these weights."""
    unet = UNet2DModel(**config)
    unet.load_state_dict(state)
    return DiffusionModel(unet, scheduler, (config["sample_size"],) * 2)


def _line(error: Exception) -> str:
    """The beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:120]
