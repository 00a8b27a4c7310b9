"""One run: a data set's folder, a profile, a seed and a device, and where each of its files lies.

<data set>/data/                                     official files
<data set>/data/partition/<profile>/                 members, reference, non-members, manifest.json
<data set>/final-all-models/<profile>/seed0/         <model>/<defense>.pt, .best.pt, .log.csv
<data set>/final-all-models/<profile>/seed0/<model>/shadows/003/ the same for shadow model 3 of this run
<data set>/diff_defense/diff_models/<profile>/seed0/ the diffusion model (a diffusers folder) and its log
<data set>/diff_defense/candidates/<profile>/seed0/  reconstructions, shared by all defenses
<data set>/evaluate_MIAs/outputs/<profile>/seed0/    logits of a defense on images and reconstructions
<data set>/evaluate_MIAs/results/                    text files, JSON rows and pictures
"""

import argparse
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.cli import DEFAULT_PROFILE
from common.config import Config, load_config
from common.errors import UserError
from common.seeds import derive_seed


@dataclass(frozen=True)
class Run:
    """What a command works on."""

    folder: Path  # the data set's folder; its name is the data set's
    profile: str
    config: Config
    seed: int
    device: torch.device
    overrides: tuple[str, ...] = ()  # of --set
    shadow: tuple[int, int] | None = None  # of a shadow model: its number and the seed of the run that it shadows

    @property
    def dataset(self) -> str:
        return self.folder.name

    @property
    def profile_name(self) -> str:
        """`small` for the profile small and for /some/where/small.yaml."""
        return Path(self.profile).stem if self.profile.endswith((".yaml", ".yml")) else self.profile

    @property
    def partition_dir(self) -> Path:
        return self.folder / "data" / "partition" / self.profile_name

    @property
    def target_seed(self) -> int:
        """The seed that names files and draws candidates: a shadow model has one of its own but shares both."""
        return self.shadow[1] if self.shadow else self.seed

    def _made_by_run(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts) / self.profile_name / f"seed{self.target_seed}"

    def _of_model(self, *parts: str) -> Path:
        folder = self._made_by_run(*parts) / self.config.model.name
        return folder / "shadows" / f"{self.shadow[0]:03d}" if self.shadow else folder

    @property
    def models_dir(self) -> Path:
        return self._of_model("final-all-models")

    @property
    def ddpm_dir(self) -> Path:
        return self._made_by_run("diff_defense", "diff_models")

    @property
    def candidates_dir(self) -> Path:
        return self._made_by_run("diff_defense", "candidates")

    @property
    def outputs_dir(self) -> Path:
        return self._of_model("evaluate_MIAs", "outputs")

    def results_dir(self, protocol: str) -> Path:
        """`results/` for the defaults; what differs from them names a folder below it, so that no run overwrites another."""
        default = DEFAULT_PROFILE.get(self.dataset, "paper")
        parts = [
            self.profile_name if self.profile_name != default else "",
            protocol if protocol != "clean" else "",
            f"seed{self.seed}" if self.seed else "",
            *(override.replace("/", "_") for override in self.overrides),
        ]
        name = "-".join(part for part in parts if part)
        if len(name) > 120:  # file systems allow 255 bytes
            name = f"{name[:100]}-{derive_seed(name):016x}"
        return self.folder / "evaluate_MIAs" / "results" / name

    def command(self, script: str, *arguments: str) -> str:
        """The command that a message tells the user to run, from the repository's root."""
        if self.shadow and script == "train_defense.py":
            script, arguments = "train_shadows.py", (*arguments, f"--index {self.shadow[0]}")
        words = [f"python {self.dataset}/{script}", *arguments, f"--profile {self.profile}"]
        words += [f"--set {override}" for override in self.overrides]
        seeded = self.target_seed and script != "data_partition.py"
        return " ".join([*words, f"--seed {self.target_seed}"] if seeded else words)


def open_run(folder: Path, arguments: argparse.Namespace) -> Run:
    """The run that a parsed command line (see common.cli.parser) describes."""
    config = load_config(folder, arguments.profile, arguments.set)
    device = pick_device(getattr(arguments, "device", "cpu"))
    return Run(folder, arguments.profile, config, getattr(arguments, "seed", 0), device, tuple(arguments.set))


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; an unknown or absent device is refused."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device '{name}'. Known: auto, cpu, cuda, cuda:0, cuda:1 ...") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported. Known: auto, cpu, cuda, cuda:0, cuda:1 ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}' is not on this machine ({torch.cuda.device_count()} CUDA devices): use --device cpu.")
    return device


def native_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic: NVIDIA since Ampere, x86 with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def environment(run: Run) -> dict[str, Any]:
    """What a result row says of the place it was made in; `bf16`: what was in fact computed in bfloat16."""
    native = native_bf16(run.device)
    return {
        "commit": _commit(run.dataset),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "bf16": {"train": run.config.train.bf16 and native, "ddpm": run.config.ddpm.bf16 and native},
    }


def provenance(run: Run, defense: str, protocol: str) -> dict[str, Any]:
    """What every result row says of how it came about."""
    return {
        "dataset": run.dataset,
        "profile": run.profile_name,
        "protocol": protocol,
        "defense": defense,
        "seed": run.seed,
        "overrides": list(run.overrides),
        "model": run.config.model.name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **environment(run),
        "config": run.config.as_dict(),
    }


def _commit(dataset: str) -> str:
    """The commit of the code, with `+changes` where the working tree differs from it; unknown without git or a clone."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        commit, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=False).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", "common", dataset])
        )
    except OSError:
        return "unknown"
    return (commit + ("+changes" if changed else "")) or "unknown"
