"""Outputs of a model with a planted signal, as the tests of the audit use them."""

import math
from pathlib import Path

import numpy as np

CLASSES = 5


def logits_of(phi: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logits whose phi of the label is `phi`: z_y - logsumexp of the others, which are all 0."""
    logits = np.zeros((*phi.shape, CLASSES))
    np.put_along_axis(logits, np.broadcast_to(labels, phi.shape)[..., None], phi[..., None] + math.log(CLASSES - 1), -1)
    return logits


def save_planted(folder: Path, shift: float, points: int, shadows: int = 0, seed: int = 0) -> dict[str, Path]:
    """Members' phi ~ N(shift, 1) and non-members' N(0, 1); the shadow models' likewise, each point IN half of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, 2 * points)
    member = np.arange(2 * points) < points
    target = logits_of(rng.normal(size=2 * points) + shift * member, labels)
    files = {name: folder / f"{name}.npz" for name in ("members", "non_members")}
    np.savez(files["members"], logits=target[:points], labels=labels[:points])
    np.savez(files["non_members"], logits=target[points:], labels=labels[points:])
    if shadows:
        keep = rng.random((shadows, 2 * points)).argsort(axis=0) < shadows // 2
        files["shadows"] = folder / "shadows.npz"
        np.savez(files["shadows"], logits=logits_of(rng.normal(size=keep.shape) + shift * keep, labels), keep=keep)
    return files
