"""The example of CONTRIBUTING.md, a defense of one's own in under 40 lines, trains through the ordinary path."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest
import torch

from common.config import Config, Data, Model, Train
from common.data.partition import Examples, Split
from common.defenses import DEFENSES, Defense, with_options
from common.errors import UserError
from common.run import Run
from common.targets import load_target, model_path, target_classifier


def test_the_example_is_a_defense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None and len(found.group(1).splitlines()) < 40
    path = tmp_path / "smoothing.py"
    path.write_text(found.group(1))
    spec = importlib.util.spec_from_file_location("smoothing", path)
    assert spec is not None and spec.loader is not None
    smoothing = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "smoothing", smoothing)
    spec.loader.exec_module(smoothing)
    monkeypatch.setitem(DEFENSES, "smoothing", Defense(smoothing.train, smoothing.Options))

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

    with pytest.raises(UserError, match="amount"):
        with_options(Run(tmp_path / "synthetic", "small", Config(defenses={"smoothing": {"amont": 1}}), 0, torch.device("cpu")))
