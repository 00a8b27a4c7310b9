"""`python <data set>/evaluate_MIAs/attack_diffence.py --defense NAME`: what an attacker gains who asks about an image M times.

Everything is learned from the answers of a ProtectedClassifier, as a service gives them: first with fresh noise for every
query, then with `diffence.stable`. The attackers are those of common/attacks/repeat.py, in the clean protocol: elsewhere the
known points are scored too, on which one of them is fitted. Answers are kept in chunks, so that a killed run continues.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from common.attacks import Scores
from common.attacks.repeat import Answers, Asked, averaged, gap, learned, nearby, once
from common.data.partition import Examples, Split, load_split, pools
from common.defenses import DEFENSES
from common.diffence.candidates import SIDES, candidate_settings
from common.diffence.protect import ProtectedClassifier, load_protected
from common.evaluate import guard, release
from common.files import atomic_write, derive_seed, image_keys, sha256, write_json
from common.metrics import attack_report
from common.outputs import collect
from common.report import SCENARIO_TITLES
from common.run import Run, provenance
from common.targets import PostInference, load_target, model_path

PROTOCOL = "clean"
CHUNK = 100  # images that are asked about together
DRAWS = 2  # candidates drawn at a time, at most one of them for nothing
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
    drawn: np.ndarray  # candidates for all b images, int64 [2, M]
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
    unprotected = Asked(*(Answers(logits[:, None], labels) for labels, logits in rows))
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
                protected = load_protected(served, classifier, selector, DRAWS)
                settings = made_with | {"selector": asdict(selector), "stable": stable}
                runs.append(_attack(Service(protected, post, run, folder, settings), split, pieces, m, progress.update))
    row = {
        **provenance(run, name, PROTOCOL),
        "m": m,
        **{part: dict.fromkeys(SIDES, len(chosen)) for part, chosen in pieces.items()},
        "reference": {"loss": _report(run, once(unprotected)), "correctness": _report(run, gap(unprotected))},
        "runs": runs,
    }
    write_json(run.results_dir(PROTOCOL) / f"attack_diffence-{name}.json", row)
    return row


def _attack(
    service: Service, split: Split, pieces: dict[str, range], m: int, progress: Callable[[int], object]
) -> dict[str, Any]:
    """Ask a service all questions and report on every attacker."""
    found: dict[tuple[str, str], Chunk] = {}
    labels = {}
    for side, examples in zip(SIDES, (split.members, split.non_members), strict=True):
        for part, chosen in pieces.items():
            found[part, side] = _ask(service, examples, side, chosen, m, progress)
            labels[part, side] = examples.labels[chosen.start : chosen.stop].numpy()
    same, near = (
        Asked(*(Answers(found[part, side].logits[kind], labels[part, side]) for part in pieces for side in SIDES))
        for kind in range(len(KINDS))
    )
    selector = service.protected.selector
    interval = (selector.low, selector.high) if np.isfinite(selector.low) else None
    images = sum(map(len, labels.values()))
    drawn, cpu = (np.sum([getattr(chunk, name) for chunk in found.values()], axis=0) / images for name in ("drawn", "cpu"))
    attackers = {
        "once": (once(same), drawn[0, 0]),
        "same, mean": (averaged(same), drawn[0].sum()),
        "near, mean": (averaged(near), drawn[1].sum()),
        "same, learned": (learned(same, interval), drawn[0].sum()),
        "near, learned": (learned(near, interval), drawn[1].sum()),
    }
    return {
        "scenario": selector.scenario,
        "stable": service.protected.key is not None,
        "interval": list(interval) if interval else None,
        "attacks": {name: _report(service.run, s) | {"draws": float(draws)} for name, (s, draws) in attackers.items()},
        "cpu_s_per_image": dict(zip(KINDS, cpu.tolist(), strict=True)),
    }


def _report(run: Run, scores: Scores) -> dict[str, Any]:
    return attack_report(
        scores.members, scores.non_members, scores.known_members, scores.known_non_members, False, run.config.attack.fpr
    )


def _ask(service: Service, examples: Examples, side: str, chosen: range, m: int, progress: Callable[[int], object]) -> Chunk:
    """The answers about the `chosen` images of a side, those of a killed run among them."""
    chunks = []
    for start in range(chosen.start, chosen.stop, CHUNK):
        places = range(start, min(start + CHUNK, chosen.stop))
        path = service.folder / f"m{m}-{side}_{start:06d}.npz"
        wanted = json.dumps(service.settings | {"images": len(places)}, sort_keys=True)
        chunk = _stored(path, wanted)
        if chunk is None:
            chunk = _ask_chunk(service, examples, side, places, m, progress)
            content = {**vars(chunk), "settings": wanted}
            atomic_write(path, lambda file, content=content: np.savez(file, **content))  # type: ignore[misc]
        else:
            progress(len(places) * m * len(KINDS))
        chunks.append(chunk)
    return Chunk(
        np.concatenate([chunk.logits for chunk in chunks], axis=1),
        np.sum([chunk.drawn for chunk in chunks], axis=0),
        np.sum([chunk.cpu for chunk in chunks], axis=0),
    )


def _stored(path: Path, wanted: str) -> Chunk | None:
    """A chunk asked before under the same settings; None where there is none, or a torn one."""
    try:
        with np.load(path) as stored:
            if str(stored["settings"]) == wanted:
                return Chunk(stored["logits"], stored["drawn"], stored["cpu"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass
    return None


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
    logits, drawn, cpu = [], np.zeros((len(KINDS), m), np.int64), np.zeros(len(KINDS))
    for kind, asked in enumerate(questions):
        began = time.process_time()
        for question, batch in enumerate(asked):
            before = protected.drawn
            logits.append(service.answer(batch.float() / 255))
            drawn[kind, question] = protected.drawn - before
            progress(len(places))
        cpu[kind] = time.process_time() - began
    blocks = np.stack(logits).reshape(len(KINDS), m, len(places), -1)
    return Chunk(blocks.transpose(0, 2, 1, 3), drawn, cpu)


def markdown(row: dict[str, Any]) -> str:
    """The row as a table: every attacker in every scenario, below the loss attack without Diffence and the gap floor."""
    lines = [
        {"Diffence": "without", "attacker": title, **_columns(row["reference"][attack])}
        for attack, title in (("loss", "loss, once"), ("correctness", "gap floor"))
    ]
    for run in row["runs"]:
        title = SCENARIO_TITLES[run["scenario"]] + (", stable" if run["stable"] else "")
        lines += [{"Diffence": title, "attacker": name, **_columns(found)} for name, found in run["attacks"].items()]
    return pd.DataFrame(lines).to_markdown(index=False, floatfmt=".3f")


def _columns(attack: dict[str, Any]) -> dict[str, Any]:
    return {
        "AUC": attack["auc"],
        "ACC": attack["accuracy"],
        "TPR @ FPR": f"{100 * attack['tpr_at_fpr']['rate']:.1f}%",
        "candidates an image": f"{attack['draws']:.1f}" if "draws" in attack else "-",
    }
