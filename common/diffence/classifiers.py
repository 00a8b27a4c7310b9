"""Classifiers of the user's own: loaded from files and code, normalised, saved so that no code of theirs is needed again.

A TorchScript or torch.export file is a program. It may run code when it is loaded, so load only files that you trust.
"""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from common.diffence.sources import call_function
from common.errors import UserError
from common.files import atomic_write
from common.models import Classifier

CPU = torch.device("cpu")


class Exported(nn.Module):
    """A program of torch.export as a module. It is in evaluation mode for good."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program.module()

    def train(self, mode: bool = True) -> "Exported":
        """Change nothing, because the program cannot be changed."""
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> logits [B, C]."""
        return self.program(images)


def load_classifier(source: str | Path | nn.Module, device: torch.device = CPU) -> nn.Module:
    """A classifier on the device, in evaluation mode.

    source: a module, a file of torch.export (.pt2) or TorchScript, or `module:function`, a function that returns a module.
    """
    if isinstance(source, nn.Module):
        return source.to(device).eval()
    path = Path(source)
    if not path.is_file():
        made = call_function(str(source)) if ":" in str(source) else None
        if not isinstance(made, nn.Module):
            raise UserError(f"'{source}' is no file here, and no module:function that returns a torch.nn.Module.")
        return made.to(device).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript announces its end
            if path.suffix == ".pt2":
                return Exported(move_to_device_pass(torch.export.load(path), device))
            return torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # zip, pickle, json and version errors, according to what the file is
        raise UserError(
            f"{path} is neither a file of torch.export (.pt2) nor of TorchScript: weights alone do not tell the network, so "
            "name a module:function that returns it with its weights."
        ) from error


def normalised(classifier: nn.Module, transform: Any = None) -> nn.Module:
    """The classifier for images in [0, 1].

    transform: None where the classifier normalises by itself. Of torchvision's Normalize, or of the transforms of its
    pretrained weights, the mean and the standard deviation are used. Any other torch.nn.Module is called with the images first.
    """
    if transform is None:
        return classifier
    if hasattr(transform, "mean") and hasattr(transform, "std"):
        return Classifier(classifier, transform.mean, transform.std)
    if not isinstance(transform, nn.Module):
        raise UserError("transform must be torchvision's Normalize, or a torch.nn.Module that takes images [B, 3, H, W].")
    return nn.Sequential(transform, classifier)


def in_its_type(images: torch.Tensor, classifier: nn.Module) -> torch.Tensor:
    """The images in the type of the classifier's weights: that of its first floating-point parameter, if there is one."""
    types = (weight.dtype for weight in classifier.parameters() if weight.is_floating_point())
    return images.to(next(types, images.dtype))


def crop_size(transform: Any) -> tuple[int, int] | None:
    """(H, W) of the images that the transforms of torchvision's pretrained weights make. None for any other transform."""
    size = getattr(transform, "crop_size", None)
    return None if size is None else (size[0], size[-1])


def save_classifier(classifier: nn.Module, folder: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Write a classifier of images [B, 3, *size] into the folder; returns what `restore_classifier` needs to know.

    It is exported by torch.export, and a TorchScript module is written as such. Raises UserError for a classifier that cannot
    be exported.
    """
    facts: dict[str, Any] = {"mean": None, "std": None}
    if isinstance(classifier, Classifier):
        facts = {"mean": classifier.mean.flatten().tolist(), "std": classifier.std.flatten().tolist()}
        classifier = classifier.net
    if isinstance(classifier, torch.jit.ScriptModule):
        atomic_write(folder / "classifier.ts", _quietly(torch.jit.save, classifier))
        return facts | {"file": "classifier.ts"}
    if isinstance(classifier, Exported):
        classifier = classifier.program
    try:
        batches = ({0: torch.export.Dim.DYNAMIC},)  # AUTO would save some classifiers for this one batch size
        with torch.no_grad():  # on the CPU, so that the program is not bound to a GPU
            on_cpu = copy.deepcopy(classifier).cpu()
            images = in_its_type(torch.zeros(2, 3, *size), on_cpu)
            program = torch.export.export(on_cpu, (images,), dynamic_shapes=batches)
    except Exception as error:  # of torch.export, of torch.fx and of sympy, according to what it cannot follow
        raise UserError(
            f"torch.export cannot follow the classifier for batches of any size ({type(error).__name__}): save without it in "
            "Python, by save_pretrained(folder, with_classifier=False), and pass it to from_pretrained(folder, classifier=...)."
        ) from error
    atomic_write(folder / "classifier.pt2", lambda file: torch.export.save(program, file))
    return facts | {"file": "classifier.pt2"}


def restore_classifier(folder: Path, facts: dict[str, Any], device: torch.device) -> nn.Module:
    """The classifier that `save_classifier` wrote, on the device."""
    classifier = load_classifier(folder / facts["file"], device)
    return classifier if facts["mean"] is None else Classifier(classifier, facts["mean"], facts["std"]).to(device)


def _quietly(function: Callable[..., Any], *arguments: Any) -> Callable[[Any], Any]:
    """A function of a file that calls `function(*arguments, file)` without its warnings."""

    def call(file: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments, file)

    return call
