"""`python -m benchmarks.serving --dataset cifar10 --profile narrow`: how fast a protected classifier answers, and why.

The trained undefended classifier of a run answers scored images alone and behind Diffence, in scenarios 1 and 3, with 1, 4 or
all N candidates drawn at a time, for calls of 1, 8 and 64 images. In each round all ways answer the same images in turn, so
that they can be compared on a machine that is busy at times. The networks measure their own CPU time within these calls: what
is left is the Python around them, the noise and the selection.

The result is one JSON object with the commit and the machine, from which `python -m common.report` makes the table of
docs/serve.md.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.cli import ROOT, run_script
from common.config import require
from common.data.partition import load_split
from common.defenses import load_defended_model, with_options
from common.diffence.ddpm import load_reconstructor
from common.diffence.protect import ProtectedClassifier
from common.experiments.overhead import protected_classifiers, timed_images
from common.files import write_json
from common.profiles import load_config
from common.run import Run, environment

SCENARIOS = ("1", "3")
BATCHES = (1, 8, 64)  # images in a call
BLOCKS = 5  # of rounds: the ratio to the bare classifier is the median over them


class Timed(nn.Module):
    """A network that adds up the CPU seconds of its calls, in `seconds`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """What the network returns."""
        started = time.process_time()
        answer = self.network(*arguments, **options)
        self.seconds += time.process_time() - started
        return answer


Way = tuple[str | None, int | None, nn.Module]  # scenario, candidates drawn at a time, and what answers; None = bare


def ways_to_answer(run: Run) -> tuple[list[Way], dict[str, Timed]]:
    """The bare classifier, then each scenario with 1, 4 and N candidates at a time; and the networks in all of them."""
    model, n = load_defended_model(run, "undefended", "clean"), run.config.diffence.n
    reconstruct = load_reconstructor(run)
    networks = {"unet": Timed(reconstruct.unet), "classifier": Timed(model.classifier)}
    reconstruct.unet, classifier = networks["unet"], networks["classifier"]
    at_once = {1, min(4, n), n}
    behind = protected_classifiers(run, "undefended", classifier, reconstruct, load_split(run), SCENARIOS, at_once)
    return [(None, None, classifier), *behind], networks


@torch.inference_mode()
def time_ways(
    ways: list[Way], networks: dict[str, Timed], images: torch.Tensor, batch: int, calls: int
) -> list[dict[str, Any]]:
    """What `summarised` says of each way, over `calls` calls of `batch` images that differ from call to call."""
    names = ("wall", "cpu", *networks, "draws")
    measured = np.zeros((len(ways), calls + 1, len(names)))
    for call in tqdm(range(calls + 1), desc=f"calls of {batch}", unit="round", disable=None):
        part = images.roll(-call * batch, 0)[:batch]
        for i, (_, _, answer) in enumerate(ways):
            before = [network.seconds for network in networks.values()]
            wall, cpu = time.perf_counter(), time.process_time()
            answer(part)
            if part.is_cuda:
                torch.cuda.synchronize(part.device)
            measured[i, call, :2] = time.perf_counter() - wall, time.process_time() - cpu
            measured[i, call, 2:-1] = [network.seconds - past for network, past in zip(networks.values(), before, strict=True)]
            measured[i, call, -1] = answer.drawn.sum() if isinstance(answer, ProtectedClassifier) else 0
    timed = [dict(zip(names, way[1:].T, strict=True)) for way in measured]  # the first call warms up
    return [
        {"scenario": scenario, "draws_at_once": draws, "batch": batch} | summarised(one, timed[0], batch)
        for (scenario, draws, _), one in zip(ways, timed, strict=True)
    ]


def summarised(timed: dict[str, np.ndarray], bare: dict[str, np.ndarray], batch: int) -> dict[str, Any]:
    """Speed of a way from seconds of each call: arrays [calls].

    - images_per_second: by wall time
    - call_ms: median and 99th percentile of the wall time of a call
    - cpu_ms: CPU time an image, on average
    - over_bare: CPU time over the bare classifier's, the median over BLOCKS blocks of calls
    - draws: candidates an image, on average
    - share: of the CPU time in each network, and the rest
    """
    blocks = [np.array_split(one["cpu"], min(BLOCKS, len(one["cpu"]))) for one in (timed, bare)]
    shares = {name: float(timed[name].sum() / timed["cpu"].sum()) for name in ("unet", "classifier")}
    p50, p99 = np.percentile(1000 * timed["wall"], [50, 99])
    return {
        "calls": len(timed["wall"]),
        "images_per_second": float(batch * len(timed["wall"]) / timed["wall"].sum()),
        "call_ms": {"p50": float(p50), "p99": float(p99)},
        "cpu_ms": float(1000 * timed["cpu"].mean() / batch),
        "over_bare": float(np.median([one.sum() / other.sum() for one, other in zip(*blocks, strict=True)])),
        "draws": float(timed["draws"].mean() / batch),
        "share": shares | {"rest": 1 - sum(shares.values())},
    }


def machine() -> dict[str, Any]:
    """The processor's name and its number of cores."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "cores": os.cpu_count()}


def serving(run: Run, calls: int) -> dict[str, Any]:
    """Measure all ways and calls of all sizes. A call of b images is made `calls` / b^(1/2) times, at least 5 times."""
    ways, networks = ways_to_answer(run)
    images = timed_images(run, load_split(run), run.config.data.scored)
    numbers = {batch: max(BLOCKS, round(calls / batch**0.5)) for batch in BATCHES}
    return {
        "dataset": run.dataset,
        "profile": run.profile_name,
        "n": run.config.diffence.n,
        "t": run.config.diffence.t,
        "machine": machine(),
        **environment(run),
        "config": run.config.as_dict(),
        "answers": [one for batch in BATCHES for one in time_ways(ways, networks, images, batch, numbers[batch])],
    }


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. `folder` is the repository's root."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--profile", default="narrow")
    parser.add_argument("--calls", type=int, default=100, help="calls of one image; larger calls are fewer (default: 100)")
    parser.add_argument("--out", type=Path, help="(default: results/benchmark_serving_<data set>_<profile>.json)")
    parsed = parser.parse_args(arguments)
    require(parsed.calls > 0, f"--calls must be at least 1, not {parsed.calls}.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(folder / parsed.dataset, parsed.profile)
    run = with_options(Run(folder / parsed.dataset, parsed.profile, config, 0, device))
    result = serving(run, parsed.calls)
    print(json.dumps(result, indent=1))
    write_json(parsed.out or folder / "results" / f"benchmark_serving_{run.dataset}_{run.profile_name}.json", result)


if __name__ == "__main__":
    run_script(main, ROOT)
