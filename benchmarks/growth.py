"""python -m benchmarks.growth: time and memory of what grows, at 1, 4 and 16 times its size.

- plan: all jobs of three data sets and eight defenses, by the number of shadow models of each defense.
- shadow models: training that many in one process, on 200 images.
- evaluation: scenario 1, all attacks and the null on that many points of each side, with N = 30 and 10 classes, from made-up
  logits. The networks' part, which goes through the candidates file by file, is left out.

Each measurement is a process of its own. Its memory is the peak of the process, and beside it what the process had when all
modules were imported. The result is written to results/benchmark_growth.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.cli import ROOT, run_script
from common.config import Config, Data, Model, Train
from common.data.partition import Examples, Split, evaluation_pools
from common.defenses import DefendedModel, with_options
from common.experiments.collect import LabelledLogits
from common.experiments.evaluate import attack, attack_null, defend
from common.experiments.plan import plan_jobs
from common.experiments.shadow_models import train_shadow
from common.files import write_json
from common.pair import Pair
from common.report.measure import measure
from common.run import Run, environment, open_run

CPU = torch.device("cpu")
DATASETS, CLASSES, CANDIDATES = ("cifar10", "cifar100", "svhn"), 10, 30
DEFENSES = ("undefended", "hamp", "relaxloss", "dpsgd", "dpsgd-private", "selena", "advreg", "memguard")


def plan(shadows: int) -> None:
    """Plan everything, and look what exists of it."""
    for dataset in DATASETS:
        options = Namespace(profile="paper", set=[f"attack.shadows={shadows}"], seed=0, device="cpu")
        jobs = plan_jobs([with_options(open_run(ROOT / dataset, options))], DEFENSES, ("1", "2", "3"), "clean")
        for job in jobs:
            job.state()


def shadow_models(count: int) -> None:
    """Train shadow models on random images."""
    generator = torch.Generator().manual_seed(0)
    data = Data(members=200, reference=200, non_members=200, fit=20, known=20, scored=100)
    images = torch.randint(0, 256, (600, 3, 32, 32), generator=generator, dtype=torch.uint8)
    examples = Examples(images, torch.randint(0, CLASSES, (600,), generator=generator))
    split = Split(*(examples.take(slice(start, start + 200)) for start in (0, 200, 400)))
    with tempfile.TemporaryDirectory() as folder:
        config = Config(data=data, model=Model(width=16), train=Train(epochs=1))
        run = Run(Path(folder) / "synthetic", "growth", config, 0, CPU)
        for index in range(count):
            train_shadow(run, split, "undefended", index)


def evaluation(points: int) -> None:
    """Select, attack and measure. Members' logits are larger, and candidates add noise to them."""
    generator = np.random.default_rng(0)
    data = Data(members=points + 2000, non_members=points + 2000, scored=points)
    run = Run(ROOT / "synthetic", "growth", Config(data=data), 0, CPU)
    pools = evaluation_pools(data, "clean")
    count = len(pools.used)

    def side(scale: float) -> LabelledLogits:
        labels = generator.integers(0, CLASSES, count)
        original = generator.normal(size=(count, CLASSES)).astype(np.float32)
        original[np.arange(count), labels] += scale
        candidates = np.repeat(original[:, None], CANDIDATES, 1)
        candidates += generator.standard_normal(candidates.shape, dtype=np.float32)
        return LabelledLogits(original, candidates, labels)

    collected = Pair(side(6.0), side(3.0))
    defended = defend(run, DefendedModel(torch.nn.Identity(), None), collected, pools, "1")
    null = attack_null(run, "undefended", pools, defended, "clean")
    measure(attack(run, pools, defended, "clean"), null, "clean", run.config.attack)


TASKS: dict[str, tuple[Callable[[int], None], tuple[int, int, int]]] = {
    "plan": (plan, (8, 32, 128)),
    "shadow models": (shadow_models, (1, 4, 16)),
    "evaluation": (evaluation, (3_125, 12_500, 50_000)),
}


def measure_here(task: str, size: int) -> dict[str, float]:
    """Run a task in this process: wall and CPU seconds, and memory in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    TASKS[task][0](size)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    memory = {"peak_mb": after.ru_maxrss / 1024, "imported_mb": before.ru_maxrss / 1024}
    return {"size": size, "wall_s": time.perf_counter() - started, "cpu_s": cpu, **memory}


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. `folder` is the repository's root."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("TASK", "SIZE"), help="measure this one in this process, and print JSON")
    parsed = parser.parse_args(arguments)
    if parsed.one:
        print(json.dumps(measure_here(parsed.one[0], int(parsed.one[1]))))
        return
    result: dict[str, Any] = {**environment(Run(folder / "synthetic", "small", Config(), 0, CPU)), "tasks": {}}
    for task, (_, sizes) in TASKS.items():
        result["tasks"][task] = []
        for size in sizes:
            command = [sys.executable, "-m", "benchmarks.growth", "--one", task, str(size)]
            told = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(told.splitlines()[-1])
            result["tasks"][task].append(found)
            print(f"{task:14} {size:7,}  {found['cpu_s']:7.1f} s of CPU  {found['peak_mb']:6.0f} MB", flush=True)
    write_json(folder / "results" / "benchmark_growth.json", result)


if __name__ == "__main__":
    run_script(main, ROOT)
