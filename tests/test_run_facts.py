"""What every row says of its origin: the version of its keys, and the versions of the packages that numbers depend on."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from conftest import defense_run

from common.config import Data
from common.run import environment, provenance


def test_a_row_names_the_versions_that_made_it(tmp_path: Path) -> None:
    run = defense_run(tmp_path, "undefended", Data(), {})
    facts = environment(run)
    assert set(facts) == {"commit", "versions", "torch", "device", "threads", "bf16"}
    versions = facts["versions"]
    assert set(versions) == {"python", "torch", "torchvision", "diffusers", "opacus", "numpy", "scipy", "scikit-learn"}
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (versions["numpy"], versions["scikit-learn"]) == (np.__version__, version("scikit-learn"))
    assert torch.__version__.startswith(versions["torch"].partition("+")[0])


def test_a_row_names_the_schema_of_its_keys_and_is_json(tmp_path: Path) -> None:
    run = defense_run(tmp_path, "undefended", Data(), {})
    row = provenance(run, "undefended", "clean")
    assert row["schema"] == 2
    assert row.items() >= environment(run).items()
    assert json.loads(json.dumps(row)) == row
