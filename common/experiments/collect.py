"""The logits of a classifier on the evaluated images and on all their candidates, computed once and stored."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.data.partition import Examples, Split, evaluation_pools
from common.diffence.candidates import candidate_settings, draw_all, shards
from common.diffence.select import CandidateLogits
from common.errors import UserError
from common.files import cached_arrays, sha256
from common.pair import SIDES, Pair
from common.run import Run
from common.training.loop import predict
from common.training.targets import model_path, weights_path


@dataclass(frozen=True)
class LabelledLogits(CandidateLogits):
    """Logits float32 of n images [n, C] and of their candidates [n, N, C], with the true labels int64 [n]."""

    labels: np.ndarray

    def take(self, pool: range) -> "LabelledLogits":
        """The logits and labels of the images of a pool."""
        index = slice(pool.start, pool.stop)
        return LabelledLogits(self.original[index], self.candidates[index], self.labels[index])


def collect(
    run: Run, defense: str, protocol: str, classifier: nn.Module, split: Split, mirrored: bool = False
) -> Pair[LabelledLogits]:
    """The logits of a defense's `classifier` on the evaluated images of both sides, with `mirrored` on their mirror images.

    Candidates that are missing are drawn. Raises UserError where a logit is NaN or infinite.
    """
    draw_all(run, split, protocol, mirrored)
    settings: dict[str, Any] = {
        "weights": sha256(weights_path(run, defense, protocol)),
        "options": run.config.defenses.get(defense, {}),  # hamp.test_time changes the logits of the same weights
        "n": run.config.diffence.n,
        "count": len(evaluation_pools(run.config.data, protocol).used),
        "candidates": candidate_settings(run),
    }

    def of_side(side: str, examples: Examples) -> LabelledLogits:
        path = run.outputs_dir / f"{defense}-{protocol}-{side}{'-mirrored' if mirrored else ''}.npz"
        queried = examples.take(slice(settings["count"]))
        if mirrored:
            queried = Examples(queried.read(slice(None)).flip(-1), queried.labels)
        return LabelledLogits(
            **cached_arrays(path, settings, lambda: _logits(run, defense, classifier, side, queried, mirrored))
        )

    return Pair(*SIDES).map(of_side, split.evaluated)


def _logits(
    run: Run, defense: str, classifier: nn.Module, side: str, examples: Examples, mirrored: bool
) -> dict[str, np.ndarray]:
    """The arrays of LabelledLogits for the first images of a side, which are `examples`, mirrored or not."""
    count = len(examples)
    original = predict(classifier, examples, run.device).numpy()
    candidates = np.empty((count, run.config.diffence.n, original.shape[1]), dtype=np.float32)
    done = 0
    title = f"{defense} on candidates of {side.replace('_', '-')}"
    with tqdm(total=count, desc=title, unit="image", disable=None) as progress:
        for shard in shards(run, side, count, mirrored):
            candidates[done : done + len(shard)] = classify(classifier, shard, run.device)
            done += len(shard)
            progress.update(len(shard))
    for logits in (original, candidates):
        refuse_infinite(run, defense, logits)
    return {"original": original, "candidates": candidates, "labels": examples.labels.numpy()}


def refuse_infinite(run: Run, defense: str, logits: np.ndarray) -> None:
    """Raise UserError where a logit of a defense's classifier is NaN or infinite."""
    if not np.isfinite(logits).all():
        raise UserError(f"the classifier {model_path(run, defense)} returns NaN or infinite logits: train it again.")


@torch.inference_mode()
def classify(classifier: nn.Module, candidates: torch.Tensor, device: torch.device, batch: int = 500) -> np.ndarray:
    """Logits float32 [b, N, C] of candidates [b, N, 3, H, W] in [0, 1]. `batch` candidates are classified at a time."""
    parts = candidates.flatten(0, 1).split(batch)
    logits = torch.cat([classifier(part.to(device)).float().cpu() for part in parts])
    return logits.view(*candidates.shape[:2], -1).numpy()
