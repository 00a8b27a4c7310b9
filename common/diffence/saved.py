"""A protected classifier as a folder: protected.json, the diffusion model as diffusers writes it, and the classifier.

protected.json is written last. A folder without it counts as incomplete. The key is never written.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import nn

from common.diffence.classifiers import load_classifier, restore_classifier, save_classifier
from common.diffence.reconstruct import DiffusionModel, DiffusionReconstructor
from common.diffence.select import Selector
from common.diffence.sources import load_diffusion_model
from common.errors import UserError
from common.files import read_json, write_json

SETTINGS = "protected.json"
FORMAT = 1  # of the folder


def write_parts(
    folder: Path,
    classifier: nn.Module | None,
    reconstruct: Any,
    selector: Selector,
    settings: dict[str, Any],
) -> None:
    """Write the parts of a protected classifier. `settings` are arguments of ProtectedClassifier, as plain JSON.

    Without `classifier`, the folder holds all but the classifier. A network that is no UNet2DModel is left out too. Raises
    UserError for another reconstructor than DiffusionReconstructor.
    """
    if not isinstance(reconstruct, DiffusionReconstructor):
        raise UserError("only a ProtectedClassifier around a DiffusionReconstructor can be saved.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)
    model, facts = reconstruct.model, None
    unet: Any = model.unet
    stored = isinstance(unet, UNet2DModel)
    if stored:
        unet.save_pretrained(folder / "diffusion" / "unet")
        model.scheduler.save_pretrained(folder / "diffusion" / "scheduler")
    if classifier is not None:
        facts = save_classifier(classifier, folder, settings["size"])
    interval = [selector.low, selector.high] if np.isfinite(selector.low) else None
    content = {
        "format": FORMAT,
        "torch": torch.__version__,
        "scenario": selector.scenario,
        "interval": interval,
        "fallback": selector.fallback,
        "settings": settings,
        "classifier": facts,
        "diffusion": {
            "stored": stored,
            "size": model.size,
            "t": reconstruct.t,
            "steps": len(reconstruct.steps) - 1,
            "forward": reconstruct.rule,
            "seed": reconstruct.seed,
            "bf16": reconstruct.bf16,
        },
    }
    write_json(folder / SETTINGS, content)


def read_parts(
    folder: Path, classifier: str | Path | nn.Module | None, unet: Any, device: torch.device
) -> tuple[nn.Module, DiffusionReconstructor, Selector, dict[str, Any]]:
    """The parts that `write_parts` wrote, on the device. `classifier` and `unet` replace what is stored, or was left out."""
    content = read_settings(folder)
    diffusion = dict(content["diffusion"])
    stored, size = diffusion.pop("stored"), diffusion.pop("size")
    if classifier is None and content["classifier"] is None:
        raise UserError(f"{folder} was saved without its classifier: pass it as from_pretrained(folder, classifier=...).")
    if unet is None and not stored:
        raise UserError(f"{folder} was saved without its diffusion model: pass it as from_pretrained(folder, unet=...).")
    facts = content["classifier"]
    net = restore_classifier(folder, facts, device) if classifier is None else load_classifier(classifier, device)
    model = load_diffusion_model(folder / "diffusion" if unet is None else unet)
    model = DiffusionModel(model.unet.to(device), model.scheduler, None if size is None else tuple(size))
    low, high = content["interval"] or (-np.inf, np.inf)
    selector = Selector(content["scenario"], low, high, content["fallback"])
    return net, DiffusionReconstructor(model, **diffusion), selector, content["settings"]


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of protected.json. Raises UserError where it is missing, damaged, or of another format."""
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder} holds no protected classifier: make one with python -m common.protect, or save_pretrained.")
    content = read_json(folder / SETTINGS, "python -m common.protect")
    if content.get("format") != FORMAT:
        raise UserError(f"{folder} was saved by another version: protect the classifier again.")
    return content
