"""README and docs/: links lead somewhere, commands and examples work, and the committed rows bear out what the pages claim.

A claim is tested as a property of every row that is present, and the rows that it names must exist. No test depends on the
wording of a page or on how many rows there are.
"""

import re
import shlex
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATASETS as FOLDERS
from conftest import ROOT
from diffusers import DDPMScheduler
from torch import nn
from torchvision.models import squeezenet1_1
from torchvision.utils import save_image

from common import attacks
from common.attacks import ATTACKS, METRIC_ATTACKS, NNOptions, Outputs
from common.audit import audit
from common.config import DDPM
from common.data import DATASETS, Dataset, sources
from common.defenses import DEFENSES
from common.diffence.ddpm import build_unet
from common.diffence.protect import ProtectedClassifier
from common.metrics.privacy import auc
from common.pair import Pair
from common.profiles import load_config
from common.report.load import by_setting, read_rows
from common.report.rows import name_columns

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
Row = dict[str, Any]


# the pages


QUICKSTART = "small-clean-seed1"


def fenced(page: str, language: str = r"\w*") -> list[str]:
    """The code blocks of a page, in order: those of one language, or all."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def python_block(page: str, name: str) -> str:
    """The one Python block of a page in which `name` stands."""
    found = [block for block in fenced(page, "python") if name in block]
    assert len(found) == 1, (page, name)
    return found[0]


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every command that a page gives, on a line of a code block or between backticks."""
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
        for line in [*"\n".join(fenced(page)).splitlines(), *re.findall(r"`([^`\n]+)`", prose)]:
            if re.match(r"(python|bash) ", line):
                yield page, line.split("  #")[0]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files_and_headings(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if not re.match(r"[a-z]+:", link):
            name, _, anchor = link.partition("#")
            target = (ROOT / page).parent / name if name else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for path in ROOT.glob("docs/*.md"):
        assert path.name == "README.md" or f"({path.name})" in index


def test_commands_name_what_exists() -> None:
    """The script or module, every option, the defense, and, through the real loader, the profile and every --set."""
    sources_text = "".join(path.read_text() for folder in ("common", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
    found = list(commands())
    assert {"README.md", "docs/reproduce.md", "docs/audit.md", "CONTRIBUTING.md"} <= {page for page, _ in found}
    for page, command in found:
        interpreter, first, *words = shlex.split(command)
        if first == "-m":
            assert interpreter == "python"
            module = ROOT / words[0].replace(".", "/")
            assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), (page, command)
        else:
            assert (ROOT / first).is_file(), (page, command)
            assert Path(first).suffix == {"python": ".py", "bash": ".sh"}[interpreter], (page, command)
        for word in words:
            if word.startswith("--"):
                assert f'"{word}"' in sources_text, (page, command, word)
        given = list(pairwise(words))
        for defense in (value for option, value in given if option == "--defense"):
            assert defense in {*DEFENSES, "smoothing"}, (page, command)  # the latter is the example of docs/extend.md
        profile = next((value for option, value in given if option == "--profile"), "paper")
        changes = [value for option, value in given if option == "--set"]
        for folder in FOLDERS:
            if any(word == folder or word.startswith(f"{folder}/") for word in (first, *words)):
                load_config(ROOT / folder, profile, changes)


def test_the_sample_of_what_quickstart_prints() -> None:
    """Each line of its table, as far as it is shown, is what the committed rows of the same run say."""
    rows = {
        (row["defense"], name_columns(row)["Diffence"]): row for row in by_setting(read_rows(ROOT))["synthetic", QUICKSTART]
    }
    sample = next(block for block in fenced("README.md") if "1/5" in block)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in sample.splitlines() if line.startswith("|")]
    head, *table = lines
    assert len(table) == 4
    for line in table:
        cells = dict(zip(head, line, strict=True))
        row = rows[cells["defense"], cells["Diffence"]]
        interval = row["attacks"][row["best"]["attack"]]["auc_interval"]
        assert cells["test acc %"] == f"{100 * row['accuracy']['non_members']:.1f}"
        assert cells["best AUC [95%]"] == "{:.3f} [{:.3f}, {:.3f}]".format(row["best"]["auc"], *interval)
        assert cells["gap floor"] == f"{row['gap_floor']:.3f}"
        assert cells["null AUC"] == f"{row['null']['best']['auc']:.3f}"


# the examples


def test_the_lines_of_the_audit_page_save_what_the_audit_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model with dropout and trainable weights, as users have them."""
    lines = python_block("docs/audit.md", "np.savez")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audit, "NNOptions", partial(NNOptions, nn_epochs=2))
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Dropout())
    given = {f"{side}_images": torch.rand(30, 3, 2, 2) for side in ("member", "other")}
    given |= {f"{side}_labels": torch.arange(30) % 5 for side in ("member", "other")}
    exec(lines, {"np": np, "torch": torch, "model": model, **given})
    assert not model.training  # dropout would be audited too
    assert any("--members m.npz --non-members n.npz" in command for page, command in commands() if page == "docs/audit.md")
    row = audit.audit({"members": Path("m.npz"), "non_members": Path("n.npz")}, 0.5, 0.001, 0, Path("audit"))
    assert row["points"] == {"members": 30, "non_members": 30}


def tiny_pipeline(folder: Path) -> None:
    """A diffusion model as diffusers' DDPMPipeline writes it, with random weights."""
    build_unet(DDPM(channels=[8, 8], layers=1, attention=[], groups=4)).save_pretrained(folder / "unet")
    DDPMScheduler().save_pretrained(folder / "scheduler")


def test_the_ten_lines_of_the_readme_protect_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand; the folder that they write serves."""
    block = python_block("README.md", "protect(")
    monkeypatch.setattr("common.protect.plug.secret_seed", lambda: 0)  # so that each run of this test is the same
    monkeypatch.chdir(tmp_path)
    tiny_pipeline(tmp_path / "unet")
    for side in ("members", "others"):
        (tmp_path / "photos" / side).mkdir(parents=True)
        for i in range(4):
            save_image(torch.rand(3, 20, 24), tmp_path / "photos" / side / f"{i}.png")
    torch.manual_seed(0)
    classifier = squeezenet1_1(num_classes=3)
    made: dict[str, Any] = {"classifier": classifier, "images": torch.rand(2, 3, 20, 24)}
    exec(block, made | {"mean": (0.5,) * 3, "std": (0.25,) * 3}, made)
    assert made["protected"].selector.scenario == "1"
    assert np.isfinite(made["protected"].selector.low)
    assert torch.equal(made["logits"].argmax(1), classifier.eval()((made["images"] - 0.5) / 0.25).argmax(1))
    again = ProtectedClassifier.from_pretrained("protected", device="cpu")
    torch.testing.assert_close(again(made["images"]), made["logits"].cpu())


def test_the_lines_of_the_serving_page_protect_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its blocks one after the other."""
    blocks = fenced("docs/serve.md", "python")
    monkeypatch.setattr("common.protect.plug.secret_seed", lambda: 0)  # so that each run of this test is the same
    monkeypatch.chdir(tmp_path)
    tiny_pipeline(tmp_path / "unet")
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)).requires_grad_(False)
    made: dict[str, Any] = {"classifier": classifier, "images": torch.rand(2, 3, 32, 32)}
    made |= {"denoiser": lambda x, sigma: 0.9 * x, "reconstruct": lambda x, queries, numbers: 0.9 * x}
    assert len(blocks) == 5
    for block in blocks:
        if "save_pretrained" in block and "key" not in block:  # the model before it, of EDM, is none that a folder can hold
            exec(blocks[0], made)
        made.pop("again", None)
        exec(block, made)
        protected, x = made["protected"], made["images"]
        assert isinstance(protected, ProtectedClassifier)
        torch.testing.assert_close(protected(x).argmax(1), classifier(x).argmax(1))
        if "again" in made:
            numbers = None if protected.key else torch.arange(2)
            torch.testing.assert_close(made["again"](x, numbers), protected(x, numbers))


def test_the_example_of_a_data_set_is_one(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        np.savez(tmp_path / f"{split}.npz", x=np.zeros((count, 3, 32, 32), np.uint8), y=np.arange(count))
    names = {"np": np, "Path": Path, "Source": sources.Source, "Dataset": Dataset}
    made: dict[str, Any] = {**names, "DATASETS": dict(DATASETS)}
    exec(python_block("docs/extend.md", "DATASETS"), made)
    source = made["DATASETS"]["mine"].load(tmp_path)
    assert (len(source.train_labels), len(source.test_labels)) == (3, 2)
    assert source.train_images.shape == (3, 3, 32, 32)


def test_the_examples_of_attacks_are_attacks() -> None:
    """On members whose true logit is 2 larger, both find what there is: AUC of N(2, .) against N(0, .)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)

    def outputs(shift: float) -> Outputs:
        return Outputs(rng.normal(size=(400, 5)) + shift * np.eye(5)[labels], labels)

    known, scored = (Pair(outputs(4), outputs(2)) for _ in range(2))
    # Each example sees the names of the file that it is written for, and no others.
    metric_file: dict[str, Any] = {**vars(attacks.metric), "METRIC_ATTACKS": {}}
    trained_file: dict[str, Any] = {**vars(attacks), "ATTACKS": {}}
    exec(python_block("docs/extend.md", "METRIC_ATTACKS"), metric_file)
    exec(python_block("docs/extend.md", "linear_attack"), trained_file)
    margin, linear = metric_file["METRIC_ATTACKS"]["margin"], trained_file["ATTACKS"]["linear"]
    assert {"margin", "linear"}.isdisjoint({*METRIC_ATTACKS, *ATTACKS})
    assert auc(*scored.map(margin)) > 0.85
    assert auc(*linear(known, scored, NNOptions(), 0).scored) > 0.75
