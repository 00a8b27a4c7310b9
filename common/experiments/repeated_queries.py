"""`python <data set>/evaluate_MIAs/attack_diffence.py --defense NAME`: what an attacker gains who asks about an image M times.

Everything is learned from the answers of a ProtectedClassifier, as a service gives them: first with fresh noise for every
query, then with `diffence.stable`. The attackers are those of common/attacks/repeated_queries.py. The protocol is clean: in
protocol released the known points, on which some attackers are fitted, are scored too. Answers are stored in chunks, so that a
killed run continues.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.attacks import Outputs, Scores
from common.attacks.repeated_queries import Answers, Repeated, averaged, gap, learned, nearby, once
from common.data.partition import Examples, Split, evaluation_pools, load_split
from common.defenses import load_defended_model
from common.diffence.candidates import candidate_settings
from common.diffence.protect import ProtectedClassifier, load_protected
from common.experiments.collect import collect
from common.experiments.evaluate import defend, fit_on_pool
from common.files import cached_arrays, sha256, write_json
from common.pair import SIDES, Pair
from common.report.measure import report_of
from common.run import Run, provenance
from common.seeds import derive_seed, image_keys
from common.training.targets import PostInference, model_path

PROTOCOL = "clean"
CHUNK = 100  # images that are asked about together
REFERENCE = {"loss": once, "correctness": gap}  # attackers without Diffence
KINDS = ("same", "near")  # the same image M times; M nearly identical images


@dataclass(frozen=True, eq=False)
class Service:
    """What is attacked: a protected classifier, a post-inference defense behind it, and the folder of its stored answers."""

    protected: ProtectedClassifier
    post_inference: PostInference | None
    run: Run
    folder: Path
    settings: dict[str, Any]  # what the answers depend on

    def answer(self, images: torch.Tensor) -> np.ndarray:
        """What the service returns for images [b, 3, H, W] in [0, 1]: logits float32 [b, C]."""
        logits = self.protected(images.to(self.run.device))
        if self.post_inference is not None:
            logits = self.post_inference.release(logits, image_keys(images))
        return logits.cpu().numpy()


def repeated_queries(run: Run, defense: str, scenarios: list[str], m: int, count: int) -> dict[str, Any]:
    """Attack a defense under Diffence with `m` queries an image, on at most `count` scored and `count` known images a side.

    Writes and returns one row. Its `runs` hold a report of every attacker for each scenario, without and with `stable`.
    """
    split, pools = load_split(run), evaluation_pools(run.config.data, PROTOCOL)
    scored, known = pools.scored[:count], pools.known[:count]
    model = load_defended_model(run, defense, PROTOCOL)
    collected = collect(run, defense, PROTOCOL, model.classifier, split)
    without = defend(run, model, collected, pools, None).outputs
    once_each = Repeated(*(without.map(partial(_single_answers, pool=pool)) for pool in (scored, known)))
    settings = {
        "weights": sha256(model_path(run, defense)),
        "candidates": candidate_settings(run),
        "n": run.config.diffence.n,
    }
    runs = []
    queries = 2 * len(scenarios) * (len(scored) + len(known)) * len(SIDES) * len(KINDS) * m
    with tqdm(total=queries, desc="queries", unit="query", smoothing=0.05, disable=None) as progress:
        for scenario in scenarios:
            selector = fit_on_pool(run, collected, pools, scenario)
            for stable in (False, True):
                served = replace(run, config=replace(run.config, diffence=replace(run.config.diffence, stable=stable)))
                folder = run.outputs_dir / f"{defense}-questions" / f"scenario-{scenario}-{'stable' if stable else 'fresh'}"
                protected = load_protected(served, model.classifier, selector)
                stated = settings | {"selector": asdict(selector), "stable": stable}
                service = Service(protected, model.post_inference, run, folder, stated)
                runs.append(_attack(service, split, scored, known, m, progress))
    row = {
        "kind": "repeated_queries",
        **provenance(run, defense, PROTOCOL),
        "m": m,
        "scored": dict.fromkeys(SIDES, len(scored)),
        "known": dict.fromkeys(SIDES, len(known)),
        "reference": {name: _report(attacker, once_each, run) for name, attacker in REFERENCE.items()},
        "runs": runs,
    }
    write_json(result_path(run, defense, m, count), row)
    return row


def result_path(run: Run, defense: str, m: int, count: int) -> Path:
    """The file of the row of M queries about `count` images a side, beside those of evaluate_mia."""
    return run.results_dir(PROTOCOL) / f"attack_diffence-{defense}-m{m}-{count}images.json"


def _single_answers(outputs: Outputs, pool: range) -> Answers:
    """One answer about each image of a pool, for which no candidate was drawn."""
    chosen = outputs.take(np.array(pool))
    return Answers(chosen.logits[:, None], chosen.labels, np.zeros((len(chosen), 1), np.int64))


def _report(attacker: Callable[[Repeated], Scores], repeated: Repeated, run: Run) -> dict[str, Any]:
    """`report_of` an attacker, and the AUC of the same attacker after membership was shuffled."""
    null = attacker(repeated.shuffled(derive_seed("null", "attack_diffence", run.seed)))
    report = report_of(attacker(repeated), PROTOCOL, run.config.attack)
    drawn = [side.drawn.sum(1) for pair in (repeated.scored, repeated.known) for side in pair]
    return report | {
        "null_auc": report_of(null, PROTOCOL, run.config.attack)["auc"],
        "draws": float(np.concatenate(drawn).mean()),  # candidates an image
    }


def _attack(service: Service, split: Split, scored: range, known: range, m: int, progress: tqdm) -> dict[str, Any]:
    """Ask a service all queries and report on every attacker."""
    asked, cpu = [], np.zeros(len(KINDS))
    for pool in (scored, known):
        chunks = Pair(*SIDES).map(partial(_ask, service, pool=pool, m=m, progress=progress), split.evaluated)
        labels = split.evaluated.map(lambda side, pool=pool: side.labels[pool.start : pool.stop].numpy())
        asked.append((chunks, labels))
        cpu += sum(side["cpu"] for side in chunks)

    def repeated(kind: int) -> Repeated:
        return Repeated(
            *(
                chunks.map(lambda side, own: Answers(side["logits"][kind], own, side["drawn"][kind]), labels)
                for chunks, labels in asked
            )
        )

    same, near = repeated(0), repeated(1)
    selector = service.protected.selector
    interval = (selector.low, selector.high) if np.isfinite(selector.low) else None
    learner, clock = partial(learned, interval=interval), partial(learned, interval=interval, timed=True)
    attackers: dict[str, tuple[Callable[[Repeated], Scores], Repeated]] = {
        "once": (once, same.first()),
        "once, learned": (learner, same.first()),
        "once, learned, timed": (clock, same.first()),
        "same, mean": (averaged, same),
        "near, mean": (averaged, near),
        "same, learned": (learner, same),
        "near, learned": (learner, near),
        "same, learned, timed": (clock, same),
    }
    images = len(SIDES) * (len(scored) + len(known))
    return {
        "scenario": selector.scenario,
        "stable": service.protected.key is not None,
        "interval": list(interval) if interval else None,
        "attacks": {name: _report(attacker, answers, service.run) for name, (attacker, answers) in attackers.items()},
        "cpu_s_per_image": dict(zip(KINDS, (cpu / images).tolist(), strict=True)),
    }


def _ask(service: Service, side: str, examples: Examples, pool: range, m: int, progress: tqdm) -> dict[str, np.ndarray]:
    """The answers about the images of a pool: logits float32 [2, n, M, C] and `drawn` int64 [2, n, M], by KINDS, and `cpu` [2].

    `drawn` are the candidates that each answer took, and `cpu` the CPU seconds of all answers together.
    """
    chunks = []
    for start in range(pool.start, pool.stop, CHUNK):
        positions = range(start, min(start + CHUNK, pool.stop))
        path = service.folder / f"m{m}-{side}_{start:06d}.npz"
        settings = service.settings | {"images": len(positions)}
        reached = progress.n + len(positions) * m * len(KINDS)
        compute = partial(_ask_chunk, service, examples, side, positions, m, progress)
        chunks.append(cached_arrays(path, settings, compute))
        progress.update(reached - progress.n)  # of a stored chunk nothing was counted yet
    answers = {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in ("logits", "drawn")}
    return answers | {"cpu": np.sum([chunk["cpu"] for chunk in chunks], axis=0)}


def _ask_chunk(
    service: Service, examples: Examples, side: str, positions: range, m: int, progress: tqdm
) -> dict[str, np.ndarray]:
    """Ask about each image M times, and about M nearly identical images. A query is one call of the service."""
    run, protected = service.run, service.protected
    images = examples.images[positions.start : positions.stop]
    near = [
        nearby(image.numpy(), m, derive_seed("nearby", run.seed, side, position))
        for position, image in zip(positions, images, strict=True)
    ]
    queries = (images[None].expand(m, *images.shape), torch.from_numpy(np.stack(near, axis=1)))
    protected.served = derive_seed("questions", run.seed, side, positions.start) >> 1  # a killed run continues from here
    logits, drawn, cpu = [], np.zeros((len(KINDS), len(positions), m), np.int64), np.zeros(len(KINDS))
    for kind, batches in enumerate(queries):
        began = time.process_time()
        for query, batch in enumerate(batches):
            logits.append(service.answer(batch.float() / 255))
            drawn[kind, :, query] = protected.drawn.numpy()
            progress.update(len(positions))
        cpu[kind] = time.process_time() - began
    blocks = np.stack(logits).reshape(len(KINDS), m, len(positions), -1)
    return {"logits": blocks.transpose(0, 2, 1, 3), "drawn": drawn, "cpu": cpu}
