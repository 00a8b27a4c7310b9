"""`python <data set>/evaluate_MIAs/attack_diffence.py --defense NAME`: what an attacker gains who asks about an image M times.

Everything is learned from the answers of a ProtectedClassifier, as a service gives them: first with fresh noise for every
query, then with `diffence.stable`. The attackers are those of common/attacks/repeat.py, in the clean protocol: elsewhere the
known points are scored too, on which one of them is fitted. Answers are kept in chunks, so that a killed run continues.
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

from common.attacks.contract import Scores
from common.attacks.repeat import Answers, Asked, averaged, gap, learned, nearby, once
from common.data.partition import Examples, Split, load_split, pools
from common.defenses import DEFENSES
from common.diffence.candidates import SIDES, candidate_settings
from common.diffence.protect import ProtectedClassifier, load_protected
from common.evaluate import guard, release
from common.files import derive_seed, image_keys, read_arrays, sha256, write_arrays, write_json
from common.measure import report_of
from common.outputs import collect
from common.run import Run, provenance
from common.targets import PostInference, load_target, model_path

PROTOCOL = "clean"
CHUNK = 100  # images that are asked about together
REFERENCE = {"loss": once, "correctness": gap}  # without Diffence
KINDS = ("same", "near")  # the same image M times; M nearly identical ones


@dataclass(frozen=True, eq=False)
class Service:
    """What is attacked: a protected classifier, a post-inference defense behind it, and where its answers are kept."""

    protected: ProtectedClassifier
    post: PostInference | None
    run: Run
    folder: Path
    settings: dict[str, Any]  # what the answers depend on

    def answer(self, images: torch.Tensor) -> np.ndarray:
        """What the service returns for images [b, 3, H, W] in [0, 1]: logits float32 [b, C]."""
        logits = self.protected(images.to(self.run.device))
        return (self.post.release(logits, image_keys(images)) if self.post else logits).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Chunk:
    """Answers about b images of a side: logits float32 [2, b, M, C], one block for each of KINDS, and what they cost."""

    logits: np.ndarray
    drawn: np.ndarray  # candidates that each answer took, int64 [2, b, M]
    cpu: np.ndarray  # seconds, float64 [2]


def attack_diffence(run: Run, name: str, scenarios: list[str], m: int, count: int) -> dict[str, Any]:
    """Attack a defense under Diffence: `m` questions an image, at most `count` scored and `count` known images a side.

    Writes and returns one row, whose `runs` hold a report of every attacker for each scenario, without and with `stable`.
    """
    split, places = load_split(run), pools(run.config.data, PROTOCOL)
    pieces = {"scored": places.scored[:count], "known": places.known[:count]}
    model = load_target(run, name, PROTOCOL, DEFENSES[name].build(run))
    post = model if isinstance(model, PostInference) else None
    classifier = post.classifier if post else model
    sides = collect(run, name, PROTOCOL, classifier, split)
    bare = guard(release(run, sides, places, None), post)
    rows = [(sides[side].labels[chosen], getattr(bare, side)[chosen]) for chosen in pieces.values() for side in SIDES]
    unprotected = Asked(*(Answers(logits[:, None], labels, np.zeros((len(labels), 1), np.int64)) for labels, logits in rows))
    made_with = {"weights": sha256(model_path(run, name)), "candidates": candidate_settings(run), "n": run.config.diffence.n}
    runs = []
    images = sum(map(len, pieces.values())) * len(SIDES)
    total = 2 * len(scenarios) * images * len(KINDS) * m
    with tqdm(total=total, desc="questions", unit="question", smoothing=0.05, disable=None) as progress:
        for scenario in scenarios:
            selector = release(run, sides, places, scenario).selector
            assert selector is not None
            for stable in (False, True):
                served = replace(run, config=replace(run.config, diffence=replace(run.config.diffence, stable=stable)))
                folder = run.outputs_dir / f"{name}-questions" / f"scenario-{scenario}-{'stable' if stable else 'fresh'}"
                protected = load_protected(served, classifier, selector)
                settings = made_with | {"selector": asdict(selector), "stable": stable}
                runs.append(_attack(Service(protected, post, run, folder, settings), split, pieces, m, progress.update))
    row = {
        **provenance(run, name, PROTOCOL),
        "m": m,
        **{part: dict.fromkeys(SIDES, len(chosen)) for part, chosen in pieces.items()},
        "reference": {name: _report(attacker, unprotected, run) for name, attacker in REFERENCE.items()},
        "runs": runs,
    }
    write_json(result_path(run, name, m, count), row)
    return row


def result_path(run: Run, defense: str, m: int, count: int) -> Path:
    """Where the row of M questions about `count` images a side lies, beside those of evaluate_mia."""
    return run.results_dir(PROTOCOL) / f"attack_diffence-{defense}-m{m}-{count}images.json"


def _report(attacker: Callable[[Asked], Scores], asked: Asked, run: Run) -> dict[str, Any]:
    """`report_of` an attacker, and the AUC of the same attacker after membership was shuffled."""
    null = attacker(asked.dealt_out(derive_seed("null", "attack_diffence", run.seed)))
    report = report_of(attacker(asked), PROTOCOL, run.config.attack)
    drawn = [answers.drawn.sum(1) for answers in vars(asked).values()]
    return report | {
        "null_auc": report_of(null, PROTOCOL, run.config.attack)["auc"],
        "draws": float(np.concatenate(drawn).mean()),  # candidates an image
    }


def _attack(
    service: Service, split: Split, pieces: dict[str, range], m: int, progress: Callable[[int], object]
) -> dict[str, Any]:
    """Ask a service all questions and report on every attacker."""
    found: dict[tuple[str, str], Chunk] = {}
    labels = {}
    for part, chosen in pieces.items():  # in the order of the fields of Asked
        for side, examples in zip(SIDES, (split.members, split.non_members), strict=True):
            found[part, side] = _ask(service, examples, side, chosen, m, progress)
            labels[part, side] = examples.labels[chosen.start : chosen.stop].numpy()
    same, near = (
        Asked(*(Answers(chunk.logits[kind], labels[where], chunk.drawn[kind]) for where, chunk in found.items()))
        for kind in range(len(KINDS))
    )
    selector = service.protected.selector
    interval = (selector.low, selector.high) if np.isfinite(selector.low) else None
    learner, clock = partial(learned, interval=interval), partial(learned, interval=interval, timed=True)
    attackers: dict[str, tuple[Callable[[Asked], Scores], Asked]] = {
        "once": (once, same.first()),
        "once, learned": (learner, same.first()),
        "once, learned, timed": (clock, same.first()),
        "same, mean": (averaged, same),
        "near, mean": (averaged, near),
        "same, learned": (learner, same),
        "near, learned": (learner, near),
        "same, learned, timed": (clock, same),
    }
    cpu = np.sum([chunk.cpu for chunk in found.values()], axis=0) / sum(map(len, labels.values()))
    return {
        "scenario": selector.scenario,
        "stable": service.protected.key is not None,
        "interval": list(interval) if interval else None,
        "attacks": {name: _report(attacker, asked, service.run) for name, (attacker, asked) in attackers.items()},
        "cpu_s_per_image": dict(zip(KINDS, cpu.tolist(), strict=True)),
    }


def _ask(service: Service, examples: Examples, side: str, chosen: range, m: int, progress: Callable[[int], object]) -> Chunk:
    """The answers about the `chosen` images of a side, those of a killed run among them."""
    chunks = []
    for start in range(chosen.start, chosen.stop, CHUNK):
        places = range(start, min(start + CHUNK, chosen.stop))
        path = service.folder / f"m{m}-{side}_{start:06d}.npz"
        settings = service.settings | {"images": len(places)}
        stored = read_arrays(path)
        if not stored or stored[0] != settings:
            chunk = _ask_chunk(service, examples, side, places, m, progress)
            write_arrays(path, settings, **vars(chunk))
        else:
            chunk = Chunk(**stored[1])
            progress(len(places) * m * len(KINDS))
        chunks.append(chunk)
    logits, drawn = (np.concatenate([getattr(chunk, name) for chunk in chunks], axis=1) for name in ("logits", "drawn"))
    return Chunk(logits, drawn, np.sum([chunk.cpu for chunk in chunks], axis=0))


def _ask_chunk(
    service: Service, examples: Examples, side: str, places: range, m: int, progress: Callable[[int], object]
) -> Chunk:
    """Ask about each image M times and about M nearly identical ones; a question is one call of the service."""
    run, protected = service.run, service.protected
    images = examples.images[places.start : places.stop]
    near = [
        nearby(image.numpy(), m, derive_seed("nearby", run.seed, side, place))
        for place, image in zip(places, images, strict=True)
    ]
    questions = (images[None].expand(m, *images.shape), torch.from_numpy(np.stack(near, axis=1)))
    protected.served = derive_seed("questions", run.seed, side, places.start) >> 1  # a killed run counts on from here
    logits, drawn, cpu = [], np.zeros((len(KINDS), len(places), m), np.int64), np.zeros(len(KINDS))
    for kind, asked in enumerate(questions):
        began = time.process_time()
        for question, batch in enumerate(asked):
            logits.append(service.answer(batch.float() / 255))
            drawn[kind, :, question] = protected.drawn.numpy()
            progress(len(places))
        cpu[kind] = time.process_time() - began
    blocks = np.stack(logits).reshape(len(KINDS), m, len(places), -1)
    return Chunk(blocks.transpose(0, 2, 1, 3), drawn, cpu)
