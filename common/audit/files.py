"""Read and check the files of `python -m common.audit`: saved outputs of the audited model and of shadow models.

Only plain arrays in a .npz file are read. Nothing is unpickled, because a pickle from somebody else may run code. Anything that
is wrong with a file raises UserError with one sentence that says what is expected.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.attacks import Outputs
from common.attacks.shadow import SHADOW_ATTACKS, possible_attacks
from common.errors import UserError
from common.metrics.privacy import Floats, phi
from common.pair import Pair

SUM_TOLERANCE = 1e-3  # how far the sum of a row of probabilities may be from 1; enough for float16

# Other formats, by how a file begins, by its suffix, and by its arrays.
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
    """The outputs in a file, and facts about the array that they come from."""

    outputs: Outputs
    array: str  # its name: logits or probabilities
    dtype: str
    saturated: int  # see `count_saturated`


@dataclass(frozen=True, eq=False)
class Shadows:
    """phi of n points, for their true labels, under M shadow models and under the audited model."""

    phi: Floats  # [M, n], under the shadow models
    keep: np.ndarray  # bool [M, n], True where a shadow model was trained on the point
    target: Floats  # [n], under the audited model
    saturated: int  # see `count_saturated`

    @property
    def facts(self) -> dict[str, Any]:
        """For the row: the number of models, the median number of those trained on a point, and attacks that need more."""
        return {
            "models": len(self.keep),
            "median_in_models": float(np.median(self.keep.sum(axis=0))),
            "left_out": sorted(set(SHADOW_ATTACKS) - set(possible_attacks(self.keep))),
        }


def load_outputs(path: Path) -> LoadedOutputs:
    """Load a .npz file with `logits` or `probabilities` [n, C] and `labels` [n]. With both, the logits are used."""
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
    """Load a .npz file with `logits` or `probabilities` [M, n, C] and `keep` [M, n] of M shadow models on n points.

    `outputs` are those of the audited model on the same points, members first. Raises UserError if it is among the shadow
    models. Only one model at a time is held in float64.
    """
    name, values, keep = read_outputs(path, "keep", "logits=[M, n_all, C], keep=[M, n_all] of bool")
    labels = np.concatenate([side.labels for side in outputs])
    expected = len(labels), outputs.members.classes
    if values.ndim != 3 or values.shape[1:] != expected or keep.shape != values.shape[:2] or len(keep) < 2:
        raise UserError(
            f"{path} needs `{name}` of shape [M >= 2, {expected[0]}, {expected[1]}] (members, then non-members) and `keep` of "
            f"shape [M, {expected[0]}], not {values.shape} and {keep.shape}."
        )
    if keep.dtype != np.bool_:
        raise UserError(f"{path} needs `keep` of type bool, not {keep.dtype}: save keep.astype(bool).")
    try:
        shadow_phi = np.stack([phi(to_logits(name, model_values), labels) for model_values in values])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    target_phi = np.concatenate([phi(side.logits, side.labels) for side in outputs])
    same = np.isclose(shadow_phi, target_phi, rtol=1e-3, atol=1e-3).all(axis=1)
    if same.any() and len(np.unique(target_phi.round(6))) > 2:  # models that release labels alone may agree on all points
        raise UserError(
            f"{path}: shadow model {same.argmax()}, counted from 0, answers as the audited model on every point; leave it out, "
            "for a model among its own shadow models seems to leak where nothing does."
        )
    return Shadows(shadow_phi, keep, target_phi, count_saturated(name, values))


def read_outputs(path: Path, second: str, example: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Read the outputs, which are called `logits` or `probabilities`, and the array called `second` from a .npz file.

    Returns the name of the outputs, the outputs and the second array. `example` are the arguments of np.savez that UserError
    recommends.
    """
    try:
        other_format = foreign_format(path)
        if other_format:
            raise UserError(f"{path} is {other_format}: save plain arrays with np.savez(FILE, {example}) and pass that .npz.")
        with np.load(path, allow_pickle=False) as archive:
            name = next((name for name in ("logits", "probabilities") if name in archive.files), None)
            if name is None or second not in archive.files:
                lacking = f"`{second}`" if name else "`logits` or `probabilities`"
                tool = next((f" (it looks like {kind})" for key, kind in BY_ARRAYS.items() if key in archive.files), "")
                raise UserError(
                    f"{path} holds {', '.join(archive.files) or 'nothing'}{tool}, and lacks {lacking}: save it with "
                    f"np.savez(FILE, {example})."
                )
            return name, archive[name], archive[second]
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path} may not be read: give yourself permission to.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise UserError(f"{path} holds arrays of Python objects, which need pickle: save numbers of one shape.") from None
        raise UserError(f"{path} is a damaged .npz file: save it again with np.savez(FILE, {example}).") from error


def foreign_format(path: Path) -> str | None:
    """A description of a file that is not a .npz file, such as "a PyTorch file". None for a .npz file.

    The content decides first, then the suffix. For pickles the suffix decides first, because PyTorch writes pickles too.
    """
    if not path.is_file():
        return "no file that exists"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if all(name.endswith(".npy") for name in names):
            return None
        return PYTORCH if any(name.endswith("/data.pkl") for name in names) else "a zip file of something else than arrays"
    with open(path, "rb") as file:
        head = file.read(8)
    by_content = next((kind for first_bytes, kind in BY_FIRST_BYTES.items() if head.startswith(first_bytes)), None)
    by_name = BY_SUFFIX.get(path.suffix.lower())
    return (by_name or by_content) if by_content == PICKLE else (by_content or by_name or "no .npz file")


def to_logits(name: str, values: np.ndarray) -> Floats:
    """Logits [.., C] as float64: `values` as they are if their `name` is logits, else the logarithm of probabilities.

    An exact 0 counts as the smallest positive number of its type, so that all other probabilities keep their order. Raises
    UserError for NaN or infinite values, and for values that are not what their name says.
    """
    if values.dtype.kind not in "fiu":
        raise UserError(f"`{name}` must be real numbers, not of type {values.dtype}.")
    narrow = values.dtype in (np.float16, np.float32)
    smallest = float(np.finfo(values.dtype if narrow else np.float64).smallest_subnormal)
    values = values.astype(np.float64)
    not_finite = int((~np.isfinite(values)).any(axis=-1).sum())
    if not_finite:
        raise UserError(
            f"{not_finite} of {len(values)} rows of `{name}` hold NaN or infinite values: check the model's outputs."
        )
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
    """How many rows of probabilities are 0 for all classes but one. Such rows tie, because rounding hides how they differ."""
    return int(((values > 0).sum(axis=-1) == 1).sum()) if name == "probabilities" else 0
