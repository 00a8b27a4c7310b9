"""`python <data set>/diff_defense/train_ddpm.py`: train the diffusion model on the members' images (paper Section IV-A).

The model is diffusers' UNet2DModel, trained with the loss of Ho et al. and linear betas. An exponential moving average of its
weights is what reconstructs images. The random numbers of step s depend on (seed, s) alone, so that a killed run continues with
the same weights. The result is a folder that `UNet2DModel.from_pretrained` loads, and a PNG of members and non-members with
their reconstructions (Fig. 1).
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from common.config import DDPM
from common.data.partition import Examples, Split
from common.diffence.reconstruct import DiffusionReconstructor, alpha_bars, forward_noise
from common.errors import UserError
from common.files import atomic_write, load_checkpoint, read_json, refuse_other_config, save_checkpoint, write_json
from common.run import Run
from common.seeds import derive_seed
from common.training.distributed import hide_progress, is_first, mean_over_processes, parallel, part_of, wait_for_all
from common.training.loop import autocast
from common.training.pace import Pace

if TYPE_CHECKING:  # takes seconds and 200 MB, as torchvision does: planning and attacks need neither
    from diffusers import UNet2DModel

REMAKE = "diff_defense/train_ddpm.py"


def build_unet(config: DDPM, size: tuple[int, int] = (32, 32)) -> UNet2DModel:
    """A network that predicts the noise of images [B, 3, H, W] in [-1, 1], where `size` is (H, W).

    The defaults of the config are the paper's network, with 35.7 M parameters.
    """
    from diffusers import UNet2DModel

    levels = range(len(config.channels))
    down = ["AttnDownBlock2D" if level in config.attention else "DownBlock2D" for level in levels]
    up = ["AttnUpBlock2D" if level in config.attention else "UpBlock2D" for level in reversed(levels)]
    return UNet2DModel(
        sample_size=size[0] if size[0] == size[1] else size,
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        norm_num_groups=config.groups,
        dropout=config.dropout,
        attention_head_dim=None,  # one head, as in Ho et al.
        add_attention=bool(config.attention),  # attention in the middle block too
        flip_sin_to_cos=False,
        freq_shift=0,
    )


class Padded(nn.Module):
    """A UNet for images of any size.

    Each level of a UNet halves the image. Images whose sides cannot be halved so often are padded by repeating their edges, and
    the output is cut to their size. Other images go through the UNet as they are.
    """

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet
        self.multiple = 2 ** (len(unet.config.block_out_channels) - 1)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor | int, return_dict: bool = False) -> tuple[torch.Tensor]:
        """The predicted noise [B, 3, H, W] of x [B, 3, H, W], in a tuple as diffusers returns it."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        return (self.unet(x, timestep, return_dict=False)[0][..., :height, :width],)


def training_images(run: Run, split: Split) -> Examples:
    """The images of the diffusion model: the members, and with `ddpm.reference` the reference images (paper Appendix A-C)."""
    return split.members.followed_by(split.reference) if run.config.ddpm.reference else split.members


def train_ddpm(run: Run, images: Examples) -> Path:
    """Train the diffusion model on `images` and return its folder.

    A training that was killed continues, and a model that is trained already stays. Checkpoints are written at lines of the
    log, as seldom as a `Pace` says. Raises UserError where they are damaged or were made under other settings.
    """
    from diffusers.training_utils import EMAModel

    folder, config, settings = run.ddpm_dir, run.config.ddpm, ddpm_settings(run)
    remake = run.command(REMAKE)
    if (folder / "unet" / "settings.json").is_file():
        load_unet(run)  # raises where it was trained under other settings
        return folder
    torch.manual_seed(derive_seed("ddpm weights", run.seed))
    unet = build_unet(config, images.images.shape[2:]).to(run.device, memory_format=torch.channels_last).train()
    ema = EMAModel(unet.parameters(), decay=config.ema_decay)
    optimizer = torch.optim.Adam(unet.parameters(), config.lr)
    resume, step, losses = folder / "resume.pt", 0, []
    if resume.is_file():
        saved = load_checkpoint(resume, remake)
        refuse_other_config(resume, saved["settings"], settings, f"delete {folder}, then run: {remake}")
        unet.load_state_dict(saved["unet"])
        ema.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        step, losses = saved["done"], saved["losses"]
    ema.to(run.device)
    images, network, pace = images.to(run.device), parallel(Padded(unet)), Pace()
    started = time.perf_counter()  # of the work since the last line of the log
    hide = hide_progress()
    with tqdm(total=config.steps, initial=step, desc="diffusion model", unit="step", smoothing=0.05, disable=hide) as progress:
        loss_sum = torch.zeros((), device=run.device)  # over the steps since the last line of the log
        while step < config.steps:
            loss_sum += ddpm_step(network, optimizer, images, config, derive_seed("ddpm step", run.seed, step), step)
            ema.step(unet.parameters())
            step += 1
            progress.update()
            if step % config.save_every == 0 or step == config.steps:
                (mean_loss,) = mean_over_processes(
                    [loss_sum.item() / (step % config.save_every or config.save_every)], run.device
                )
                loss_sum.zero_()
                now = time.perf_counter()
                losses.append([step, mean_loss, now - started])
                started = now
                progress.set_postfix_str(f"loss {mean_loss:.4f}")
                if step < config.steps and is_first() and pace.due():
                    with pace.writing():
                        state: dict[str, Any] = {"unet": unet.state_dict(), "optimizer": optimizer.state_dict()}
                        state |= {"average": ema.state_dict(), "settings": settings, "done": step, "losses": losses}
                        save_checkpoint(resume, state)
    ema.copy_to(unet.parameters())
    if is_first():
        _save(unet, folder, settings, losses)
        resume.unlink(missing_ok=True)
    wait_for_all()
    return folder


def ddpm_step(
    unet: nn.Module, optimizer: torch.optim.Optimizer, members: Examples, config: DDPM, seed: int, step: int
) -> torch.Tensor:
    """One training step on Ho et al.'s simplified loss; returns the loss, detached.

    A batch of members is noised to diffusion steps drawn from min_timestep..max_timestep. All random numbers come from `seed`.
    `step` is the number of this training step, from 0. The learning rate rises linearly over the first `warmup` steps. With
    several processes, each computes the loss of its part of the batch.
    """
    device = members.images.device
    torch.manual_seed(seed)
    index = torch.randint(len(members), (config.batch_size,))
    diffusion_steps = torch.randint(config.min_timestep, config.max_timestep + 1, (config.batch_size,))
    mirrored = torch.rand(config.batch_size) < 0.5
    noise = torch.randn(config.batch_size, *members.images.shape[1:])
    part, weight = part_of(config.batch_size)
    index, diffusion_steps, mirrored, noise = index[part], diffusion_steps[part], mirrored[part], noise[part].to(device)
    x0 = 2 * members.pixels(index.to(device)) - 1
    if config.flip:
        x0 = torch.where(mirrored.to(device)[:, None, None, None], x0.flip(3), x0)
    alpha_bar = alpha_bars()[diffusion_steps].float().to(device)[:, None, None, None]
    noisy = forward_noise(x0, noise, alpha_bar, "paper").contiguous(memory_format=torch.channels_last)
    with autocast(device, config.bf16):
        predicted = unet(noisy, diffusion_steps.to(device) - 1, return_dict=False)[0]
    loss = weight * F.mse_loss(predicted.float(), noise)
    for group in optimizer.param_groups:
        group["lr"] = config.lr * min(1.0, (step + 1) / max(config.warmup, 1))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), config.grad_clip)
    optimizer.step()
    return loss.detach()


def _save(unet: UNet2DModel, folder: Path, settings: dict[str, Any], losses: list[list[float]]) -> None:
    """Write the log and the diffusers folder `unet/` (config.json, safetensors).

    The folder counts as complete once it has a settings.json, which is therefore written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A checkpoint of version 0.2 has lines without seconds.
    pd.DataFrame(losses, columns=["step", "loss", "seconds"]).to_csv(folder / "log.csv", index=False)
    shutil.rmtree(folder / "unet", ignore_errors=True)
    unet.save_pretrained(folder / "unet")
    write_json(folder / "unet" / "settings.json", settings)


def ddpm_settings(run: Run) -> dict[str, Any]:
    """Everything that the diffusion model depends on. Its name and how often it is saved are not part of it."""
    config = run.config.as_dict()
    ddpm = {key: value for key, value in config["ddpm"].items() if key not in ("name", "save_every")}
    return {
        "dataset": run.dataset,
        "seed": run.target_seed,
        "members": config["data"]["members"],
        "data_seed": config["data"]["seed"],
        **{key: size for key, size in config["data"].items() if key == "image_size"},
        **({"reference_images": config["data"]["reference"]} if run.config.ddpm.reference else {}),
        **ddpm,
    }


def load_unet(run: Run) -> UNet2DModel:
    """The trained diffusion model of a run, on the CPU.

    Raises UserError, which names the command that trains it, where it is missing, damaged or of other settings.
    """
    from diffusers import UNet2DModel

    folder, remake = run.ddpm_dir / "unet", run.command(REMAKE)
    stored = read_json(folder / "settings.json", remake)
    refuse_other_config(folder, stored, ddpm_settings(run), f"move it away, then run: {remake}")
    try:
        return UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    except Exception as error:  # safetensors, json and size errors, according to what is damaged
        raise UserError(f"{folder} is damaged. Delete it and run: {remake}") from error


def load_reconstructor(run: Run) -> DiffusionReconstructor:
    """A reconstructor with the run's diffusion model, on the run's device, with the settings of `config.diffence`."""
    config = run.config.diffence
    unet = Padded(load_unet(run)).to(run.device)
    return DiffusionReconstructor(unet, config.t, config.steps, config.forward, run.target_seed, run.config.ddpm.bf16)


def save_grid(run: Run, split: Split, path: Path, count: int = 8) -> None:
    """Write the paper's Figure 1: originals above their reconstructions, `count` members left and `count` non-members right."""
    from torchvision.utils import make_grid, save_image

    reconstruct = load_reconstructor(run)
    originals = torch.cat([side.pixels(slice(count)) for side in split.evaluated])
    queries = torch.arange(len(originals))
    reconstructions = reconstruct(originals.to(run.device), queries, torch.zeros_like(queries)).cpu()
    zoom = 3 if originals.shape[-1] <= 64 else 1  # how many times as large images are drawn
    tiles = torch.cat([originals, reconstructions]).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    grid = make_grid(tiles, nrow=2 * count, padding=3)
    atomic_write(path, lambda file: save_image(grid, file, format="png"))
