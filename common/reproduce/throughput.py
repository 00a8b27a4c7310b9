"""Measure how long each unit of work takes on the device at hand: real steps at the profile's shapes, on random images.

The images lie in memory. Where a data set's images stay on the disk, reading them is not measured.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

import numpy as np
import opacus  # noqa: F401 - here, like PyTorch's compiler, which every optimizer imports, so that no trial waits for them
import torch
import torch._dynamo
from diffusers.training_utils import EMAModel

from common.attacks import NNOptions, Outputs
from common.attacks.nn import nn_attack
from common.data import DATASETS
from common.data.partition import Examples
from common.defenses import advreg, dpsgd, dpsgd_strong, memguard
from common.diffence.ddpm import Padded, build_unet, ddpm_step
from common.diffence.reconstruct import DiffusionReconstructor
from common.pair import Pair
from common.reproduce import work
from common.run import Run
from common.training import Objective, options_of, predict, target_classifier

SECONDS = 20.0  # of a calibration
GROWTH = 4  # from one trial to a larger one
REPEATS = 10  # of the largest trial, of which the median counts
PREDICTED = 500  # images in a batch of `predict`


@dataclass(frozen=True)
class Trial:
    """Work that can be done at any size, such as a training step on so many images.

    work: does it. size: that of the profile. units: how many units of work it is at this size. smallest: the size to begin
    with. BatchNorm needs two images.
    """

    work: Callable[[int], object]
    size: int
    units: int = 1
    smallest: int = 2


def measure(
    run: Run, units: Iterable[str], seconds: float = SECONDS, now: Callable[[], float] = perf_counter
) -> dict[str, float]:
    """The seconds that each of the `units` takes on the run's device, by name. It takes about `seconds` in all.

    Units that have no trial, such as the start of a job, are left out. `now` is the clock. What a unit does not use of its
    share of the time is left to those after it.
    """
    end, asked, measured = now() + seconds, set(units), {}
    left = [name for name in TRIALS if name in asked]
    while left:
        name, *rest = left
        deadline = now() + (end - now()) / len(left)
        trial = TRIALS[name](run)
        trial = replace(trial, work=_synchronised(trial.work, run.device))
        measured[name] = seconds_of(trial, deadline, now) / trial.units
        left = rest
    if run.device.type == "cuda":
        torch.cuda.empty_cache()  # the jobs are other processes, which need the memory
    return measured


def seconds_of(trial: Trial, deadline: float, now: Callable[[], float] = perf_counter) -> float:
    """The seconds of a trial of its full size, measured until the `deadline` of the clock `now`.

    It begins small and grows while a larger size is expected to end in time. What a size takes that was not tried lies on the
    straight line through the last two that were. After the first one, the line begins at no time for size 0.
    """

    def timed() -> float:
        started = now()
        trial.work(tried)
        return now() - started

    def expected(size: int) -> float:
        slope = (seconds - seconds_before) / (tried - tried_before)
        return seconds + max(slope, 0.0) * (size - tried)

    tried, tried_before, seconds_before = min(trial.smallest, trial.size), 0, 0.0
    while True:
        seconds = timed()
        if now() + seconds <= deadline:
            seconds = timed()  # the first time was a warm-up
        larger = min(GROWTH * tried, trial.size)
        if tried == trial.size or now() + expected(larger) > deadline:
            break
        tried, tried_before, seconds_before = larger, tried, seconds
    times = [seconds]
    while len(times) < REPEATS and now() + times[-1] <= deadline:
        times.append(timed())
    seconds = median(times)
    return expected(trial.size)


def _synchronised(work: Callable[[int], object], device: torch.device) -> Callable[[int], object]:
    """The work, which on a GPU returns only when it is done."""

    def done(size: int) -> None:
        work(size)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return done


def guard_step(run: Run) -> Trial:
    options, classes = options_of(run, "memguard", memguard.Options), DATASETS[run.dataset].classes
    config = replace(run.config.train, batch_size=options.batch_size, lr=options.lr)
    confidences = torch.rand(options.batch_size, classes).softmax(1)
    examples = Examples(confidences, torch.arange(options.batch_size) % 2)
    return _step(memguard.GuardTraining(memguard.build(run), examples, config, run.device))


def attack_epoch(run: Run) -> Trial:
    config, classes = run.config.attack, DATASETS[run.dataset].classes
    rng = np.random.default_rng(0)

    def points() -> Outputs:
        known = run.config.data.known
        return Outputs(rng.normal(size=(known, classes)), rng.integers(0, classes, known))

    known, scored = Pair(points(), points()), Pair(points(), points())
    options = NNOptions(config.nn_epochs, config.nn_lr, config.nn_batch_size, config.nn_held_out, device=run.device)
    epochs = config.nn_epochs
    return Trial(lambda tried: nn_attack(known, scored, replace(options, nn_epochs=tried), 0), epochs, units=epochs)


def prediction(run: Run) -> Trial:
    model, examples = target_classifier(run), _examples(run, PREDICTED)
    return Trial(lambda images: predict(model, examples.take(slice(images)), run.device), PREDICTED, units=PREDICTED)


def attacker_step(run: Run) -> Trial:
    train, options = run.config.train, options_of(run, "advreg", advreg.Options)
    examples = _examples(run, train.batch_size)
    attacker = advreg.InferenceNet(DATASETS[run.dataset].classes, 0)
    objective = advreg.AdvReg(target_classifier(run), attacker, examples, examples, train, run.device, options)

    def step(images: int) -> None:
        objective.attack_batch_size = images
        objective.batches()
        objective.train_attacker(1)

    return Trial(step, train.batch_size)


def classifier_step(run: Run) -> Trial:
    train = run.config.train
    examples = _examples(run, train.batch_size)
    return _step(Objective(target_classifier(run), examples, train, run.device))


def dpsgd_step(run: Run) -> Trial:
    train, options = run.config.train, replace(options_of(run, "dpsgd", dpsgd.Options), target_epsilon=0.0)
    examples = _examples(run, train.batch_size)
    return _step(dpsgd.DPSGD(dpsgd.build(run), examples, train, run.device, options), smallest=1)


def strong_step(run: Run) -> Trial:
    options = replace(options_of(run, dpsgd_strong.NAME, dpsgd_strong.Options), target_epsilon=0.0)
    examples = _examples(run, options.batch_size)
    model = dpsgd_strong.build(run)
    return _step(dpsgd_strong.StrongDPSGD(model, examples, run.config.train, run.device, options), smallest=1)


def candidate(run: Run) -> Trial:
    config, examples = run.config.diffence, _examples(run, run.config.diffence.batch)
    unet = Padded(build_unet(run.config.ddpm, _size(run))).to(run.device)
    reconstruct = DiffusionReconstructor(unet, config.t, config.steps, config.forward, 0, run.config.ddpm.bf16)

    def draw(images: int) -> None:
        queries = torch.arange(images)
        reconstruct(examples.pixels(slice(images)).to(run.device), queries, queries).half().cpu()

    return Trial(draw, config.batch, units=config.batch, smallest=1)


def diffusion_step(run: Run) -> Trial:
    config = run.config.ddpm
    images = _examples(run, config.batch_size).to(run.device)
    unet = build_unet(config, _size(run)).to(run.device, memory_format=torch.channels_last).train()
    network, optimizer = Padded(unet), torch.optim.Adam(unet.parameters(), config.lr)
    average = EMAModel(unet.parameters(), decay=config.ema_decay)
    average.to(run.device)

    def step(batch: int) -> None:
        ddpm_step(network, optimizer, images, replace(config, batch_size=batch), 0, 0)
        average.step(unet.parameters())

    return Trial(step, config.batch_size, smallest=1)


# By unit, the cheap ones first, because what they leave of their time goes to the others.
TRIALS: dict[str, Callable[[Run], Trial]] = {
    work.GUARD_STEP: guard_step,
    work.ATTACK_EPOCH: attack_epoch,
    work.PREDICTION: prediction,
    work.ATTACKER_STEP: attacker_step,
    work.CLASSIFIER_STEP: classifier_step,
    work.DPSGD_STEP: dpsgd_step,
    work.STRONG_STEP: strong_step,
    work.CANDIDATE: candidate,
    work.DIFFUSION_STEP: diffusion_step,
}


def _step(objective: Objective, smallest: int = 2) -> Trial:
    """A training step of an objective on so many of its examples."""
    objective.model.train()
    return Trial(lambda images: objective.step(torch.arange(images), 0), objective.config.batch_size, smallest=smallest)


def _size(run: Run) -> tuple[int, int]:
    """(H, W) of the run's images."""
    return DATASETS[run.dataset].image_size(run.config.data.image_size)


def _examples(run: Run, count: int) -> Examples:
    """Random images of the data set's size, and random labels."""
    images = torch.randint(0, 256, (count, 3, *_size(run)), dtype=torch.uint8)
    return Examples(images, torch.randint(0, DATASETS[run.dataset].classes, (count,)))
