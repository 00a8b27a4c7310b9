"""Read the authors' files, check them, and write them where this repository's commands look for them."""

import io
import pickle
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config import Data
from common.data.partition import load_split, write_partition
from common.defenses import DEFENSES
from common.diffence.ddpm import build_unet, ddpm_settings
from common.diffence.sources import load_diffusion_model
from common.errors import UserError
from common.files import load_checkpoint, read_json, save_checkpoint, sha256, write_json
from common.run import Run
from common.training.targets import settings_of, weights_path

SHUFFLES = ("cifar_shuffle.pkl", "svhn_shuffle.pkl")
# What NumPy pickles of an array, and of the single numbers in a checkpoint. None of it runs code.
NUMPY_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
MAKE_NUMBER: Any = np.float64(0).__reduce__()[0]  # NumPy 2 has it under another name than NumPy 1
NUMPY_NUMBERS: list[Any] = [
    (MAKE_NUMBER, "numpy.core.multiarray.scalar"),
    (MAKE_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]


def take_over(run: Run, source: Path, root: Path) -> Iterator[str]:
    """Take over everything that the authors' folder `source` of a data set holds; yields a line about each file.

    `root` is the folder of the official images. What was taken over before stays. Raises UserError, in one sentence, for files
    that are missing, damaged or of another architecture, and where something else is in their place already.
    """
    shuffle = next((source / name for name in SHUFFLES if (source / name).is_file()), None)
    if shuffle is None:
        raise UserError(f"{source} has no {' or '.join(SHUFFLES)}: name a data set's folder of the authors' release.")
    order = read_array(shuffle)
    take_partition(run, order, root)
    yield f"{run.partition_dir}: the authors' members and non-members"
    for name in DEFENSES:
        places = (source / f"final-all-models/resnet/{place}.pth.tar" for place in (name, f"{name}/{name}"))
        path = next((place for place in places if place.is_file()), None)
        if path is not None:
            yield f"{take_classifier(run, name, path)}: {name}, from {path}"
    half = source / "diff_defense" / "diff_models" / "half.pt"
    if half.is_file():
        yield f"{take_diffusion_model(run, half)}: the diffusion model, from {half}"


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler of one NumPy array. Every other name in the file is refused, so that no code of the file runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NUMPY_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def read_array(path: Path) -> np.ndarray:
    """The permutation in a pickle of NumPy: int64 [n]. Raises UserError for anything else."""
    try:
        array = ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # of pickle and of NumPy, according to what is in the file
        raise UserError(f"{path} is damaged, or holds something else than an array, which is not unpickled.") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not np.array_equal(np.sort(array), np.arange(len(array))):
        raise UserError(f"{path} holds no permutation of the training images: take the file of the authors' release.")
    return array.astype(np.int64)


def released_indices(order: np.ndarray, data: Data, train_size: int, test_size: int) -> dict[str, np.ndarray]:
    """The authors' members, reference images and non-members, so that our pools under protocol `released` are theirs.

    order: their permutation of the training images, of which the first `data.members` are the members. They attack the first
    images of the first half of each side (known) and of its second half (scored). We move those of the second half up behind
    the known ones. Test images are in the order of NumPy's generator at seed 2000.
    """
    if len(order) != train_size or data.members + data.reference > train_size or data.non_members > test_size:
        raise UserError(
            f"the permutation has {len(order)} images and the data set {train_size} + {test_size}: take the folder of the same "
            "data set, and a profile whose `data` section has the paper's numbers."
        )
    test = np.arange(test_size)
    np.random.RandomState(2000).shuffle(test)

    def in_our_order(side: np.ndarray, half: int) -> np.ndarray:
        scored = data.scored - data.known
        known_first = [side[: data.known], side[half : half + scored], side[data.known : half], side[half + scored :]]
        return np.concatenate(known_first)

    return {
        "members": in_our_order(order[: data.members], data.members // 2),
        "reference": order[data.members : data.members + data.reference],
        "non_members": in_our_order(test, test_size // 2)[: data.non_members],
    }


def take_partition(run: Run, order: np.ndarray, root: Path) -> None:
    """Write the authors' partition. Raises UserError where the run has another one already."""
    manifest = run.partition_dir / "manifest.json"
    if not manifest.is_file():
        write_partition(run, root, partial(released_indices, order))
        return
    load_split(run)  # raises where it is damaged
    members = read_json(manifest, "python -m common.release")["index"]["members"]
    if set(members) != set(order[: run.config.data.members].tolist()):
        raise UserError(
            f"{run.partition_dir} has other members than the authors': pass --profile authors, or a profile without a "
            "partition."
        )


def take_classifier(run: Run, defense: str, path: Path) -> Path:
    """Write the authors' classifier as the checkpoint that protocol `released` evaluates; returns its path."""
    if run.config.model.name != "resnet18":
        raise UserError(f"the authors' classifiers are ResNet-18s: set model.name=resnet18, not {run.config.model.name}.")
    target, digest = weights_path(run, defense, "released"), sha256(path)
    if target.is_file():
        if (
            load_checkpoint(target, f"move it away, then python -m common.release {run.dataset}")["facts"].get("sha256")
            != digest
        ):
            raise UserError(f"{target} is another classifier than {path}: move it away, or take another profile.")
        return target
    content = read_checkpoint(path)
    if not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{path} has no `state_dict`: take a file of the authors' final-all-models.")
    model = DEFENSES[defense].build(run)
    state = rename_resnet(content["state_dict"], run.config.model.depth or 2)
    try:
        model.load_state_dict(state | {name: value for name, value in model.state_dict().items() if name in ("mean", "std")})
    except RuntimeError as error:
        difference = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds another network than {defense} on {run.dataset} has ({difference}).") from error
    facts = {"origin": "the authors' release", "sha256": digest, "epoch": int(content.get("epoch", -1))}
    save_checkpoint(target, {"model": model.state_dict(), "settings": settings_of(run, defense), "history": [], "facts": facts})
    return target


def take_diffusion_model(run: Run, path: Path) -> Path:
    """Write the authors' diffusion model where `train_ddpm.py` writes ours; returns its folder."""
    folder, digest = run.ddpm_dir / "unet", sha256(path)
    if (folder / "settings.json").is_file():
        if not (folder / "origin.json").is_file() or read_json(folder / "origin.json", "delete it")["sha256"] != digest:
            raise UserError(f"{folder} is another diffusion model than {path}: move it away, or take another profile.")
        return folder
    unet: Any = load_diffusion_model(path).unet
    wanted = {name: value.shape for name, value in build_unet(run.config.ddpm).state_dict().items()}
    if {name: value.shape for name, value in unet.state_dict().items()} != wanted:
        raise UserError(f"{path} holds another network than the profile's `ddpm` section describes: take that of paper.yaml.")
    unet.save_pretrained(folder)
    write_json(folder / "origin.json", {"origin": "the authors' release", "sha256": digest})
    write_json(folder / "settings.json", ddpm_settings(run))  # last, for it makes the folder complete
    return folder


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of one of the authors' .pth.tar files: tensors and numbers, some of them NumPy's."""
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and storage errors, according to what is wrong
        raise UserError(f"{path} is damaged, or holds more than tensors and numbers, which is not unpickled.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} has no `state_dict`: take a file of the authors' final-all-models.")
    return content


def rename_resnet(state: dict[str, torch.Tensor], depth: int) -> dict[str, torch.Tensor]:
    """The tensors of the authors' ResNet-18 under the names of ours, which has `depth` blocks in each stage.

    Theirs has stages conv2_x to conv5_x behind the first layer, and ours numbers all blocks through.
    """

    def block(match: re.Match[str]) -> str:
        stage, number, part = int(match[1]) - 2, int(match[2]), {"residual_function": "residual"}.get(match[3], match[3])
        return f"net.features.{3 + depth * stage + number}.{part}."

    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^(module\.|_module\.)+", "", name)
        name = re.sub(r"^conv1\.", "net.features.", name)
        name = re.sub(r"^fc\.", "net.head.", name)
        renamed[re.sub(r"^conv(\d)_x\.(\d+)\.(residual_function|shortcut)\.", block, name)] = tensor
    return renamed
