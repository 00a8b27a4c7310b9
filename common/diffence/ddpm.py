"""`python <data set>/diff_defense/train_ddpm.py`: train the diffusion model on the members' images (paper Section IV-A).

diffusers' UNet2DModel with a linear-beta DDPM loss (Ho et al.) and an exponential moving average of the weights, which is
what reconstructs. The randomness of step s depends on (seed, s) alone, so a killed run continues exactly. Writes a folder
that `UNet2DModel.from_pretrained` loads, and a PNG of members and non-members beside their reconstructions (Fig. 1).
"""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

from common.config import DDPM
from common.data.partition import Examples, Split
from common.diffence.reconstruct import DiffusionReconstructor, alpha_bars
from common.errors import UserError
from common.files import load_checkpoint, read_json, refuse_other_config, save_checkpoint, write_json
from common.run import Run
from common.seeds import derive_seed
from common.training.loop import autocast

REMAKE = "diff_defense/train_ddpm.py"


def build_unet(config: DDPM) -> UNet2DModel:
    """A noise predictor for [B, 3, 32, 32] in [-1, 1]; at the config's defaults the paper's, with 35.7 M parameters."""
    levels = range(len(config.channels))
    down = ["AttnDownBlock2D" if level in config.attention else "DownBlock2D" for level in levels]
    up = ["AttnUpBlock2D" if level in config.attention else "UpBlock2D" for level in reversed(levels)]
    return UNet2DModel(
        sample_size=32,
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


def train_ddpm(run: Run, members: Examples) -> Path:
    """Train to the configured number of steps, or continue where a killed run was; returns the model's folder."""
    folder, config, settings = run.ddpm_dir, run.config.ddpm, ddpm_settings(run)
    remake = run.command(REMAKE)
    if (folder / "unet" / "settings.json").is_file():
        load_unet(run)  # refuses one made under other settings
        return folder
    torch.manual_seed(derive_seed("ddpm weights", run.seed))
    unet = build_unet(config).to(run.device, memory_format=torch.channels_last).train()
    average = EMAModel(unet.parameters(), decay=config.ema_decay)
    optimizer = torch.optim.Adam(unet.parameters(), config.lr)
    resume, done, losses = folder / "resume.pt", 0, []
    if resume.is_file():
        saved = load_checkpoint(resume, remake)
        refuse_other_config(resume, saved["settings"], settings, f"delete {folder}, then run: {remake}")
        unet.load_state_dict(saved["unet"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        done, losses = saved["done"], saved["losses"]
    average.to(run.device)
    members = members.to(run.device)
    with tqdm(total=config.steps, initial=done, desc="diffusion model", unit="step", smoothing=0.05, disable=None) as progress:
        running = torch.zeros((), device=run.device)
        while done < config.steps:
            running += ddpm_step(unet, optimizer, members, config, derive_seed("ddpm step", run.seed, done), done)
            average.step(unet.parameters())
            done += 1
            progress.update()
            if done % config.save_every == 0 or done == config.steps:
                since = done % config.save_every or config.save_every
                losses.append([done, running.item() / since])
                running.zero_()
                progress.set_postfix_str(f"loss {losses[-1][1]:.4f}")
                state: dict[str, Any] = {"unet": unet.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"average": average.state_dict(), "settings": settings, "done": done, "losses": losses}
                save_checkpoint(resume, state)
    average.copy_to(unet.parameters())
    _save(unet, folder, settings, losses)
    resume.unlink()
    return folder


def ddpm_step(
    unet: UNet2DModel, optimizer: torch.optim.Optimizer, members: Examples, config: DDPM, seed: int, done: int
) -> torch.Tensor:
    """One step of Ho et al.'s simplified loss on timesteps 1..max_timestep; returns the detached loss."""
    device = members.images.device
    torch.manual_seed(seed)
    index = torch.randint(len(members), (config.batch_size,))
    steps = torch.randint(1, config.max_timestep + 1, (config.batch_size,))
    mirrored = torch.rand(config.batch_size) < 0.5
    noise = torch.randn(config.batch_size, *members.images.shape[1:]).to(device)
    x0 = 2 * members.pixels(index.to(device)) - 1
    if config.flip:
        x0 = torch.where(mirrored.to(device)[:, None, None, None], x0.flip(3), x0)
    alpha_bar = alpha_bars()[steps].float().to(device)[:, None, None, None]
    noisy = (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    with autocast(device, config.bf16):
        predicted = unet(noisy, steps.to(device) - 1, return_dict=False)[0]
    loss = F.mse_loss(predicted.float(), noise)
    for group in optimizer.param_groups:
        group["lr"] = config.lr * min(1.0, (done + 1) / max(config.warmup, 1))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), config.grad_clip)
    optimizer.step()
    return loss.detach()


def _save(unet: UNet2DModel, folder: Path, settings: dict[str, Any], losses: list[list[float]]) -> None:
    """A diffusers folder `unet/` (config.json, safetensors); settings.json, written last, makes it valid. And the log."""
    pd.DataFrame(losses, columns=["step", "loss"]).to_csv(folder / "log.csv", index=False)
    shutil.rmtree(folder / "unet", ignore_errors=True)
    unet.save_pretrained(folder / "unet")
    write_json(folder / "unet" / "settings.json", settings)


def ddpm_settings(run: Run) -> dict[str, Any]:
    """What the diffusion model depends on. How often it is saved is no part of it."""
    config = run.config.as_dict()
    ddpm = {key: value for key, value in config["ddpm"].items() if key != "save_every"}
    return {
        "dataset": run.dataset,
        "seed": run.target_seed,
        "members": config["data"]["members"],
        "data_seed": config["data"]["seed"],
        **ddpm,
    }


def load_unet(run: Run) -> UNet2DModel:
    """The trained diffusion model of a run; UserError says which command makes it."""
    folder, remake = run.ddpm_dir / "unet", run.command(REMAKE)
    made = read_json(folder / "settings.json", remake)
    refuse_other_config(folder, made, ddpm_settings(run), f"move it away, then run: {remake}")
    try:
        return UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    except Exception as error:  # safetensors, json and size errors, according to what is damaged
        raise UserError(f"{folder} is damaged. Delete it and run: {remake}") from error


def load_reconstructor(run: Run) -> DiffusionReconstructor:
    """The run's diffusion model, ready to draw candidates as `config.diffence` says."""
    chosen = run.config.diffence
    unet = load_unet(run).to(run.device)
    return DiffusionReconstructor(unet, chosen.t, chosen.steps, chosen.forward, run.target_seed, run.config.ddpm.bf16)


def save_grid(run: Run, split: Split, path: Path, count: int = 8) -> None:
    """Figure 1: originals (odd rows) above their reconstructions (even rows), members left and non-members right."""
    reconstruct = load_reconstructor(run)
    shown = torch.cat([part.pixels(slice(count)) for part in (split.members, split.non_members)])
    queries = torch.arange(len(shown))
    remade = reconstruct(shown.to(run.device), queries, torch.zeros_like(queries)).cpu()
    tiles = torch.cat([shown, remade])
    save_image(make_grid(tiles.repeat_interleave(3, 2).repeat_interleave(3, 3), nrow=2 * count, padding=3), path)
