"""Training the diffusion model: the loss falls, a killed run ends the same, the average is saved, refusals, the picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import same
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from common.config import DDPM, Config, Diffence
from common.data.partition import Examples, Split
from common.diffence import ddpm
from common.diffence.ddpm import load_reconstructor, load_unet, save_grid, train_ddpm
from common.errors import UserError
from common.run import Run
from common.training.pace import Pace

COMMAND = "train_ddpm.py --profile small"
TINY: dict[str, Any] = {"channels": [8, 8], "layers": 1, "attention": [], "groups": 4, "batch_size": 8, "lr": 2e-3}
TINY |= {"steps": 11, "save_every": 4, "warmup": 3, "ema_decay": 0.9, "max_timestep": 160}


def make_run(folder: Path, seed: int = 0, **options: Any) -> Run:
    config = Config(ddpm=DDPM(**{**TINY, **options}), diffence=Diffence(t=100))
    return Run(folder / "synthetic", "small", config, seed, torch.device("cpu"))


def examples(count: int, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.zeros(count, dtype=torch.int64))


def constant(value: int, count: int = 4) -> Examples:
    return Examples(torch.full((count, 3, 8, 8), value, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return dict(load_file(run.ddpm_dir / "unet" / "diffusion_pytorch_model.safetensors"))


def flat(unet: nn.Module) -> torch.Tensor:
    """All parameters, one after another, copied."""
    return torch.cat([weight.detach().flatten() for weight in unet.parameters()])


class Killed(Exception):
    """Stands for kill -9."""


def kill_at_call(patch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Let the given call (from 0) of a function of common.diffence.ddpm raise."""
    real, calls = getattr(ddpm, name), iter(range(10**6))

    def function(*arguments: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return real(*arguments)

    patch.setattr(ddpm, name, function)


# Training


def test_the_loss_falls_on_constant_images(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=150, save_every=30, dropout=0.0, lr=1e-2)
    assert train_ddpm(run, constant(200)) == run.ddpm_dir
    log = pd.read_csv(run.ddpm_dir / "log.csv")
    assert log["step"].tolist() == [30, 60, 90, 120, 150]
    assert log["loss"].iloc[0] > 0.5
    assert log["loss"].iloc[-1] < 0.5 * log["loss"].iloc[0]
    assert not (run.ddpm_dir / "resume.pt").exists()
    x = torch.full((2, 3, 8, 8), 200 / 255)
    reconstruct, first = load_reconstructor(run), torch.zeros(2, dtype=torch.int64)
    noise = reconstruct.noise(x.shape[1:], torch.arange(2), first) / 2
    assert (reconstruct(x, torch.arange(2), first) - x).abs().mean() < 0.25 * noise.abs().mean()


@pytest.mark.parametrize(
    ("name", "call", "left", "due"),
    [
        ("ddpm_step", 2, 11, True),  # before the first checkpoint
        ("ddpm_step", 10, 3, True),  # between checkpoints
        ("ddpm_step", 10, 11, False),  # where no checkpoint was due
        ("save_checkpoint", 1, 7, True),  # instead of the second checkpoint
        ("_save", 0, 3, True),  # after the last step, which has no checkpoint
        ("write_json", 0, 3, True),  # before the last file, which makes the model valid
    ],
)
def test_a_killed_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int, left: int, due: bool
) -> None:
    monkeypatch.setattr(Pace, "due", lambda pace: due)
    members = examples(20)
    whole, killed = make_run(tmp_path / "whole"), make_run(tmp_path / "killed")
    train_ddpm(whole, members)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at_call(patch, name, call)
        train_ddpm(killed, members)
    with pytest.raises(UserError, match=f"Make it with: python synthetic/diff_defense/{COMMAND}"):
        load_unet(killed)
    written = (killed.ddpm_dir / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert written == (name == "write_json")
    with pytest.MonkeyPatch.context() as patch:
        kill_at_call(patch, "ddpm_step", left)  # it repeats no more steps than it must
        train_ddpm(killed, members)
    assert same(weights(killed), weights(whole))
    logs = [pd.read_csv(run.ddpm_dir / "log.csv") for run in (killed, whole)]
    assert logs[0][["step", "loss"]].equals(logs[1][["step", "loss"]])
    with pytest.MonkeyPatch.context() as patch:
        kill_at_call(patch, "ddpm_step", 0)
        assert train_ddpm(killed, members) == killed.ddpm_dir  # trained already: no step


def test_the_seed_of_the_run_draws_weights_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(tmp_path / "a", steps=2), make_run(tmp_path / "a", seed=1, steps=2), make_run(tmp_path / "b", steps=2)]
    starts: list[float] = []
    seeds: list[int] = []
    real = ddpm.ddpm_step

    def spy(unet: nn.Module, optimizer: Any, members: Examples, config: DDPM, seed: int, done: int) -> torch.Tensor:
        starts.append(flat(unet).double().sum().item())
        seeds.append(seed)
        return real(unet, optimizer, members, config, seed, done)

    monkeypatch.setattr(ddpm, "ddpm_step", spy)
    for run in runs:
        torch.manual_seed(len(starts))  # does not matter
        train_ddpm(run, examples(20))
    assert same(weights(runs[0]), weights(runs[2]))
    assert starts[0] != starts[2]
    assert len(set(seeds[:4])) == 4
    assert (starts[:2], seeds[:2]) == (starts[4:], seeds[4:])


def test_the_log_has_the_mean_loss_between_two_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """11 steps, saved every 4: of the steps 1 to 4, 5 to 8 and 9 to 11."""
    losses: list[float] = []
    real = ddpm.ddpm_step

    def spy(*arguments: Any) -> torch.Tensor:
        loss = real(*arguments)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(ddpm, "ddpm_step", spy)
    run = make_run(tmp_path)
    train_ddpm(run, examples(20))
    log = pd.read_csv(run.ddpm_dir / "log.csv")
    assert list(log) == ["step", "loss", "seconds"] and (log["seconds"] > 0).all()
    assert log["step"].tolist() == [4, 8, 11]
    assert log["loss"].tolist() == pytest.approx([np.mean(losses[:4]), np.mean(losses[4:8]), np.mean(losses[8:])])


def test_the_average_of_the_weights_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path: list[torch.Tensor] = []
    real = ddpm.ddpm_step

    def spy(unet: nn.Module, *arguments: Any) -> torch.Tensor:
        loss = real(unet, *arguments)
        path.append(flat(unet))
        return loss

    monkeypatch.setattr(ddpm, "ddpm_step", spy)
    run = make_run(tmp_path, ema_decay=0.3)
    train_ddpm(run, examples(20))
    average = path[0]
    for done, weights_then in enumerate(path[1:], 1):
        decay = min(0.3, done / (done + 9))  # diffusers warms the decay up
        average = decay * average + (1 - decay) * weights_then
    torch.testing.assert_close(flat(load_unet(run)), average, atol=1e-6, rtol=0)
    assert (average - path[-1]).abs().max() > 1e-4


def test_the_reconstructor_is_that_of_the_config_and_of_the_seed(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=5, steps=1, bf16=True)
    run = replace(run, config=replace(run.config, diffence=Diffence(t=90, steps=3, forward="released")))
    train_ddpm(run, examples(20))
    for used in (run, replace(run, seed=77, shadow=(0, 5))):  # a shadow model's candidates are those of its target
        made = load_reconstructor(used)
        assert (made.t, made.steps, made.rule, made.seed, made.bf16) == (90, [90, 60, 30, 0], "released", 5, True)


def test_a_named_model_may_see_the_reference_images(tmp_path: Path) -> None:
    """It lies beside the profile's, whose settings do not know of either setting."""
    run = make_run(tmp_path)
    stronger = make_run(tmp_path, name="stronger", reference=True)
    assert (stronger.ddpm_dir, stronger.candidates_dir.name) == (run.ddpm_dir / "stronger", "stronger")
    assert ddpm.ddpm_settings(stronger) == ddpm.ddpm_settings(run) | {"reference": True, "reference_images": 25_000}
    assert not {"name", "reference"} & set(ddpm.ddpm_settings(run))
    split = Split(examples(20), examples(7), examples(3))
    assert ddpm.training_images(run, split) is split.members
    both = ddpm.training_images(stronger, split)
    assert torch.equal(both.images, torch.cat([split.members.images, split.reference.images])) and len(both.labels) == 27
    for name in ("a/b", "..", "unet"):
        with pytest.raises(UserError, match=r"ddpm.name is the name of a folder"):
            make_run(tmp_path, name=name)


@pytest.mark.usefixtures("every_checkpoint")
def test_a_checkpoint_of_version_0_2_has_no_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_call(patch, "ddpm_step", 9)
        train_ddpm(run, examples(20))
    resume = run.ddpm_dir / "resume.pt"
    stored = torch.load(resume, weights_only=True)
    torch.save(stored | {"losses": [line[:2] for line in stored["losses"]]}, resume)
    train_ddpm(run, examples(20))
    log = pd.read_csv(run.ddpm_dir / "log.csv")
    assert log["seconds"].isna().tolist() == [True, True, False]


# Refusals


def test_refuses_files_of_other_settings(tmp_path: Path) -> None:
    run, other = make_run(tmp_path), make_run(tmp_path, lr=1e-3)
    train_ddpm(run, examples(20))
    for use in (load_unet, load_reconstructor, lambda r: train_ddpm(r, examples(20))):
        with pytest.raises(UserError, match=rf"lr: 0.002 -> 0.001.*{COMMAND}"):
            use(other)
    load_unet(make_run(tmp_path, save_every=2))  # how often it was saved makes no difference
    drawn = replace(run, config=replace(run.config, data=replace(run.config.data, seed=1)))
    with pytest.raises(UserError, match=rf"data_seed: 0 -> 1.*{COMMAND}"):
        load_unet(drawn)
    assert ddpm.ddpm_settings(replace(run, seed=1)) != ddpm.ddpm_settings(run)


@pytest.mark.usefixtures("every_checkpoint")
def test_refuses_a_checkpoint_of_other_settings_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at_call(monkeypatch, "ddpm_step", 9)
    run = make_run(tmp_path)
    with pytest.raises(Killed):
        train_ddpm(run, examples(20))
    with pytest.raises(UserError, match=rf"resume.pt.*steps: 11 -> 12.*delete.*{COMMAND}"):
        train_ddpm(make_run(tmp_path, steps=12), examples(20))
    resume = run.ddpm_dir / "resume.pt"
    resume.write_bytes(resume.read_bytes()[:5000])
    with pytest.raises(UserError, match=rf"resume.pt is damaged.*{COMMAND}"):
        train_ddpm(run, examples(20))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "config.json", "settings.json"])
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_refuses_a_damaged_model(tmp_path: Path, name: str, damage: str) -> None:
    run = make_run(tmp_path, steps=1)
    train_ddpm(run, examples(20))
    path = run.ddpm_dir / "unet" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"unet.*(missing|damaged).*{COMMAND}"):
        load_unet(run)


# The picture


def test_the_grid_shows_originals_above_their_reconstructions(tmp_path: Path) -> None:
    run, split = make_run(tmp_path, steps=1), Split(examples(5, 1), examples(1, 2), examples(5, 3))
    train_ddpm(run, split.members)
    save_grid(run, split, tmp_path / "grid.png", count=2)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (2 * 27 + 3, 4 * 27 + 3, 3)  # images of 8 x 8, three times as large, 3 pixels apart
    tiles = [[picture[3 + 27 * y : 27 + 27 * y, 3 + 27 * x : 27 + 27 * x] for x in range(4)] for y in range(2)]
    shown = torch.cat([split.members.images[:2], split.non_members.images[:2]])
    remade = load_reconstructor(run)(shown.float() / 255, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    for x in range(4):
        np.testing.assert_array_equal(tiles[0][x][1::3, 1::3], shown[x].permute(1, 2, 0))
        np.testing.assert_allclose(tiles[1][x][1::3, 1::3], 255 * remade[x].permute(1, 2, 0), atol=1)
    assert (tiles[0][0].repeat(1, 0) == np.repeat(np.repeat(tiles[0][0][1::3, 1::3], 3, 0), 3, 1)).all()
