"""Reading settings: the profiles of a data set, changes by --set, sections of other YAML files, and the configs of rows.

A profile is a YAML file in the `configs/` folder of a data set (paper.yaml, small.yaml), or a path to a YAML file of your own.
It names only the settings that differ from the defaults in `common/config.py`. `--set train.epochs=3` changes one setting. A
misspelt key, a wrong type or a value out of range raises UserError, which names the key. This module does not import PyTorch,
because `--help` imports it.
"""

import re
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config import Config, require
from common.errors import UserError, check_name

Options = TypeVar("Options")


def with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """The config of a row, with the defaults of settings that are newer than the row.

    A config that cannot be read today, because a setting has gone or a value is refused, is returned as it is.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), stored))
    except (UserError, OmegaConfBaseException, ValueError, TypeError):
        return stored
    assert isinstance(config, Config)
    return config.as_dict()


def is_path(profile: str) -> bool:
    """Whether a profile is the path of a YAML file, and not a name in the `configs/` folder of a data set."""
    return profile.endswith((".yaml", ".yml"))


def profile_path(folder: Path, profile: str) -> Path:
    """The YAML file of a profile: `folder`/configs/<profile>.yaml, or `profile` itself if it is a path.

    Raises UserError if there is no such file.
    """
    if is_path(profile):
        path = Path(profile)
        require(path.is_file(), f"there is no configuration file {path}.")
        return path
    path = folder / "configs" / f"{profile}.yaml"
    profiles = sorted(file.stem for file in (folder / "configs").glob("*.yaml"))
    check_name(f"profile of {folder.name}", profile, [*profiles, "or a path that ends in .yaml"])
    return path


def load_config(folder: Path, profile: str, overrides: list[str] | None = None) -> Config:
    """Read a profile of the data set `folder` and apply `key=value` overrides. UserError names a wrong key or value."""
    path = profile_path(folder, profile)
    source = str(path)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        source = f"--set {' '.join(overrides or [])}"
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(overrides or []))
        config = OmegaConf.to_object(merged)
    except UserError:
        raise
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{source}: {_one_line(error)}") from error
    except Exception as error:  # a YAML syntax error, whose class depends on the YAML library
        raise UserError(f"{source} is no readable YAML: {_one_line(error)}") from error
    assert isinstance(config, Config)
    return config


def read_options(kind: type[Options], section: dict[str, Any], name: str) -> Options:
    """The config section `defenses.<name>` as `kind`, the options dataclass of that defense. UserError names a wrong key."""
    return read_section(kind, section, f"defenses.{name}")


def read_section(kind: type[Options], section: Any, source: str) -> Options:
    """A section of YAML as `kind`, a dataclass. UserError names the `source` and the wrong key or value."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), section))  # type: ignore[return-value]
    except UserError:
        raise
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{source}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """An error message of OmegaConf on one line, with its key and without the lines about object types."""
    text = str(error)
    key = re.search(r"full_key: (\S+)", text)
    first = " ".join(line for line in text.splitlines() if line and not line.startswith((" ", "\t"))) or text
    return f"{first} (key {key.group(1)})" if key else first
