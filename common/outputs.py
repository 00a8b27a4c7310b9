"""What a classifier answers: logits on the evaluated images and on all their candidates, computed once and kept."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.data.partition import Examples, Split, pools
from common.diffence.candidates import candidate_settings, draw_all, shards
from common.diffence.select import FitPoints
from common.errors import UserError
from common.files import read_arrays, sha256, write_arrays
from common.run import Run
from common.targets import model_path, weights_path
from common.training import predict


@dataclass(frozen=True)
class Side:
    """One side's answers: logits float32 of the originals [n, C] and of the candidates [n, N, C], labels int64 [n]."""

    original: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray

    def fit_points(self, places: range) -> FitPoints:
        where = slice(places.start, places.stop)
        return FitPoints(self.candidates[where], self.original[where])


def collect(run: Run, name: str, protocol: str, classifier: nn.Module, split: Split) -> dict[str, Side]:
    """Answers of a defense's classifier on both sides' evaluated images; candidates are drawn where they are missing."""
    sides = {"members": split.members, "non_members": split.non_members}
    count = len(pools(run.config.data, protocol).used)
    draw_all(run, split, protocol)
    return {side: _collect_side(run, name, protocol, classifier, side, examples, count) for side, examples in sides.items()}


def _collect_side(run: Run, name: str, protocol: str, classifier: nn.Module, side: str, examples: Examples, count: int) -> Side:
    path = run.outputs_dir / f"{name}-{protocol}-{side}.npz"
    settings: dict[str, Any] = {
        "weights": sha256(weights_path(run, name, protocol)),
        "options": run.config.defenses.get(name, {}),  # hamp.test_time answers otherwise with the same weights
        "n": run.config.diffence.n,
        "count": count,
        "candidates": candidate_settings(run),
    }
    stored = read_arrays(path)
    if stored and stored[0] == settings:  # otherwise it costs classifier passes only
        return Side(**stored[1])
    original = predict(classifier, examples.take(slice(count)), run.device).numpy()
    candidates = np.empty((count, run.config.diffence.n, original.shape[1]), dtype=np.float32)
    done = 0
    with tqdm(total=count, desc=f"{name} on candidates of {side.replace('_', '-')}", unit="image", disable=None) as progress:
        for drawn in shards(run, side, count):
            candidates[done : done + len(drawn)] = classify(classifier, drawn, run.device)
            done += len(drawn)
            progress.update(len(drawn))
    for logits in (original, candidates):
        if not np.isfinite(logits).all():
            raise UserError(f"the classifier {model_path(run, name)} returns NaN or infinite logits: train it again.")
    answers = Side(original, candidates, examples.labels[:count].numpy())
    write_arrays(path, settings, **vars(answers))
    return answers


@torch.inference_mode()
def classify(classifier: nn.Module, candidates: torch.Tensor, device: torch.device, batch: int = 500) -> np.ndarray:
    """Logits [b, N, C] of candidates [b, N, 3, H, W] in [0, 1]."""
    rows = candidates.flatten(0, 1).split(batch)
    logits = torch.cat([classifier(part.to(device)).float().cpu() for part in rows])
    return logits.view(*candidates.shape[:2], -1).numpy()
