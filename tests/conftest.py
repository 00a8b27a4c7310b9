"""Shared by the tests: a copy of the source tree in which the real scripts run, a profile that takes seconds, drawn inputs."""

import math
import os
import resource
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from common.attacks import Outputs
from common.cli import run_script as run_command
from common.config import Config, Data, Model, Train
from common.data.partition import Examples, Split, load_split
from common.data.sources import Source
from common.data.synthetic import generate
from common.defenses import memguard
from common.defenses.memguard import MemGuard
from common.diffence.candidates import draw_all
from common.files import save_checkpoint
from common.run import Run, open_run
from common.training import predict
from common.training.pace import Pace
from common.training.targets import load_target, model_path, settings_of

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"  # real data, beside the repository where it is developed
DATASETS = ("cifar10", "cifar100", "svhn", "celeba", "utkface", "synthetic")
MADE_BY_RUNS = ("data", "final-all-models", "diff_models", "candidates", "outputs", "results", "__pycache__")
CLASSES = 10  # of random examples and of planted predictions
SMALLEST = Model(width=4, depth=1)
BATCH = 16  # of `defense_run`
LONG_FILES = ("test_slurm", "test_worst_case", "test_uncertainty")  # of those that would be among the last

TINY = Path(__file__).with_name("tiny.yaml")


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str
    cpu: float = 0.0  # seconds, of a process of its own


def write_profile(path: Path, *changes: str) -> Path:
    """The tiny profile with `section.key=value` changes, at `path`, whose stem names it."""
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(TINY), OmegaConf.from_dotlist(list(changes))), path)
    return path


def script_environment() -> dict[str, str]:
    """This interpreter for the shell scripts, one thread, and no data of the user's."""
    wanted = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**{key: value for key, value in os.environ.items() if key != "DIFFENCE_DATA"}, **wanted}


def run_script(workspace: Path, script: str, *arguments: object, options: Sequence[str] = (), gpu: bool = False) -> Answer:
    """Run a script of the copied tree as a user does, in a process of its own, which sees no GPU without `gpu`.

    `options` go to Python.
    """
    interpreter = ["bash"] if script.endswith(".sh") else [sys.executable, *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*interpreter, script, *map(str, arguments)],
        cwd=workspace,
        env=script_environment() | ({"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")} if gpu else {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Answer(done.returncode, done.stdout, done.stderr, cpu)


def tiny_run(folder: Path, profile: Path, *overrides: str, seed: int = 0) -> Run:
    """The run that `--profile PROFILE --set OVERRIDE --seed SEED --device cpu` describes."""
    return open_run(folder, Namespace(profile=str(profile), set=list(overrides), seed=seed, device="cpu"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, so that at the end no worker waits for the other one."""
    items.sort(key=lambda item: item.path.stem not in LONG_FILES)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws from PyTorch's global generator depends neither on the order of the tests nor on the worker."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without the mark `gpu` sees no GPU, so that its numbers are those of the CPU."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def synthetic() -> Source:
    """The embedded data set."""
    return generate()


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, without anything that a run makes."""
    place = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "common", place / "common", ignore=shutil.ignore_patterns("__pycache__"))
    for name in DATASETS:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns(*MADE_BY_RUNS))
    for path in [ROOT / "pyproject.toml", *ROOT.glob("*.sh")]:
        shutil.copy(path, place)
    return place


@pytest.fixture(scope="session")
def tiny(workspace: Path) -> Path:
    """The tiny profile; it is named `tiny`."""
    return write_profile(workspace / "tiny.yaml")


@pytest.fixture(scope="session")
def trained(workspace: Path, tiny: Path) -> Path:
    """The workspace's `synthetic` folder after the real scripts made partition, undefended classifier and diffusion model."""
    for script, *arguments in (
        ("data_partition.py",),
        ("train_defense.py", "--defense", "undefended"),
        ("diff_defense/train_ddpm.py",),
    ):
        answer = run_script(workspace, f"synthetic/{script}", *arguments, "--profile", tiny)
        assert answer.code == 0, answer.err
    return workspace / "synthetic"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that a test may damage; nothing is drawn or evaluated there yet."""
    ignored = shutil.ignore_patterns("candidates", "outputs", "results")
    return Path(shutil.copytree(trained, tmp_path / "synthetic", ignore=ignored))


@pytest.fixture(scope="session")
def drawn(trained: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained` with the candidates of the clean protocol, drawn in this process."""
    ignored = shutil.ignore_patterns("candidates", "outputs", "results")
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("drawn") / "synthetic", ignore=ignored))
    run = tiny_run(folder, tiny)
    draw_all(run, load_split(run), "clean")
    return folder


@pytest.fixture
def copied_drawn(drawn: Path, tmp_path: Path) -> Path:
    """A copy of `drawn` that a test may damage."""
    return Path(shutil.copytree(drawn, tmp_path / "synthetic"))


@pytest.fixture
def every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of this test write a checkpoint wherever they may, whatever it costs."""
    monkeypatch.setattr(Pace, "due", lambda pace: True)


AT_ONCE = """
import runpy, sys
from common.training import pace
pace.FIRST_COST = 0
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def at_once(workspace: Path) -> Path:
    """A script that runs the script which is its first argument, whose trainings have a checkpoint as soon as they may."""
    path = workspace / "at_once.py"
    path.write_text(AT_ONCE)
    return path


Call = Callable[..., Answer]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `command(folder, *arguments)` of common.commands as its script would, in this process."""

    def run(command: Callable[[Path, Sequence[str]], None], folder: Path, *arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            run_command(command, folder)
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capsys.readouterr()
        return Answer(code, shown.out, shown.err)

    return run


def halves(models: int, points: int, seed: int) -> np.ndarray:
    """Which of `models` shadow models trains on which of `points` points: bool [models, points], each point in half of them."""
    return np.random.default_rng(seed).random((models, points)).argsort(axis=0) < models // 2


def random_examples(count: int, seed: int) -> Examples:
    """Pixels and labels drawn uniformly: nothing to learn but the examples themselves."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.randint(0, CLASSES, (count,), generator=generator))


def random_split(data: Data) -> Split:
    """Random examples in the numbers of `data`."""
    return Split(random_examples(data.members, 1), random_examples(data.reference, 2), random_examples(data.non_members, 3))


def defense_run(
    folder: Path, defense: str, data: Data, options: dict[str, Any], *, model: Model = SMALLEST, **train: Any
) -> Run:
    """A run for `random_split(data)` where no profile is: `options` go to the defense, `train` to `Train`."""
    config = Config(data=data, model=model, train=Train(batch_size=BATCH, **train), defenses={defense: options})
    return Run(folder / "synthetic", "small", config, 0, torch.device("cpu"))


def planted_memguard(run: Run) -> MemGuard:
    """MemGuard around the trained undefended classifier, saved where an evaluation looks for it.

    Its guard is untrained, but has a steep slope and guesses 1/2 on average over the members' answers: noise moves it across.
    """
    model = memguard.build(run)
    load_target(run, "undefended", "clean", model.classifier)
    with torch.no_grad():
        weight, bias = list(model.guard.parameters())[-2:]
        weight.mul_(100)
        bias.sub_(model.guard(predict(model.classifier, load_split(run).members, run.device).softmax(1)).mean())
    content = {"model": model.state_dict(), "settings": settings_of(run, "memguard"), "facts": {}, "history": [{}]}
    save_checkpoint(model_path(run, "memguard"), content)
    return model.eval()


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's parameters and buffers as they are now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def planted(n: int, mean: float, seed: int, spread: float = 1.0) -> Outputs:
    """n predictions whose log-odds of the true label are N(mean, spread); labels are uniform and tell nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    logits = np.zeros((n, CLASSES))
    logits[np.arange(n), labels] = rng.normal(mean, spread, n) + math.log(CLASSES - 1)
    return Outputs(logits, labels)


def refusal(answer: Answer) -> str:
    """The one sentence of a refused command: exit code 2, and nothing else on stderr."""
    assert answer.code == 2, answer
    assert answer.err.startswith("error: "), answer.err
    assert answer.err.count("\n") == 1, answer.err
    return answer.err.removeprefix("error: ").rstrip()


def stop_after(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, but after `count` calls it raises KeyboardInterrupt, as Ctrl-C would. `batches` is called once an epoch."""
    calls = 0

    def stop(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > count:
            raise KeyboardInterrupt
        return function(*arguments)

    return stop
