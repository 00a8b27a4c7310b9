"""Diffusion models off the shelf (paper Section IV-B5): one loader for folders, hubs, checkpoints and code.

A weights file is read without unpickling code. `module:function` runs code of the user's own.
"""

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file
from torch import nn

from common.diffence.layouts import convert
from common.diffence.reconstruct import PREDICTIONS, DiffusionModel, alpha_bars, ho_scheduler
from common.errors import UserError, check_name

SCHEDULER = "scheduler_config.json"
FUNCTION = r"\w+(\.\w+)*:\w+"


@dataclass(frozen=True)
class Kind:
    """A kind of source: whether a name is of it, and how it is loaded, given the size H = W where the user names one."""

    recognises: Callable[[str], bool]
    load: Callable[[str, int | None], DiffusionModel]


def load_diffusion_model(source: str | Path | nn.Module | DiffusionModel, size: int | None = None) -> DiffusionModel:
    """The diffusion model of a source, which is one of

    - a folder that diffusers wrote: a UNet2DModel in it or in its `unet/`, and a scheduler in it or in a `scheduler/`. Without
      a scheduler the network counts as trained as Ho et al. did: betas from 1e-4 to 0.02, predicting the noise;
    - the name of such a repository of the Hugging Face hub, such as google/ddpm-cifar10-32;
    - a checkpoint in one of the LAYOUTS, as .pt (read with weights_only) or .safetensors;
    - `module:function`, a function without arguments that returns a UNet2DModel or a DiffusionModel, such as `edm_model` makes;
    - a UNet2DModel or a DiffusionModel.

    size: H = W of the images, if not as the source says. Raises UserError, in one sentence, for what cannot be used.
    """
    if isinstance(source, UNet2DModel):
        return _of_unet(source, ho_scheduler(), size)
    if isinstance(source, nn.Module):
        raise UserError(
            f"a {type(source).__name__} is no UNet2DModel: say how it was trained with DiffusionModel or edm_model."
        )
    if isinstance(source, DiffusionModel):
        return source if size is None else DiffusionModel(source.unet, source.scheduler, (size, size))
    for kind in KINDS.values():
        if kind.recognises(str(source)):
            return kind.load(str(source), size)
    raise UserError(
        f"'{source}' is no file or folder here, nor the name of a model of the hub (as in google/ddpm-cifar10-32), nor "
        "module:function."
    )


def load_folder(name: str, size: int | None) -> DiffusionModel:
    """A UNet2DModel with its scheduler, from a folder that diffusers wrote."""
    folder = Path(name)
    where = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (where / "config.json").is_file():
        raise UserError(
            f"{folder} has no config.json, nor has a folder unet/ in it: name a folder that UNet2DModel.save_pretrained wrote."
        )
    if not list(where.glob("*.safetensors")):
        raise UserError(f"{where} has no .safetensors: save the network again with UNet2DModel.save_pretrained.")
    made_by = read_config(where / "config.json").get("_class_name", "UNet2DModel")
    if made_by != "UNet2DModel":
        raise UserError(f"{where} holds a {made_by}: only unconditional networks of images serve here, that is, a UNet2DModel.")
    try:
        unet = UNet2DModel.from_pretrained(where, use_safetensors=True, low_cpu_mem_usage=False)
    except Exception as error:  # safetensors, json and size errors, according to what is damaged
        raise UserError(f"{where} is damaged ({type(error).__name__}): copy or download it again.") from error
    pipeline = folder.parent if folder.name == "unet" else folder
    places = (pipeline / "scheduler", folder)
    scheduler = next((place / SCHEDULER for place in places if (place / SCHEDULER).is_file()), None)
    return _of_unet(unet, load_scheduler(scheduler) if scheduler else ho_scheduler(), size)


def load_scheduler(path: Path) -> Any:
    """The betas and the prediction type of a scheduler's JSON file, whichever scheduler of diffusers wrote it."""
    config = read_config(path)
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise UserError(
            f"{path} is of a {config.get('_class_name')}, which has no betas: write an `edm_model` for its network."
        )
    check_name(f"prediction type in {path}", config.get("prediction_type", "epsilon"), PREDICTIONS)
    try:
        return DDPMScheduler.from_config(config)
    except NotImplementedError as error:
        raise UserError(f"{path}: {str(error).split(' for ')[0]}.") from error


def read_config(path: Path) -> dict[str, Any]:
    """The content of a JSON file that diffusers wrote. Raises UserError where it is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: copy or download it again.") from error


def load_hub(name: str, size: int | None) -> DiffusionModel:
    """A model of the Hugging Face hub. What was downloaded once is found again without a network."""
    from huggingface_hub import snapshot_download  # not above: it takes 0.3 s

    try:
        folder = snapshot_download(name, allow_patterns=["*.json", "*.safetensors"])
    except Exception as error:  # of requests, of the hub and of the file system, according to what is missing
        raise UserError(
            f"'{name}' is no file or folder here, and could not be fetched from the Hugging Face hub ({type(error).__name__}): "
            "check the name and the network, or download the model elsewhere and name its folder."
        ) from error
    return load_folder(folder, size)


def load_file_of_weights(name: str, size: int | None) -> DiffusionModel:
    """A checkpoint of another codebase, in one of the LAYOUTS."""
    try:
        content = load_file(name) if name.endswith(".safetensors") else torch.load(name, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and storage errors, according to what is wrong
        raise UserError(f"{name} is damaged, or is no file of weights alone, and nothing else is unpickled.") from error
    try:
        return convert(content, size)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def load_function(name: str, size: int | None) -> DiffusionModel:
    """What a function of the user's returns."""
    made = call_function(name)
    if not isinstance(made, DiffusionModel | UNet2DModel):
        raise UserError(f"{name} returned a {type(made).__name__}, not a UNet2DModel or a DiffusionModel.")
    return load_diffusion_model(made, size)


def call_function(name: str) -> Any:
    """Import `module:function` and call it without arguments. Raises UserError where there is no such function."""
    if not re.fullmatch(FUNCTION, name):
        raise UserError(f"'{name}' is no module:function: write it as in my_models:load.")
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{name} cannot be imported ({error}): put the folder of {module}.py into the environment variable PYTHONPATH, or "
            "correct the name."
        ) from error
    return found()


KINDS = {
    "folder": Kind(lambda name: Path(name).is_dir(), load_folder),
    "checkpoint": Kind(lambda name: Path(name).is_file(), load_file_of_weights),
    "function": Kind(lambda name: re.fullmatch(FUNCTION, name) is not None, load_function),
    "hub": Kind(lambda name: re.fullmatch(r"[\w-]+/[\w.-]+", name) is not None, load_hub),
}


class EDMNetwork(nn.Module):
    """A denoiser D(x, sigma) in the place of a UNet2DModel that predicts the image.

    Step s of the scheduler has the noise level sigma = sqrt((1 - alpha-bar) / alpha-bar), and its noised image, over
    sqrt(alpha-bar), is the image plus sigma times the noise. This is what D is called with.
    """

    def __init__(self, denoiser: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], scheduler: Any) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.alpha_bar = alpha_bars(scheduler).tolist()

    def forward(self, x: torch.Tensor, timestep: int, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Noised images [M, 3, H, W] at step `timestep` + 1 -> (the images,)."""
        alpha_bar = self.alpha_bar[timestep + 1]
        sigma = torch.full((len(x),), ((1 - alpha_bar) / alpha_bar) ** 0.5, device=x.device)
        return (self.denoiser(x / alpha_bar**0.5, sigma),)


def edm_model(denoiser: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], size: int) -> DiffusionModel:
    """A denoiser of Karras et al. (EDM) as a diffusion model. Its steps are those of Ho et al.'s process.

    denoiser: images in [-1, 1] plus noise [M, 3, H, W], and the noise's standard deviation [M] -> the images. size: H = W.
    """
    scheduler = DDPMScheduler.from_config(ho_scheduler().config, prediction_type="sample")
    return DiffusionModel(EDMNetwork(denoiser, scheduler), scheduler, (size, size))


def _of_unet(unet: Any, scheduler: Any, size: int | None) -> DiffusionModel:
    """A UNet2DModel as a diffusion model. Raises UserError for one of other images than [3, H, W], or that wants labels."""
    config = unet.config
    if config.in_channels != 3 or config.out_channels not in (3, 6):
        raise UserError(
            f"the network takes {config.in_channels} channels and returns {config.out_channels}: it must be one of RGB images."
        )
    if getattr(unet, "class_embedding", None) is not None:
        raise UserError("the network wants a class label with each image: take an unconditional one.")
    size = size or config.sample_size
    if size is None:
        raise UserError("the network's config.json has no sample_size: name the size of its images (--unet-size).")
    return DiffusionModel(unet, scheduler, (size, size) if isinstance(size, int) else tuple(size))
