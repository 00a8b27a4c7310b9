"""README's map of the code is complete and in order, and its lines of Python run."""

import ast
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from common import audit


def places() -> dict[str, int]:
    """The files and folders of common/ in the order of the map: `data` for data/, `run` for run.py."""
    readme = (ROOT / "README.md").read_text()
    lines = readme[readme.index("\ncommon/  ") : readme.index("\ntests/  benchmarks/")].splitlines()
    first_columns = [line[2:].split("  ")[0].split() for line in lines if line.startswith("  ") and line[2] != " "]
    return {word.removesuffix(".py").removesuffix("/"): i for i, word in enumerate(chain(*first_columns))}


def imported(path: Path) -> set[str]:
    """The files and folders of common/ that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "common":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("common."):
            found.add(node.module.split(".")[1])
    return found


def test_the_map_is_complete_and_imports_point_upwards() -> None:
    order = places()
    present = {path.stem for path in (ROOT / "common").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert set(order) == present - {"__init__"}
    for path in (ROOT / "common").rglob("*.py"):
        own = path.relative_to(ROOT / "common").parts[0].removesuffix(".py")
        if own != "__init__":
            later = {name for name in imported(path) - {own} if order[name] > order[own]}
            assert not later, f"{path.name} imports {later}, which the map has below it"


def test_the_readmes_lines_save_what_the_audit_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model with dropout and trainable weights, as users have them."""
    readme = (ROOT / "README.md").read_text()
    lines = readme[readme.index("## Audit") :].split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.Dropout())
    given = {f"{side}_images": torch.rand(30, 3, 2, 2) for side in ("member", "other")}
    given |= {f"{side}_labels": torch.arange(30) % 5 for side in ("member", "other")}
    exec(lines, {"np": np, "torch": torch, "model": model, **given})
    assert not model.training  # dropout would be audited too
    assert "--members m.npz --non-members n.npz" in readme
    row = audit.audit({"members": Path("m.npz"), "non_members": Path("n.npz")}, 0.5, 0.001, 0, Path("audit"))
    assert row["points"] == {"members": 30, "non_members": 30}
