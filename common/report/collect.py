"""Copy rows and their pictures into results/, where they are committed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.cli import ROOT
from common.data import DATASETS
from common.errors import UserError, check_name
from common.files import atomic_write, copy_file, locked
from common.report.rows import read_row, setting


def collect(dataset: str) -> list[Path]:
    """Copy rows, scores and pictures of a data set to results/<data set>/<setting>/; returns the paths of the copied rows.

    Raises UserError for a row that was made from uncommitted code, because nobody could reproduce it. Both folders are locked
    while a row is copied, so that it and its scores belong together.
    """
    source = ROOT / check_name("data set", dataset, DATASETS) / "evaluate_MIAs" / "results"
    copied = []
    for path in sorted(source.rglob("*.json")):
        with locked(path.parent):
            row = read_row(path)
            refuse_uncommitted(path, row["commit"])
            target = ROOT / "results" / dataset / setting(row)
            with locked(target):
                copy_row(path, row, target)
        copied.append(target / path.name)
    for path in sorted(source.rglob("*_grid.csv")):
        copy_grid(path)
    return copied


def refuse_uncommitted(path: Path, commit: str) -> None:
    """Raise UserError unless `commit` is one, because nobody could reproduce numbers from uncommitted code."""
    if not re.fullmatch(r"[0-9a-f]{12}", commit):
        raise UserError(f"{path} was made from uncommitted code ({commit}): commit, and run the evaluation again.")


def copy_grid(path: Path) -> None:
    """Copy a table of common.grid and its picture. Tables of runs with --set stay where they are: a name may not tell which."""
    table = pd.read_csv(path, dtype={"commit": str})  # 12 digits, or 123456e78901, are no number
    for commit in table["commit"]:
        refuse_uncommitted(path, commit)
    first = table.iloc[0]
    if "=" in path.parent.name:
        return
    target = ROOT / "results" / first["dataset"] / f"{first['profile']}-clean-seed{first['seed']}"
    for file in (path, path.with_suffix(".png")):
        copy_file(file, target / file.name)


def copy_row(path: Path, row: dict[str, Any], target: Path) -> None:
    """Copy the row at `path`, its scores and its histograms of phi to the folder `target`.

    Other pictures are not copied: ROC curves can be drawn from the scores, and calibration is in the row.
    """
    dataset_dir = ROOT / row["dataset"]
    diffusion_dir = dataset_dir / "diff_defense" / "diff_models" / row["profile"] / f"seed{row['seed']}"
    pack_scores(path, target / f"{path.stem}.npz")
    for file in (path, path.with_name(f"{row['defense']}_phi.png"), diffusion_dir / "reconstructions.png"):
        if file.is_file():
            copy_file(file, target / file.name)


def pack_scores(row: Path, target: Path) -> None:
    """Write the scores of the attacks on a row into one compressed file, so that anybody can compute its AUCs again.

    For each attack it has `<attack>` [n + m], members first, and `<attack> members`, their number n. Scores are float32 unless
    this would tie some of them, float64 otherwise. A row without stored scores, as those of other experiments, gets no file.
    """
    arrays: dict[str, np.ndarray] = {}
    for path in sorted((row.parent / "scores").glob(f"*-based-{row.stem}.npy")):
        scores, membership = np.load(path).T
        attack = path.name.removesuffix(f"-based-{row.stem}.npy")
        short = scores.astype(np.float32)
        if len(np.unique(short)) < len(np.unique(scores)):
            short = scores
        arrays |= {attack: short, f"{attack} members": np.array(int(membership.sum()))}
    if arrays:
        atomic_write(target, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
