"""A classifier, a diffusion model and some images become a ProtectedClassifier."""

import secrets
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.config import SCENARIOS
from common.data.folder import list_images, read_image
from common.diffence.candidates import query_ids
from common.diffence.classifiers import crop_size, load_classifier, normalised
from common.diffence.protect import ProtectedClassifier
from common.diffence.reconstruct import DiffusionModel, DiffusionReconstructor
from common.diffence.select import CandidateLogits, Selector, fit_selector
from common.diffence.sources import load_diffusion_model
from common.errors import UserError, check_name
from common.pair import Pair
from common.run import pick_device

Images = str | Path | torch.Tensor | Iterable[Any]
Size = int | tuple[int, int]


def protect(
    classifier: nn.Module | str | Path,
    unet: Any,
    members: Images | None = None,
    non_members: Images | None = None,
    *,
    scenario: str = "3",
    t: int = 160,
    n: int = 30,
    size: Size | None = None,
    transform: Any = None,
    key: bytes | None = None,
    draws: int = 1,
    batch: int = 256,
    seed: int | None = None,
    device: str = "auto",
) -> ProtectedClassifier:
    """Put Diffence before a classifier, and fit the interval of scenario 1 or 2 (paper Section III-B2).

    classifier: of images [B, 3, H, W], returning logits; a module, or what `load_classifier` takes.
    unet: the diffusion model, as `load_diffusion_model` takes it: a folder, a name of the hub, a checkpoint, a UNet2DModel.
    members, non_members: images that the classifier was trained on, and others, for scenarios 1 (both) and 2 (members): a
        folder, a tensor [n, 3, H, W] in [0, 1], or a DataLoader whose batches are images or (images, ...).
    size: H = W or (H, W) of the images. Files of another size are resized and cropped to it (`read_image`). By default, that
        of the first image.
    transform: the normalisation, if it is not inside the classifier (`normalised`).
    t, n, key, draws, batch: as in DiffusionReconstructor and ProtectedClassifier. device: auto, cpu or cuda.
    seed: of the noise, for experiments that are to be repeated. By default nobody can guess the noise: without a key the seed
        is drawn at random, and with a key it is 0.

    Shows a progress bar. Raises UserError, in one sentence, for what does not fit.
    """
    check_name("scenario", scenario, SCENARIOS)
    needed = {"1": ("members", "non_members"), "2": ("members",)}.get(scenario, ())
    given = {"members": members, "non_members": non_members}
    for name in needed:
        if given[name] is None:
            raise UserError(f"scenario {scenario} needs {name.replace('_', '-')}: pass {name}, or take scenario 3.")
    place = pick_device(device)
    net = normalised(load_classifier(classifier, place), transform).to(place)
    if seed is None:
        seed = secret_seed() if key is None else 0
    reconstruct = load_reconstructor(unet, t, seed, place)
    protected = ProtectedClassifier(net, reconstruct, Selector(scenario), n, draws, batch, key)
    wanted = as_size(size) or crop_size(transform)
    batches = {name: read_batches(images, wanted, batch) for name, images in given.items() if images is not None}
    for name in batches:
        first = next(batches[name], None)
        if first is None:
            raise UserError(f"there are no {name.replace('_', '-')}: pass at least one image.")
        wanted, batches[name] = wanted or (first.shape[-2], first.shape[-1]), chain([first], batches[name])
    protected.size = wanted
    if wanted is not None:
        probe(protected, place)
    fit = {name: collect(protected, name, batches[name], place) for name in needed}
    if fit:
        protected.selector = fit_selector(scenario, Pair(fit["members"], fit.get("non_members", fit["members"])))
    return protected


def probe(protected: ProtectedClassifier, device: torch.device) -> int:
    """The number of classes, from one call with a random image.

    Raises UserError where the classifier cannot take an image of its size, and where it returns no logits.
    """
    height, width = protected.size or (0, 0)
    try:
        with torch.inference_mode():
            return protected.logits(random_image((height, width)).to(device)).shape[1]
    except UserError:  # which says by itself what is wrong
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"the classifier fails on an image of {height} x {width} ({reason}): name its size (size, --size)."
        ) from error


def random_image(size: tuple[int, int]) -> torch.Tensor:
    """Always the same one, [1, 3, *size]. The user's generator stays as it is."""
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))


def secret_seed() -> int:
    """A seed of noise that nobody can guess."""
    return secrets.randbits(62)


def load_reconstructor(unet: Any, t: int, seed: int, device: torch.device, size: int | None = None) -> DiffusionReconstructor:
    """A reconstructor with the diffusion model of a source, on the device. `size` is that of the model's images, if given."""
    model = load_diffusion_model(unet, size)
    return DiffusionReconstructor(DiffusionModel(model.unet.to(device), model.scheduler, model.size), t, seed=seed)


def as_size(size: Size | None) -> tuple[int, int] | None:
    """(H, W) of a size, which may be H = W."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def read_batches(images: Any, size: tuple[int, int] | None, batch: int) -> Iterator[torch.Tensor]:
    """The images in batches [b, 3, H, W]. A file that is no image is left out, and a sentence on stderr says so."""
    if isinstance(images, str | Path):
        files = list_images(Path(images))
        for start in range(0, len(files), batch):
            positions, batch_images = read_files(files[start : start + batch], size)
            if positions:
                yield batch_images
    elif torch.is_tensor(images):
        yield from images.split(batch)
    else:
        for item in images:
            batch_images = item if torch.is_tensor(item) else item[0]
            if not torch.is_tensor(batch_images):
                raise UserError(
                    f"images come as a folder, a tensor [n, 3, H, W] or a DataLoader, not as a {type(images).__name__}."
                )
            yield batch_images


def read_files(files: list[Path], size: tuple[int, int] | None) -> tuple[list[int], torch.Tensor]:
    """Which of the files are images, and these images [b, 3, H, W], b >= 0. Raises UserError where their sizes differ."""
    positions: list[int] = []
    images: list[torch.Tensor] = []
    for position, path in enumerate(files):
        try:
            image = read_image(path, size)
        except UserError as error:
            tqdm.write(f"left out: {error}", file=sys.stderr)
            continue
        if images and image.shape != images[0].shape:
            raise UserError(
                f"{path} is {image.shape[1]} x {image.shape[2]}, others are {images[0].shape[1]} x {images[0].shape[2]}: "
                "name the size to which all are resized (size, --size)."
            )
        positions.append(position)
        images.append(image)
    return positions, torch.stack(images) if images else torch.empty(0, 3, *(size or (0, 0)))


def collect(
    protected: ProtectedClassifier, side: str, batches: Iterable[torch.Tensor], device: torch.device
) -> CandidateLogits:
    """The logits of a side's images and of all their candidates."""
    parts, count = [], 0
    with tqdm(desc=side.replace("_", "-"), unit="image", smoothing=0.05, disable=None) as progress:
        for images in batches:
            for few in images.split(max(1, protected.batch // protected.n)):
                queries = query_ids(side, range(count, count + len(few)))
                parts.append(protected.all_logits(few.to(device), queries))
                count += len(few)
                progress.update(len(few))
    return CandidateLogits(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("original", "candidates")))
