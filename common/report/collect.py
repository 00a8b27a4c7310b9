"""Copy measured rows and their pictures into results/, where they are committed."""

import re
import shutil
from pathlib import Path

from common.cli import ROOT
from common.data import DATASETS
from common.errors import UserError, check_name
from common.files import read_json
from common.report.pages import setting


def collect(dataset: str) -> list[Path]:
    """Copy a data set's rows and pictures to results/<data set>/<setting>/; returns the rows' files."""
    source = ROOT / check_name("data set", dataset, DATASETS) / "evaluate_MIAs" / "results"
    copied = []
    for path in sorted(source.rglob("*.json")):
        row = read_json(path, f"bash {dataset}/evaluate_MIAs/evaluate_mia.sh --defense NAME")
        if not re.fullmatch(r"[0-9a-f]{12}", row["commit"]):
            raise UserError(f"{path} was made from uncommitted code ({row['commit']}): commit, and run the evaluation again.")
        target = ROOT / "results" / dataset / setting(row)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.name)
        diffusion = ROOT / dataset / "diff_defense" / "diff_models" / row["profile"] / f"seed{row['seed']}"
        pictures = [path.with_name(f"{path.stem}_roc.png")]
        pictures += [path.with_name(f"{row['defense']}_{kind}.png") for kind in ("phi", "reliability")]
        for picture in (*pictures, diffusion / "reconstructions.png"):
            if picture.is_file():
                shutil.copy(picture, target / picture.name)
        copied.append(target / path.name)
    return copied
