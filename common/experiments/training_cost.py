"""`python <data set>/evaluate_MIAs/training_cost.py --defense NAME`: the seconds that a training took (paper Table VIII).

They are read from the logs that trainings write. A log holds wall-clock seconds of the machine that trained.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from common.defenses import DEFENSES
from common.errors import UserError
from common.files import refuse_other_config, write_json
from common.report.rows import as_markdown
from common.run import Run, provenance
from common.training.loop import checkpoint_facts
from common.training.targets import model_path, settings_of


def training_cost(run: Run, defense: str) -> dict[str, Any]:
    """The seconds of a defense's training, of its sub-models, and of the diffusion model; writes and returns the row.

    Raises UserError where the defense is not trained, or was trained under other settings.
    """
    trainings = trainings_of(run, defense)
    row = {
        "kind": "training_cost",
        **provenance(run, defense, "clean"),
        "trainings": trainings,
        "seconds": total(trainings),
        "needs": {needed: total(trainings_of(run, needed)) for needed in DEFENSES[defense].needs},
        "ddpm": ddpm_cost(run),
    }
    write_json(result_path(run, defense), row)
    return row


def result_path(run: Run, defense: str) -> Path:
    """The file of a row, beside those of evaluate_mia."""
    return run.results_dir("clean") / f"training_cost-{defense}.json"


def trainings_of(run: Run, defense: str) -> list[dict[str, Any]]:
    """Every training behind a defense, sub-models first: its checkpoint's name, epochs, and seconds, in sum and an epoch."""
    parts_of = DEFENSES[defense].parts
    checkpoints = [*(parts_of(run) if parts_of else []), (model_path(run, defense), settings_of(run, defense))]
    return [_training(run, defense, path, settings) for path, settings in checkpoints]


def _training(run: Run, defense: str, path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    remake = run.command("train_defense.py", f"--defense {defense}")
    log = path.with_suffix(".log.csv")
    if not (path.is_file() and log.is_file()):
        raise UserError(f"{path if log.is_file() else log} is missing. Make it with: {remake}")
    refuse_other_config(path, checkpoint_facts(path, remake)["settings"], settings, f"move it away, then run: {remake}")
    seconds = pd.read_csv(log)["seconds"]
    return {
        "name": str(path.relative_to(run.models_dir).with_suffix("")),
        "epochs": len(seconds),
        "seconds": float(seconds.sum()),
        "epoch_seconds": {"p50": float(seconds.median()), "mean": float(seconds.mean())},
    }


def total(trainings: list[dict[str, Any]]) -> float:
    """The seconds of several trainings together."""
    return float(sum(training["seconds"] for training in trainings))


def ddpm_cost(run: Run) -> dict[str, Any] | None:
    """Steps and seconds of the diffusion model. None where its log has no seconds: it is missing, or of version 0.2."""
    log = run.ddpm_dir / "log.csv"
    lines = pd.read_csv(log) if log.is_file() else pd.DataFrame()
    if "seconds" not in lines or lines["seconds"].isna().any():
        return None
    return {"steps": int(lines["step"].iloc[-1]), "seconds": float(lines["seconds"].sum())}


def summary(row: dict[str, Any]) -> str:
    """A row as a table with a line for each training."""
    lines = [
        {"training": one["name"], "epochs": str(one["epochs"]), "seconds": f"{one['seconds']:.1f}"} for one in row["trainings"]
    ]
    lines += [
        {"training": f"{name} (before)", "epochs": "-", "seconds": f"{value:.1f}"} for name, value in row["needs"].items()
    ]
    if row["ddpm"]:
        lines.append({"training": "diffusion model", "epochs": "-", "seconds": f"{row['ddpm']['seconds']:.1f}"})
    return as_markdown(pd.DataFrame(lines))
