"""The CPU seconds of a query behind Diffence, over those of the bare classifier, as a function of how many candidates it draws.

A query costs the classifier once, and a reconstruction and a classification for each candidate. So its cost is a line in the
number of draws. The bare classifier, a query with one draw and a query with `DRAWS` draws are timed in turn on the same images,
and their medians give the line. Measured draws are then put into it, so that few calls suffice, whatever images they have.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.config import Model
from common.diffence.protect import ProtectedClassifier
from common.diffence.reconstruct import DiffusionReconstructor
from common.diffence.select import Selector
from common.run import Run
from common.training.targets import target_classifier

DRAWS = 4  # of the longer query
CALLS = {1: 15, 16: 3}  # how often each query is timed, by the images in a call


def seconds(run: Run, work: Callable[[], object]) -> float:
    """The CPU seconds that all threads of this process spend in `work()`. On a GPU, the wall seconds until it is done."""
    on_gpu = run.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    started = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize(run.device)
    return clock() - started


def gflop(network: nn.Module, *inputs: Any) -> float:
    """GFLOP of one call. A multiply-add counts as 2."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(*inputs)
    return float(counter.get_total_flops() / 1e9)


def published_classifier(run: Run) -> nn.Module:
    """The run's architecture at its published size with random weights, on which the cost of a call does not depend."""
    published = replace(run, config=replace(run.config, model=Model(run.config.model.name)))
    return target_classifier(published).to(run.device).to(memory_format=torch.channels_last).eval()


def time_draws(
    run: Run, classifier: nn.Module, reconstruct: DiffusionReconstructor, images: torch.Tensor, draws: dict[str, float]
) -> dict[str, Any]:
    """The cost of queries with the run's classifier and with one of the published size.

    draws: the mean number of candidates that an image draws, by scenario.

    Keys of the result:
    - gflop: of one call for one image of the networks unet, classifier and published
    - draws: as given
    - queries: for both classifiers and each number of images in a call, milliseconds an image of the bare classifier, of a
      query with one draw and of each further draw, and for each scenario the cost of a query over the bare classifier's
    """
    one = images[:1]
    classifiers = {"trained": classifier, "published": published_classifier(run)}
    counts = {name: gflop(network, one) for name, network in classifiers.items()}
    return {
        "gflop": {"unet": gflop(reconstruct.unet, one, run.config.diffence.t - 1), **counts},
        "draws": draws,
        "queries": [
            {"classifier": name, "batch": batch} | time_queries(run, network, reconstruct, images, batch, draws)
            for name, network in classifiers.items()
            for batch in CALLS
        ],
    }


@torch.inference_mode()
def time_queries(
    run: Run,
    classifier: nn.Module,
    reconstruct: DiffusionReconstructor,
    images: torch.Tensor,
    batch: int,
    draws: dict[str, float],
) -> dict[str, Any]:
    """The line of the cost of a query in a call of `batch` images, and its values at the given draws."""
    never = Selector("1", 1e9, 2e9)  # no candidate qualifies, so that all n are drawn, one at a time
    ways = {
        "bare": classifier,
        "one": ProtectedClassifier(classifier, reconstruct, never, 1),
        "many": ProtectedClassifier(classifier, reconstruct, never, DRAWS),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for call in range(CALLS[batch] + 1):
        part = images.roll(-call * batch, 0)[:batch]
        for name, answer in ways.items():
            times[name].append(1000 * seconds(run, partial(answer, part)) / len(part))
    bare, first, many = (median(found[1:]) for found in times.values())  # the first call warms up
    further = (many - first) / (DRAWS - 1)
    return {
        "bare_ms": bare,
        "one_draw_ms": first,
        "further_draw_ms": further,
        "over_bare": {scenario: (first + (count - 1) * further) / bare for scenario, count in draws.items()},
    }
