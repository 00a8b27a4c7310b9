"""The candidates of an evaluation, drawn once and shared by every defense: they depend on the image and the diffusion
model alone. They lie in shards of 100 images, as float16, so that a killed run continues at the shard where it was.
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
from common.files import atomic_write, read_json, refuse_other_config, sha256, write_json
from common.pair import SIDES
from common.run import Run

SHARD = 100
MIRRORED = 1 << 40  # added to the query of a mirrored image: noise of its own, as for any other image


def candidate_settings(run: Run) -> dict[str, Any]:
    """What candidates depend on, beside the images. More of them (N) extend a set: candidate j has noise of its own."""
    chosen = run.config.diffence
    weights = run.ddpm_dir / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing. Make it with: {run.command(REMAKE)}")
    settings = {"t": chosen.t, "steps": chosen.steps, "forward": chosen.forward}
    return {**settings, "weights": sha256(weights), "ddpm": ddpm_settings(run)}


def query_ids(side: str, places: Iterable[int], mirrored: bool = False) -> torch.Tensor:
    """The query that names the noise of an image in an evaluation: even for members, odd for non-members. int64 [n]."""
    return torch.tensor(list(places), dtype=torch.int64) * len(SIDES) + SIDES.index(side) + MIRRORED * mirrored


def missing_shards(run: Run, protocol: str, mirrored: bool = False) -> list[tuple[str, int]]:
    """(side, first image) of every shard that an evaluation under `protocol` still needs."""
    count = len(evaluation_pools(run.config.data, protocol).used)
    starts = [(side, start) for side in SIDES for start in range(0, count, SHARD)]
    return [place for place in starts if not _complete(run, *place, mirrored)]


def draw_all(run: Run, split: Split, protocol: str, mirrored: bool = False) -> None:
    """Draw what an evaluation under `protocol` still needs, with a progress bar; `mirrored`: of the mirrored images."""
    folder, settings = candidates_dir(run), candidate_settings(run)
    if (folder / "settings.json").is_file():
        made = read_json(folder / "settings.json", f"rm -r {folder}")
        if made != settings:
            load_unet(run)  # where the fault is the diffusion model's, say that; the candidates may be good
        refuse_other_config(folder, made, settings, "delete it and run this again.")
    missing = missing_shards(run, protocol, mirrored)
    if not missing:
        return
    examples = {"members": split.members, "non_members": split.non_members}
    reconstruct = load_reconstructor(run)
    write_json(folder / "settings.json", settings)
    with tqdm(total=len(missing) * SHARD, desc="candidates", unit="image", smoothing=0.05, disable=None) as progress:
        for side, start in missing:
            drawn = _draw(run, reconstruct, examples[side], side, _places(run, side, start), mirrored)
            atomic_write(_shard(run, side, start, mirrored), lambda file, drawn=drawn: np.save(file, drawn))  # type: ignore[misc]
            progress.update(SHARD)


def shards(run: Run, side: str, count: int) -> Iterator[torch.Tensor]:
    """The candidates of the first `count` images of a side, a shard at a time: float32 [b, N, 3, H, W] in [0, 1]."""
    for start in range(0, count, SHARD):
        stored = np.load(_shard(run, side, start), mmap_mode="r")
        yield torch.from_numpy(np.array(stored[: count - start, : run.config.diffence.n])).float()


class StoredCandidates:
    """A `Reconstructor` that looks up what `draw_all` has drawn: a `ProtectedClassifier` then costs classifier passes only."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.opened: dict[Path, np.ndarray] = {}

    def __call__(self, images: torch.Tensor, queries: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Candidates float32 of queries that `query_ids` made; the images themselves are not looked at."""
        found = [self._one(query, number) for query, number in zip(queries.tolist(), numbers.tolist(), strict=True)]
        return torch.from_numpy(np.stack(found)).float().to(images.device)

    def _one(self, query: int, number: int) -> np.ndarray:
        place, side = divmod(query % MIRRORED, len(SIDES))
        path = _shard(self.run, SIDES[side], place - place % SHARD, query >= MIRRORED)
        if path not in self.opened:
            self.opened[path] = np.load(path, mmap_mode="r")
        return self.opened[path][place % SHARD, number]


def _draw(
    run: Run, reconstruct: DiffusionReconstructor, examples: Examples, side: str, places: range, mirrored: bool
) -> np.ndarray:
    images = examples.pixels(slice(places.start, places.stop)).to(run.device)
    images = images.flip(-1) if mirrored else images
    chosen = run.config.diffence
    queries = query_ids(side, places, mirrored)
    return draw_candidates(reconstruct, images, queries, chosen.n, chosen.batch).half().cpu().numpy()


def candidates_dir(run: Run) -> Path:
    """Where the candidates of the run's T, DDIM steps and forward process lie."""
    chosen = run.config.diffence
    return run.candidates_dir / f"t{chosen.t}-steps{chosen.steps}-{chosen.forward}"


def _shard(run: Run, side: str, start: int, mirrored: bool = False) -> Path:
    return candidates_dir(run) / f"{side}{'_mirrored' if mirrored else ''}_{start:06d}.npy"


def _places(run: Run, side: str, start: int) -> range:
    """The images of the shard that begins at `start`."""
    return range(start, min(start + SHARD, getattr(run.config.data, side)))


def _complete(run: Run, side: str, start: int, mirrored: bool) -> bool:
    """Whether a shard holds N candidates of each of its images; False where it is missing or torn."""
    try:
        images, candidates = np.load(_shard(run, side, start, mirrored), mmap_mode="r").shape[:2]
    except (OSError, ValueError, EOFError):
        return False
    return images >= len(_places(run, side, start)) and candidates >= run.config.diffence.n
