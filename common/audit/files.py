"""What `python -m common.audit` reads: saved outputs of a target model and of shadow models, checked before any attack.

Only plain arrays in a .npz are read, never a pickle: a file from somebody else may run code when unpickled. Whatever is
wrong is one sentence that says what is expected.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.attacks import Outputs
from common.attacks.shadow import SHADOW_ATTACKS, possible
from common.errors import UserError
from common.metrics.privacy import Floats, phi
from common.pair import Pair

SUM_TOLERANCE = 1e-3  # of a row of probabilities: enough for float16

PICKLE = "a pickle, such as TF Privacy's AttackResults.save writes, which may run code when it is opened"
PYTORCH = "a PyTorch file"
KERAS = "an HDF5 or Keras file"
ONE_ARRAY = "a .npy file, which holds one array only"
BY_FIRST_BYTES = {b"\x93NUMPY": ONE_ARRAY, b"\x80": PICKLE, b"\x89HDF": KERAS, b"PK": "a damaged .npz file"}
BY_SUFFIX = {
    **dict.fromkeys((".pt", ".pth", ".ckpt"), PYTORCH),
    **dict.fromkeys((".pkl", ".pickle"), PICKLE),
    **dict.fromkeys((".csv", ".tsv", ".txt", ".json"), "a text file"),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), KERAS),
}
BY_ARRAYS = {"memberships": "a result of ML Privacy Meter", "logits_train": "the fields of TF Privacy's AttackInputData"}


@dataclass(frozen=True, eq=False)
class LoadedOutputs:
    """The outputs in a file, the name and number type of the array they came from, and how many of its rows tie as sure."""

    outputs: Outputs
    array: str
    dtype: str
    saturated: int  # see `count_saturated`


@dataclass(frozen=True, eq=False)
class Shadows:
    """phi float64 [M, n] of M shadow models for the true labels of n points, and `keep` bool [M, n]: trained on it."""

    phi: Floats
    keep: np.ndarray
    target: Floats  # [n], phi of the audited model
    saturated: int

    @property
    def left_out(self) -> list[str]:
        """The attacks that these shadow models do not allow."""
        return sorted(set(SHADOW_ATTACKS) - set(possible(self.keep)))


def load_outputs(path: Path) -> LoadedOutputs:
    """The outputs in a .npz with `logits` or `probabilities` [n, C] and `labels` [n]; logits win where it has both."""
    name, values, labels = read_outputs(path, "labels", "logits=[n, C], labels=[n]")
    if values.ndim != 2 or values.shape[1] < 2 or labels.shape != values.shape[:1] or labels.size == 0:
        raise UserError(
            f"{path} needs `{name}` of shape [n, C >= 2] and `labels` of shape [n], not {values.shape} and {labels.shape}."
        )
    try:
        outputs = Outputs(to_logits(name, values), labels)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return LoadedOutputs(outputs, name, str(values.dtype), count_saturated(name, values))


def load_shadows(path: Path, outputs: Pair[Outputs]) -> Shadows:
    """The shadow models' phi and `keep` in a .npz; one model at a time is held in float64. The target is refused among them."""
    name, values, keep = read_outputs(path, "keep", "logits=[M, n_all, C], keep=[M, n_all] of bool")
    labels = np.concatenate([side.labels for side in outputs])
    wanted = len(labels), outputs.members.classes
    if values.ndim != 3 or values.shape[1:] != wanted or keep.shape != values.shape[:2] or len(keep) < 2:
        raise UserError(
            f"{path} needs `{name}` of shape [M >= 2, {wanted[0]}, {wanted[1]}] (members, then non-members) and `keep` of "
            f"shape [M, {wanted[0]}], not {values.shape} and {keep.shape}."
        )
    if keep.dtype != np.bool_:
        raise UserError(f"{path} needs `keep` of type bool, not {keep.dtype}: save keep.astype(bool).")
    try:
        shadow_phi = np.stack([phi(to_logits(name, one), labels) for one in values])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    target_phi = np.concatenate([phi(side.logits, side.labels) for side in outputs])
    same = np.isclose(shadow_phi, target_phi, rtol=1e-3, atol=1e-3).all(axis=1)
    if same.any() and len(np.unique(target_phi.round(6))) > 2:  # of labels alone all may agree
        raise UserError(
            f"{path}: shadow model {same.argmax()}, counted from 0, answers as the audited model on every point; leave it out, "
            "for a model among its own shadow models seems to leak where nothing does."
        )
    return Shadows(shadow_phi, keep, target_phi, count_saturated(name, values))


def read_outputs(path: Path, other: str, save: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The name of the outputs' array in a .npz, that array, and the array called `other`; `save` says what to save."""
    try:
        kind = foreign_format(path)
        if kind:
            raise UserError(f"{path} is {kind}: save plain arrays with np.savez(FILE, {save}) and pass that .npz.")
        with np.load(path, allow_pickle=False) as archive:
            name = next((name for name in ("logits", "probabilities") if name in archive.files), None)
            if name is None or other not in archive.files:
                tool = next((f" (it looks like {made})" for key, made in BY_ARRAYS.items() if key in archive.files), "")
                raise UserError(
                    f"{path} holds {', '.join(archive.files) or 'nothing'}{tool}, not `logits` or `probabilities` and "
                    f"`{other}`: save it with np.savez(FILE, {save})."
                )
            return name, archive[name], archive[other]
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path} may not be read: give yourself permission to.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise UserError(f"{path} holds arrays of Python objects, which need pickle: save numbers of one shape.") from None
        raise UserError(f"{path} is a damaged .npz file: save it again with np.savez(FILE, {save}).") from error


def foreign_format(path: Path) -> str | None:
    """What a file is if it is no .npz, in words, by its content first and then by its name; None for a .npz."""
    if not path.is_file():
        return "no file that exists"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if all(name.endswith(".npy") for name in names):
            return None
        return PYTORCH if any(name.endswith("/data.pkl") for name in names) else "a zip file of something else than arrays"
    with open(path, "rb") as file:
        start = file.read(8)
    by_content = next((kind for first, kind in BY_FIRST_BYTES.items() if start.startswith(first)), None)
    by_name = BY_SUFFIX.get(path.suffix.lower())
    return (by_name or by_content) if by_content == PICKLE else (by_content or by_name or "no .npz file")


def to_logits(name: str, values: np.ndarray) -> Floats:
    """Logits [.., C] as they are; of probabilities the logarithm, in which an exact 0 counts as the smallest number that its
    type can hold, so that all others keep their order. Checks both kinds.
    """
    if values.dtype.kind not in "fiu":
        raise UserError(f"`{name}` must be real numbers, not of type {values.dtype}.")
    narrow = values.dtype in (np.float16, np.float32)
    smallest = float(np.finfo(values.dtype if narrow else np.float64).smallest_subnormal)
    values = values.astype(np.float64)
    bad = int((~np.isfinite(values)).any(axis=-1).sum())
    if bad:
        raise UserError(f"{bad} of {len(values)} rows of `{name}` hold NaN or infinite values: check the model's outputs.")
    distributions = (values >= 0).all(axis=-1) & (np.abs(values.sum(axis=-1) - 1) <= SUM_TOLERANCE)
    if name == "logits":
        if distributions.all():
            raise UserError("`logits` holds probabilities (every row sums to 1): save them under the name `probabilities`.")
        return values
    if not distributions.all():
        raise UserError(
            f"{int((~distributions).sum())} of {len(values)} rows of `probabilities` are negative or do not sum to 1: save "
            "logits under the name `logits`, or apply softmax."
        )
    return np.log(np.maximum(values, smallest))


def count_saturated(name: str, values: np.ndarray) -> int:
    """How many rows of probabilities hold a single class, all others being 0: what set them apart is rounded away."""
    return int(((values > 0).sum(axis=-1) == 1).sum()) if name == "probabilities" else 0
