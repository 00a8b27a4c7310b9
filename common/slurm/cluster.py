"""cluster.yaml: what the jobs of a plan ask Slurm for."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from common.config import require
from common.errors import UserError, check_name
from common.profiles import read_section

# Options of sbatch that follow from the plan.
OURS = ("array", "chdir", "dependency", "error", "job-name", "open-mode", "output", "requeue", "signal")


@dataclass(frozen=True)
class Resources:
    """What a job asks for. An empty text leaves an option to the cluster's default."""

    partition: str = ""
    account: str = ""
    constraint: str = ""  # on nodes, as in a100|h100
    time: int = 240  # minutes, until a job is queued again and continues
    memory: int = 16  # GB
    cpus: int = 4
    gpus: int = 0
    parallel: int = 32  # jobs of one array that run at a time
    setup: list[str] = field(default_factory=list)  # lines of shell before the command, such as `module load cuda`
    options: dict[str, Any] = field(default_factory=dict)  # further options of sbatch, such as qos: long

    def __post_init__(self) -> None:
        for name, lowest in (("time", 5), ("memory", 1), ("cpus", 1), ("gpus", 0), ("parallel", 1)):
            require(getattr(self, name) >= lowest, f"{name} must be at least {lowest}, not {getattr(self, name)}.")
        for option in self.options:
            require(
                option.replace("_", "-") not in OURS,
                f"the option {option} of sbatch follows from the plan: leave it out of options.",
            )


@dataclass(frozen=True)
class Cluster(Resources):
    """The resources of all jobs, and by kind of job (`Job.kind`) what differs for it."""

    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def resources(self, kind: str) -> Resources:
        """What a job of a kind asks for. Raises UserError for a misspelt key, a wrong type and a value out of range."""
        general = {key: value for key, value in vars(self).items() if key != "kinds"}
        return read_section(Resources, general | self.kinds.get(kind, {}), f"kinds.{kind}")


def read_cluster(path: Path, kinds: Iterable[str]) -> Cluster:
    """Read cluster.yaml. `kinds` are the kinds of jobs that it may name.

    Raises UserError for a file that is missing or no YAML, a misspelt key or kind, a wrong type, and a value out of range.
    """
    require(path.is_file(), f"there is no file {path}: docs/clusters.md has an example.")
    try:
        content = OmegaConf.load(path)
    except Exception as error:  # a YAML syntax error, whose class depends on the YAML library
        raise UserError(f"{path} is no readable YAML: {' '.join(str(error).split())}") from error
    cluster = read_section(Cluster, content, str(path))
    for kind in cluster.kinds:
        check_name(f"kind of job in {path}", kind, kinds)
        cluster.resources(kind)
    return cluster
