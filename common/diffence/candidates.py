"""The candidates of an evaluation: reconstructions that are drawn once, stored, and shared by every defense.

Candidates depend on the image and on the diffusion model alone. They are stored as float16, in shards of 100 images, so that a
killed run continues with the first shard that is missing.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.data.partition import Examples, Split, evaluation_pools
from common.diffence.ddpm import REMAKE, ddpm_settings, load_reconstructor, load_unet
from common.diffence.reconstruct import DiffusionReconstructor, draw_candidates
from common.errors import UserError
from common.files import read_json, refuse_other_config, save_array, sha256, write_json
from common.pair import SIDES
from common.run import Run
from common.training.distributed import hide_progress, part_of, wait_for_all

SHARD = 100  # images of one side in a file
MIRRORED = 1 << 40  # added to the query of a mirrored image, whose noise is then independent of the image's


def candidate_settings(run: Run) -> dict[str, Any]:
    """Everything that candidates depend on, beside the images.

    Their number N is not part of it: candidate j has noise of its own, so a larger N extends the same set. Raises UserError
    where there is no diffusion model.
    """
    config = run.config.diffence
    weights = run.ddpm_dir / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing. Make it with: {run.command(REMAKE)}")
    settings = {"t": config.t, "steps": config.steps, "forward": config.forward}
    return {**settings, "weights": sha256(weights), "ddpm": ddpm_settings(run)}


def query_ids(side: str, positions: Iterable[int], mirrored: bool = False) -> torch.Tensor:
    """The queries that name the noise of the images at `positions` of a side: int64 [n].

    Members have even queries and non-members odd ones: position 3 is query 6 of the members and query 7 of the non-members.
    """
    queries = torch.tensor(list(positions), dtype=torch.int64) * len(SIDES) + SIDES.index(side)
    return queries + MIRRORED * mirrored


def missing_shards(run: Run, protocol: str, mirrored: bool = False) -> list[tuple[str, int]]:
    """Side and first position of every shard that an evaluation under `protocol` needs and that is not complete."""
    count = len(evaluation_pools(run.config.data, protocol).used)
    starts = [(side, start) for side in SIDES for start in range(0, count, SHARD)]
    return [(side, start) for side, start in starts if not _is_complete(run, side, start, mirrored)]


def draw_all(run: Run, split: Split, protocol: str, mirrored: bool = False) -> None:
    """Draw and store the candidates that an evaluation under `protocol` needs and that are missing, with a progress bar.

    With `mirrored` they are candidates of the mirrored images. Several processes (training/distributed.py) divide the shards
    among themselves. Raises UserError where the stored ones come from another diffusion model.
    """
    folder, settings = candidates_dir(run), candidate_settings(run)
    if (folder / "settings.json").is_file():
        stored = read_json(folder / "settings.json", f"rm -r {folder}")
        if stored != settings:
            load_unet(run)  # raises where the diffusion model itself has other settings; the candidates may then be good
        refuse_other_config(folder, stored, settings, "delete it and run this again.")
    missing = missing_shards(run, protocol, mirrored)
    if not missing:
        return
    wait_for_all()  # so that every process has the same list
    examples = split.evaluated.as_dict()
    reconstruct = load_reconstructor(run)
    write_json(folder / "settings.json", settings)
    own, _ = part_of(len(missing))
    own_images, hide = len(missing[own]) * SHARD, hide_progress()
    with tqdm(total=own_images, desc="candidates", unit="image", smoothing=0.05, disable=hide) as progress:
        for side, start in missing[own]:
            positions = shard_positions(run, side, start)
            candidates = draw_shard(run, reconstruct, examples[side], side, positions, mirrored)
            save_array(_shard_path(run, side, start, mirrored), candidates)
            progress.update(SHARD)
    wait_for_all()


def shards(run: Run, side: str, count: int, mirrored: bool = False) -> Iterator[torch.Tensor]:
    """The candidates of the first `count` images of a side, shard by shard: float32 [b, N, 3, H, W] in [0, 1].

    With `mirrored` they are candidates of the mirrored images.
    """
    for start in range(0, count, SHARD):
        stored = np.load(_shard_path(run, side, start, mirrored), mmap_mode="r")
        yield torch.from_numpy(np.array(stored[: count - start, : run.config.diffence.n])).float()


class StoredCandidates:
    """A `Reconstructor` that looks up what `draw_all` stored, so that a `ProtectedClassifier` needs classifier passes only."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.arrays: dict[Path, np.ndarray] = {}  # the shards that are open, float16 [b, N, 3, H, W]

    def __call__(self, images: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Candidates float32 [M, 3, H, W]. `queries` come from `query_ids`. Of `images` only the device is used."""
        candidates = [self._candidate(*ids) for ids in zip(queries.tolist(), numbers.tolist(), strict=True)]
        return torch.from_numpy(np.stack(candidates)).float().to(images.device)

    def _candidate(self, query: int, number: int) -> np.ndarray:
        position, side = divmod(query % MIRRORED, len(SIDES))
        row = position % SHARD
        path = _shard_path(self.run, SIDES[side], position - row, query >= MIRRORED)
        if path not in self.arrays:
            self.arrays[path] = np.load(path, mmap_mode="r")
        return self.arrays[path][row, number]


def candidates_dir(run: Run) -> Path:
    """The folder of the candidates for the run's T, DDIM steps and forward process."""
    config = run.config.diffence
    return run.candidates_dir / f"t{config.t}-steps{config.steps}-{config.forward}"


def draw_shard(
    run: Run, reconstruct: DiffusionReconstructor, examples: Examples, side: str, positions: range, mirrored: bool = False
) -> np.ndarray:
    """The N candidates of the images at `positions`: float16 [b, N, 3, H, W]."""
    images = examples.pixels(slice(positions.start, positions.stop)).to(run.device)
    images = images.flip(-1) if mirrored else images
    config = run.config.diffence
    queries = query_ids(side, positions, mirrored)
    return draw_candidates(reconstruct, images, queries, config.n, config.batch).half().cpu().numpy()


def _shard_path(run: Run, side: str, start: int, mirrored: bool = False) -> Path:
    return candidates_dir(run) / f"{side}{'_mirrored' if mirrored else ''}_{start:06d}.npy"


def shard_positions(run: Run, side: str, start: int) -> range:
    """The positions of the images of a shard, whose first image is at `start`. The last shard of a side may be smaller."""
    return range(start, min(start + SHARD, getattr(run.config.data, side)))


def _is_complete(run: Run, side: str, start: int, mirrored: bool) -> bool:
    """Whether a shard holds N candidates of each of its images. A missing or damaged file does not."""
    try:
        images, candidates = np.load(_shard_path(run, side, start, mirrored), mmap_mode="r").shape[:2]
    except (OSError, ValueError, EOFError):
        return False
    return images >= len(shard_positions(run, side, start)) and candidates >= run.config.diffence.n
