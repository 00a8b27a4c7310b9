"""`python -m benchmarks.reconstruction --row ROW.json`: the cost of a defended query.

Three ways to answer a query are timed in CPU seconds, in one process, with the paper's UNet (35.7 M parameters), ResNet18,
N = 30 and T = 160, at batch sizes 1 and 10:

released: a plain rewrite of the released code, in float32. It makes N reconstructions one after the other, each with two
    network calls, of which the first (from T to T) changes nothing. The classifier runs with its autograd graph.
eager: all N candidates at once.
lazy: `ProtectedClassifier`, which draws candidates one by one until one qualifies.

The last two are timed in float32 and, where the processor has bfloat16 arithmetic, in bfloat16, the setting of paper.yaml
(ddpm.bf16). The cost of a call does not depend on the weights, which are therefore random. The number of candidates that
scenario 3 draws does depend on them. It is taken from the JSON row of an evaluation with trained networks (--row), and `lazy`
is timed with this number, rounded up. The search of scenario 1's interval is timed as well. The result is one JSON object,
which is printed and written to --out.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.config import DDPM
from common.diffence.ddpm import build_unet
from common.diffence.protect import ProtectedClassifier
from common.diffence.reconstruct import DiffusionReconstructor, alpha_bars, draw_candidates, forward_noise
from common.diffence.select import CandidateLogits, Selector, fit_selector
from common.files import write_json
from common.models import build_classifier
from common.pair import Pair
from common.run import native_bf16

N, T = 30, 160


def released_query(unet: nn.Module, classifier: nn.Module, images: torch.Tensor, n: int) -> torch.Tensor:
    """Logits [B, n + 1, C] as the released code computes them: one reconstruction at a time, each with a superfluous call."""
    alpha_bar = alpha_bars().float()
    logits = [classifier(images)]
    for _ in range(n):
        with torch.no_grad():
            x = forward_noise(2 * images - 1, torch.randn_like(images), alpha_bar[T], "released")
            for step, next_step in ((T, T), (T, 0)):
                noise = unet(x, T - 1, return_dict=False)[0]
                x0 = (x - (1 - alpha_bar[step]).sqrt() * noise) / alpha_bar[step].sqrt()
                x = alpha_bar[next_step].sqrt() * x0 + (1 - alpha_bar[next_step]).sqrt() * noise
        logits.append(classifier(((x + 1) / 2).clamp(0, 1)))
    return torch.stack(logits, dim=1)


def cpu_seconds(work: Callable[[], object]) -> float:
    """The CPU time that all threads of this process spend in `work()`."""
    started = time.process_time()
    work()
    return time.process_time() - started


def time_queries(batch: int, bf16: bool, draws: int, repeats: int) -> dict[str, float | str]:
    """CPU seconds of the three ways at one batch size, and their ratios. Each time is the least of `repeats`, interleaved."""
    torch.manual_seed(0)
    plain_unet, unet = build_unet(DDPM()).eval(), build_unet(DDPM())
    classifier = build_classifier("resnet18", 10, mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    reconstruct = DiffusionReconstructor(unet, T, bf16=bf16)
    images = torch.rand(batch, 3, 32, 32)
    queries = torch.arange(batch)

    def eager() -> torch.Tensor:
        with torch.inference_mode():
            classifier(images)
            candidates = draw_candidates(reconstruct, images, queries, N, 60)
            return torch.cat([classifier(part) for part in candidates.flatten(0, 1).split(60)])

    def lazy() -> torch.Tensor:
        unreachable = Selector("1", 1e9, 2e9)  # no candidate qualifies, so that exactly `draws` are drawn, one by one
        return ProtectedClassifier(classifier, reconstruct, unreachable, draws)(images)

    times: dict[str, list[float]] = {"released": [], "eager": [], "lazy": []}
    for _ in range(repeats):
        times["released"].append(cpu_seconds(lambda: released_query(plain_unet, classifier, images, N)))
        times["eager"].append(cpu_seconds(eager))
        times["lazy"].append(cpu_seconds(lazy))
    least = {name: min(values) for name, values in times.items()}
    return {
        "batch": batch,
        "precision": "bfloat16" if bf16 else "float32",
        **{f"{name}_cpu_s": round(value, 2) for name, value in least.items()},
        "released_over_eager": round(least["released"] / least["eager"], 2),
        "released_over_lazy": round(least["released"] / least["lazy"], 2),
        "released_draw_over_lazy_draw": round(least["released"] / N / (least["lazy"] / draws), 2),
    }


def flops() -> dict[str, float]:
    """GFLOP of one network evaluation and of one classification. A multiply-add counts as 2."""
    counts = {}
    classifier = build_classifier("resnet18", 10, mean=(0.5,) * 3, std=(0.25,) * 3)
    for name, module, inputs in (
        ("unet", build_unet(DDPM()), (torch.rand(1, 3, 32, 32), 1)),
        ("classifier", classifier, (torch.rand(1, 3, 32, 32),)),
    ):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            module.eval()(*inputs)
        counts[f"{name}_gflop"] = counter.get_total_flops() / 1e9
    return counts


def interval_search_seconds() -> float:
    """CPU seconds of scenario 1's search over 210 intervals, with 1,000 + 1,000 points, 30 candidates and 10 classes."""
    rng = np.random.default_rng(0)
    originals = [rng.normal(size=(1000, 10)) + shift * np.eye(10)[0] for shift in (2.0, 0.0)]
    fit = Pair(*(CandidateLogits(logits, logits[:, None] + rng.normal(size=(1000, N, 10))) for logits in originals))
    return min(cpu_seconds(lambda: fit_selector("1", fit)) for _ in range(3))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", type=Path, required=True, help="JSON row of an evaluation in scenario 3 with trained networks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "benchmark_reconstruction.json")
    parser.add_argument("--repeats", type=int, default=2)
    parsed = parser.parse_args()
    draws = json.loads(parsed.row.read_text())["diffence"]["draws"]
    mean_draws = sum(draws.values()) / 2
    per_call = flops()
    result = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "n": N,
        "t": T,
        "draws_per_query": {"from": parsed.row.name, **draws},
        "lazy_timed_with_draws": math.ceil(mean_draws),
        "unet_evaluations": {"released": 2 * N, "eager": N, "lazy": mean_draws},
        **per_call,
        "query_gflop": {
            "released": 2 * N * per_call["unet_gflop"] + (N + 1) * per_call["classifier_gflop"],
            "eager": N * per_call["unet_gflop"] + (N + 1) * per_call["classifier_gflop"],
            "lazy": mean_draws * per_call["unet_gflop"] + (mean_draws + 1) * per_call["classifier_gflop"],
        },
        "interval_search_cpu_s": round(interval_search_seconds(), 4),
        "runs": [
            time_queries(batch, bf16, math.ceil(mean_draws), parsed.repeats)
            for bf16 in sorted({False, native_bf16(torch.device("cpu"))})
            for batch in (1, 10)
        ],
    }
    print(json.dumps(result, indent=1))
    write_json(parsed.out, result)


if __name__ == "__main__":
    main()
