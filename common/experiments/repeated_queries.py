"""`python <data set>/evaluate_MIAs/attack_diffence.py --defense NAME`: attackers who query Diffence M times for each image.

The attackers (common/attacks/repeated_queries.py) see the answers of a ProtectedClassifier, first with fresh noise for every
query, then with `diffence.stable`. The protocol is always clean: in protocol released the known points, on which some attackers
are fitted, are scored too. Answers are stored in chunks, so that a killed run continues.
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
from common.attacks.repeated_queries import (
    Answers,
    RepeatedAnswers,
    gap_attack,
    loss_attack,
    mean_loss_attack,
    nearby_images,
    regression_attack,
)
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
CHUNK = 100  # images that are queried, and whose answers are stored, together
# The attackers of the defense without Diffence, with a single query.
REFERENCE = {"loss": loss_attack, "correctness": gap_attack}
KINDS = ("same", "near")  # of queries for an image: the same image M times, and M nearly identical images


@dataclass(frozen=True, eq=False)
class Service:
    """What is attacked: a protected classifier, the post-inference defense behind it, and the folder of its stored answers."""

    protected: ProtectedClassifier
    post_inference: PostInference | None
    run: Run
    folder: Path
    settings: dict[str, Any]  # what the answers depend on

    def answer(self, images: torch.Tensor) -> np.ndarray:
        """The answers to images [b, 3, H, W] in [0, 1]: logits float32 [b, C]."""
        logits = self.protected(images.to(self.run.device))
        if self.post_inference is not None:
            logits = self.post_inference.release(logits, image_keys(images))
        return logits.cpu().numpy()


def repeated_queries(run: Run, defense: str, scenarios: list[str], m: int, count: int) -> dict[str, Any]:
    """Attack a defense under Diffence with `m` queries for each image; writes and returns one row.

    At most `count` scored and `count` known images of each side are queried. The row's `runs` hold a report of every attacker
    for each scenario, without and with `stable`.
    """
    split, pools = load_split(run), evaluation_pools(run.config.data, PROTOCOL)
    scored, known = pools.scored[:count], pools.known[:count]
    model = load_defended_model(run, defense, PROTOCOL)
    collected = collect(run, defense, PROTOCOL, model.classifier, split)
    without = defend(run, model, collected, pools, None).outputs
    reference = RepeatedAnswers(*(without.map(partial(_single_answers, pool=pool)) for pool in (scored, known)))
    settings = {
        "weights": sha256(model_path(run, defense)),
        "candidates": candidate_settings(run),
        "n": run.config.diffence.n,
        "options": run.config.defenses.get(defense, {}),
    }
    runs = []
    queries = 2 * len(scenarios) * (len(scored) + len(known)) * len(SIDES) * len(KINDS) * m
    with tqdm(total=queries, desc="queries", unit="query", smoothing=0.05, disable=None) as progress:
        for scenario in scenarios:
            selector = fit_on_pool(run, collected, pools, scenario)
            for stable in (False, True):
                config = replace(run.config, diffence=replace(run.config.diffence, stable=stable))
                protected = load_protected(replace(run, config=config), model.classifier, selector)
                folder = run.outputs_dir / f"{defense}-questions" / f"scenario-{scenario}-{'stable' if stable else 'fresh'}"
                service_settings = settings | {"selector": asdict(selector), "stable": stable}
                service = Service(protected, model.post_inference, run, folder, service_settings)
                runs.append(_attack(service, split, scored, known, m, progress))
    row = {
        "kind": "repeated_queries",
        **provenance(run, defense, PROTOCOL),
        "m": m,
        "scored": dict.fromkeys(SIDES, len(scored)),
        "known": dict.fromkeys(SIDES, len(known)),
        "reference": {name: _report(attacker, reference, run) for name, attacker in REFERENCE.items()},
        "runs": runs,
    }
    write_json(result_path(run, defense, m, count), row)
    return row


def result_path(run: Run, defense: str, m: int, count: int) -> Path:
    """The file of the row. It lies beside the rows of evaluate_mia."""
    return run.results_dir(PROTOCOL) / f"attack_diffence-{defense}-m{m}-{count}images.json"


def _single_answers(outputs: Outputs, pool: range) -> Answers:
    """The outputs of a pool without Diffence as one answer for each image, with no candidate drawn."""
    of_pool = outputs.take(np.array(pool))
    return Answers(of_pool.logits[:, None], of_pool.labels, np.zeros((len(of_pool), 1), np.int64))


def _report(attacker: Callable[[RepeatedAnswers], Scores], repeated: RepeatedAnswers, run: Run) -> dict[str, Any]:
    """`report_of` an attacker, its AUC under shuffled membership, and the mean number of candidates drawn for an image."""
    null = attacker(repeated.shuffled(derive_seed("null", "attack_diffence", run.seed)))
    report = report_of(attacker(repeated), PROTOCOL, run.config.attack)
    drawn = [side.drawn.sum(1) for pair in (repeated.scored, repeated.known) for side in pair]
    return report | {
        "null_auc": report_of(null, PROTOCOL, run.config.attack)["auc"],
        "draws": float(np.concatenate(drawn).mean()),
    }


def _attack(service: Service, split: Split, scored: range, known: range, m: int, progress: tqdm) -> dict[str, Any]:
    """Send all queries to a service and report on every attacker."""
    scored_arrays, known_arrays = (
        Pair(*SIDES).map(partial(_query_pool, service, pool=pool, m=m, progress=progress), split.evaluated)
        for pool in (scored, known)
    )
    same, near = (
        RepeatedAnswers(scored_arrays.map(partial(_answers_of_kind, kind)), known_arrays.map(partial(_answers_of_kind, kind)))
        for kind in range(len(KINDS))
    )
    cpu = np.sum([arrays["cpu"] for arrays in (*scored_arrays, *known_arrays)], axis=0)
    selector = service.protected.selector
    interval = (selector.low, selector.high) if np.isfinite(selector.low) else None
    learner = partial(regression_attack, interval=interval)
    timed_learner = partial(regression_attack, interval=interval, timed=True)
    attackers: dict[str, tuple[Callable[[RepeatedAnswers], Scores], RepeatedAnswers]] = {
        "once": (loss_attack, same.first()),
        "once, learned": (learner, same.first()),
        "once, learned, timed": (timed_learner, same.first()),
        "same, mean": (mean_loss_attack, same),
        "near, mean": (mean_loss_attack, near),
        "same, learned": (learner, same),
        "near, learned": (learner, near),
        "same, learned, timed": (timed_learner, same),
    }
    images = len(SIDES) * (len(scored) + len(known))
    return {
        "scenario": selector.scenario,
        "stable": service.protected.key is not None,
        "interval": list(interval) if interval else None,
        "attacks": {name: _report(attacker, repeated, service.run) for name, (attacker, repeated) in attackers.items()},
        "cpu_s_per_image": dict(zip(KINDS, (cpu / images).tolist(), strict=True)),
    }


def _answers_of_kind(kind: int, arrays: dict[str, np.ndarray]) -> Answers:
    """The answers to one of KINDS, by its index, from the arrays of `_query_pool`."""
    return Answers(arrays["logits"][kind], arrays["labels"], arrays["drawn"][kind])


def _query_pool(service: Service, side: str, examples: Examples, pool: range, m: int, progress: tqdm) -> dict[str, np.ndarray]:
    """Query a service for the images of a pool.

    Returns arrays with a first axis for KINDS: `logits` float32 [2, n, M, C]; `drawn` int64 [2, n, M], the candidates that were
    drawn for each answer; `cpu` float64 [2], the CPU seconds of all queries. And `labels` int64 [n], the true classes.
    """
    chunks = []
    for start in range(pool.start, pool.stop, CHUNK):
        positions = range(start, min(start + CHUNK, pool.stop))
        path = service.folder / f"m{m}-{side}_{start:06d}.npz"
        settings = service.settings | {"images": len(positions)}
        expected = progress.n + len(positions) * m * len(KINDS)
        compute = partial(_query_chunk, service, examples, side, positions, m, progress)
        chunks.append(cached_arrays(path, settings, compute))
        progress.update(expected - progress.n)  # not 0 for a chunk that was stored already
    return {
        "logits": np.concatenate([chunk["logits"] for chunk in chunks], axis=1),
        "drawn": np.concatenate([chunk["drawn"] for chunk in chunks], axis=1),
        "cpu": np.sum([chunk["cpu"] for chunk in chunks], axis=0),
        "labels": examples.labels[pool.start : pool.stop].numpy(),
    }


def _query_chunk(
    service: Service, examples: Examples, side: str, positions: range, m: int, progress: tqdm
) -> dict[str, np.ndarray]:
    """Query a service M times with each image, and with M nearly identical images. Each query is a call of its own."""
    run, protected = service.run, service.protected
    images = examples.read(slice(positions.start, positions.stop))
    near = [
        nearby_images(image.numpy(), m, derive_seed("nearby", run.seed, side, position))
        for position, image in zip(positions, images, strict=True)
    ]
    batches_of_kind = (images[None].expand(m, *images.shape), torch.from_numpy(np.stack(near, axis=1)))  # [M, n, 3, H, W]
    # Queries are numbered from here on, so that a chunk does not depend on which chunks were stored already.
    protected.served = derive_seed("questions", run.seed, side, positions.start) >> 1
    logits, drawn, cpu = [], np.zeros((len(KINDS), len(positions), m), np.int64), np.zeros(len(KINDS))
    for kind, batches in enumerate(batches_of_kind):
        started = time.process_time()
        for query, batch in enumerate(batches):
            logits.append(service.answer(batch.float() / 255))
            drawn[kind, :, query] = protected.drawn.numpy()
            progress.update(len(positions))
        cpu[kind] = time.process_time() - started
    by_query = np.stack(logits).reshape(len(KINDS), m, len(positions), -1)
    return {"logits": by_query.transpose(0, 2, 1, 3), "drawn": drawn, "cpu": cpu}
