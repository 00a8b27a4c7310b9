"""Where a diffusion model comes from: a function, memory, the hub, a folder; what cannot be used is refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from layouts import TINY, GuidedDiffusion, PytorchDDPM, save_model
from torch import nn

from common.diffence.ddpm import build_unet
from common.diffence.sources import load_diffusion_model
from common.errors import UserError


def test_a_function_and_a_network_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_unet.py").write_text(
        "from common.diffence.sources import edm_model\n"
        "def edm():\n    return edm_model(lambda x, sigma: x, 16)\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_diffusion_model("my_unet:edm").size == (16, 16)
    assert load_diffusion_model("my_unet:edm", 24).size == (24, 24)
    unet = build_unet(TINY)
    assert load_diffusion_model(unet).size == (32, 32)
    with pytest.raises(UserError, match="my_unet:wrong returned a int, not a UNet2DModel"):
        load_diffusion_model("my_unet:wrong")
    for name in ("my_unet:absent", "no_such_module:edm"):
        with pytest.raises(UserError, match=f"{name} cannot be imported .*: put the folder of .* into .* PYTHONPATH"):
            load_diffusion_model(name)


def test_the_hub_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="'someone/a-model' is no file or folder here, and could not be fetched") as caught:
        load_diffusion_model("someone/a-model")
    assert "\n" not in str(caught.value)


def test_the_hub_s_files_load_as_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_model(tmp_path)

    def download(name: str, allow_patterns: list[str]) -> str:
        assert (name, allow_patterns) == ("google/ddpm-cifar10-32", ["*.json", "*.safetensors"])  # nothing to unpickle
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_diffusion_model("google/ddpm-cifar10-32").size == (8, 8)


class Evil:
    """A pickle of it runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


def write_bad(folder: Path, kind: str) -> Path:
    """A source that is refused, of the kind."""
    path = folder / "bad.pt"
    if kind == "pickle":
        torch.save({"ema_model": Evil()}, path)
    elif kind == "text":
        path.write_text("hello")
    elif kind == "other layout":
        torch.save({"conv.weight": torch.zeros(1)}, path)
    elif kind == "cut":
        state = PytorchDDPM(10, 32, [1], attention=[], layers=1).state_dict()
        torch.save({name: value for name, value in state.items() if "tail.2" not in name}, path)
    elif kind == "labels":
        torch.save(GuidedDiffusion(64, [1], [], 1).state_dict() | {"label_emb.weight": torch.zeros(1)}, path)
    elif kind == "unknown size":
        torch.save(GuidedDiffusion(64, [1, 2], [], 1).state_dict(), path)
    elif kind == "no folder of diffusers":
        return folder
    else:
        save_model(folder)
        unet, scheduler = folder / "unet", folder / "scheduler" / "scheduler_config.json"
        config = json.loads(scheduler.read_text())
        if kind == "cut config":
            (unet / "config.json").write_text((unet / "config.json").read_text()[:100])
        elif kind == "damaged":
            (unet / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
        elif kind == "unsafe weights":
            (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
        elif kind == "no betas":
            scheduler.write_text(json.dumps({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 1348}))
        elif kind == "flow":
            scheduler.write_text(json.dumps(config | {"prediction_type": "flow_prediction"}))
        elif kind == "schedule":
            scheduler.write_text(json.dumps(config | {"beta_schedule": "mine"}))
        elif kind in ("latents", "classes"):
            changes: dict[str, Any] = {"in_channels": 4} if kind == "latents" else {"num_class_embeds": 3}
            config = dict(build_unet(TINY).config) | changes
            UNet2DModel(**{name: value for name, value in config.items() if name[0] != "_"}).save_pretrained(unet)
        return folder
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("pickle", "nothing else is unpickled"),
        ("text", "is damaged, or is no file of weights"),
        ("other layout", "none of the known layouts .pytorch-ddpm, guided-diffusion."),
        ("cut", "begins as one of pytorch-ddpm, but is another network .*conv_out"),
        ("labels", "wants a class label"),
        ("unknown size", "size of this network's images cannot be told.*--unet-size"),
        ("no folder of diffusers", "has no config.json"),
        ("cut config", "config.json is damaged: copy or download it again"),
        ("damaged", "unet is damaged"),
        ("unsafe weights", "has no .safetensors"),
        ("no betas", "is of a ScoreSdeVeScheduler, which has no betas"),
        ("flow", "unknown prediction type .* 'flow_prediction'"),
        ("schedule", "mine is not implemented"),
        ("latents", "takes 4 channels"),
        ("classes", "wants a class label"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, kind: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load_diffusion_model(write_bad(tmp_path, kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.pt", "is no file or folder here, nor"),
        (".my_unet:load", "is no file or folder here, nor"),
        (nn.Linear(1, 1), "a Linear is no UNet2DModel"),
    ],
)
def test_what_is_not_there_is_refused(source: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_diffusion_model(source)
