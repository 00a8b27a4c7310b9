"""The example in docs/extend.md: a file, a line of a dict and a config section, in under 40 lines, make a defense."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf

from common.config import Config, Data, Model, Train
from common.data.partition import Examples, Split
from common.defenses import DEFENSES, Defense, with_options
from common.errors import UserError
from common.grid.search import grid_runs
from common.profiles import load_config
from common.run import Run
from common.training.targets import load_target, model_path, target_classifier


def example(pattern: str) -> str:
    """The one code block of docs/extend.md whose text matches `pattern` from its start."""
    blocks = re.findall(r"^```\w+\n(.*?)^```$", (ROOT / "docs" / "extend.md").read_text(), re.DOTALL | re.MULTILINE)
    matching = [block for block in blocks if re.match(pattern, block)]
    assert len(matching) == 1, pattern
    return matching[0]


def test_the_example_is_a_defense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, line, section = (example(start) for start in ('"""Label smoothing', r' +"smoothing": ', "defenses: {smoothing"))
    assert len((file + line + section).splitlines()) < 40
    path = tmp_path / "smoothing.py"
    path.write_text(file)
    spec = importlib.util.spec_from_file_location("smoothing", path)
    assert spec is not None and spec.loader is not None
    smoothing = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "smoothing", smoothing)
    spec.loader.exec_module(smoothing)
    for name, made in eval(f"{{{line}}}", {"Defense": Defense, "smoothing": smoothing}).items():
        monkeypatch.setitem(DEFENSES, name, made)

    profile = tmp_path / "mine.yaml"
    profile.write_text(section)
    assert load_config(tmp_path, str(profile)).defenses == {"smoothing": {"amount": 0.2}}
    config = Config(
        data=Data(members=40, reference=10, non_members=40, fit=5, known=5, scored=10),
        model=Model(width=4, depth=1),
        train=Train(epochs=2, batch_size=20),
        defenses={"smoothing": {"amount": 1.0}},
    )
    run = with_options(Run(tmp_path / "synthetic", "small", config, 0, torch.device("cpu")))
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = Examples(images, torch.arange(40) % 10)
    DEFENSES["smoothing"].train(run, Split(part, part, part))
    load_target(run, "smoothing", "clean", target_classifier(run))
    losses = torch.load(model_path(run, "smoothing"), weights_only=True)["history"]
    assert losses[0]["loss"] >= math.log(10) - 1e-6  # against uniform targets no prediction does better: the option arrived

    OmegaConf.save({"model": {"width": 4, "depth": 1}}, profile)
    mine = Run(tmp_path / "synthetic", str(profile), load_config(tmp_path, str(profile)), 0, torch.device("cpu"))
    amounts = [one.config.defenses["smoothing"]["amount"] for one in grid_runs(mine, "smoothing", {"amount": ["0.1", "0.2"]})]
    assert amounts == [0.1, 0.2]
    with pytest.raises(UserError, match="amount"):
        with_options(Run(tmp_path / "synthetic", "small", Config(defenses={"smoothing": {"amont": 1}}), 0, torch.device("cpu")))
