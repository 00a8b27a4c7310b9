"""A run: a data set, a profile, a seed and a device. It knows where each of its files lies.

<data set>/data/                                                 official files
<data set>/data/partition/<profile>/                             members, reference, non-members, manifest.json
<data set>/final-all-models/<profile>/seed0/<model>/             <defense>.pt, .best.pt, .json, .log.csv
<data set>/final-all-models/<profile>/seed0/<model>/shadows/003/ the same for shadow model 3
                                  .../shadows-canaries500/003/   the same where 500 images have a wrong label
<data set>/diff_defense/diff_models/<profile>/seed0/             the diffusion model (a diffusers folder) and its log
<data set>/diff_defense/candidates/<profile>/seed0/              candidates, shared by all defenses
<data set>/evaluate_MIAs/outputs/<profile>/seed0/<model>/        logits of a defense on images and candidates
<data set>/evaluate_MIAs/results/                                text files, JSON rows and pictures

A diffusion model with a name (ddpm.name) has a folder of its own, diff_models/<profile>/seed0/<name>/. So have its candidates
and the outputs behind it.
"""

import argparse
import os
import platform
import shlex
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.cli import DEFAULT_PROFILE
from common.config import Config
from common.errors import UserError
from common.profiles import is_path, load_config
from common.seeds import derive_seed

SCHEMA = 2  # the version of a row's keys; rows of schema 1 lack `schema` and `versions`, and some lack `kind`
PACKAGES = ("torch", "torchvision", "diffusers", "opacus", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """The settings under which a command works, and the folders of its files."""

    folder: Path  # of the data set, whose name it has
    profile: str  # a name, or a path to a YAML file
    config: Config
    seed: int
    device: torch.device
    overrides: tuple[str, ...] = ()  # the changes of --set, such as train.epochs=3
    shadow: tuple[int, int] | None = None  # for a shadow model: its number, and the seed of the run of its target

    @property
    def dataset(self) -> str:
        return self.folder.name

    @property
    def profile_name(self) -> str:
        """`small`, for the profile small and for the profile /some/where/small.yaml."""
        return Path(self.profile).stem if is_path(self.profile) else self.profile

    @property
    def partition_dir(self) -> Path:
        return self.folder / "data" / "partition" / self.profile_name

    @property
    def target_seed(self) -> int:
        """The seed that names folders and draws candidates. A shadow model uses that of its target for both."""
        return self.shadow[1] if self.shadow else self.seed

    def _run_dir(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts) / self.profile_name / f"seed{self.target_seed}"

    def _model_dir(self, *parts: str) -> Path:
        folder = self._run_dir(*parts) / self.config.model.name
        if self.shadow is None:
            return folder
        canaries = self.config.data.canaries
        return folder / (f"shadows-canaries{canaries}" if canaries else "shadows") / f"{self.shadow[0]:03d}"

    @property
    def models_dir(self) -> Path:
        return self._model_dir("final-all-models")

    @property
    def ddpm_dir(self) -> Path:
        return self._run_dir("diff_defense", "diff_models") / self.config.ddpm.name

    @property
    def candidates_dir(self) -> Path:
        return self._run_dir("diff_defense", "candidates") / self.config.ddpm.name

    @property
    def outputs_dir(self) -> Path:
        return self._model_dir("evaluate_MIAs", "outputs") / self.config.ddpm.name

    def results_dir(self, protocol: str) -> Path:
        """The folder of the rows: `results/` for the default settings, else a folder in it that is named after the differences.

        Runs with other settings therefore do not overwrite each other's rows.
        """
        default_profile = DEFAULT_PROFILE.get(self.dataset, "paper")
        parts = [
            self.profile_name if self.profile_name != default_profile else "",
            protocol if protocol != "clean" else "",
            f"seed{self.seed}" if self.seed else "",
            *(override.replace("/", "_") for override in self.overrides),
        ]
        name = "-".join(part for part in parts if part)
        if len(name) > 120:  # file systems allow 255 bytes
            name = f"{name[:100]}-{derive_seed(name):016x}"
        return self.folder / "evaluate_MIAs" / "results" / name

    def command(self, script: str, *arguments: str) -> str:
        """The command line that runs a script of the data set for this run, from the root of the repository."""
        if self.shadow and script == "train_defense.py":
            script, arguments = "train_shadows.py", (*arguments, f"--index {self.shadow[0]}")
        words = [f"python {self.dataset}/{script}", *arguments, f"--profile {shlex.quote(self.profile)}"]
        words += [f"--set {shlex.quote(override)}" for override in self.overrides]
        if self.target_seed and script != "data_partition.py":  # the partition does not depend on the seed
            words.append(f"--seed {self.target_seed}")
        return " ".join(words)


def open_run(folder: Path, arguments: argparse.Namespace) -> Run:
    """The run for the parsed options of `common.cli.make_parser`."""
    config = load_config(folder, arguments.profile, arguments.set)
    device = pick_device(getattr(arguments, "device", "cpu"))
    return Run(folder, arguments.profile, config, getattr(arguments, "seed", 0), device, tuple(arguments.set))


def pick_device(name: str) -> torch.device:
    """The device `name`, where `auto` is CUDA if there is one. Raises UserError for an unknown or absent device.

    Of several processes that torchrun started, each has a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device '{name}'. Known: auto, cpu, cuda, cuda:0, cuda:1 ...") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported. Known: auto, cpu, cuda, cuda:0, cuda:1 ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}' is not on this machine ({torch.cuda.device_count()} CUDA devices): use --device cpu.")
    return device


def local_rank() -> int:
    """The number of this process among those that torchrun started on this machine; 0 where torchrun did not start it."""
    return int(os.environ.get("LOCAL_RANK", 0))


def native_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively: NVIDIA since Ampere, x86 with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def environment(run: Run) -> dict[str, Any]:
    """The part of a row about the machine and the software.

    Keys of the result:
    - commit: of the code, see `_commit`
    - versions: those of Python and of PACKAGES, by name
    - torch: the version of PyTorch with its build, such as 2.6.0+cpu
    - device: the name of the GPU, or cpu
    - threads: of PyTorch on the CPU
    - bf16: whether training and the diffusion model were computed in bfloat16
    """
    native = native_bf16(run.device)
    return {
        "commit": _commit(run.dataset),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "bf16": {"train": run.config.train.bf16 and native, "ddpm": run.config.ddpm.bf16 and native},
    }


def provenance(run: Run, defense: str, protocol: str) -> dict[str, Any]:
    """The part of a row about its origin, which all kinds of rows have."""
    return {
        "schema": SCHEMA,
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
    """The commit of the code, with `+changes` if the working tree differs from it; "unknown" without git or a clone."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        commit, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=False).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", "common", dataset])
        )
    except OSError:
        return "unknown"
    return (commit + ("+changes" if changed else "")) or "unknown"
