"""The audit: attack saved outputs of a model and write a report. The command line and its files are in `__main__`."""

import time
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from common.attacks import NNOptions, Outputs, Scores
from common.attacks.contract import shuffled_scores
from common.attacks.shadow import ShadowOutputs, shadow_attacks
from common.attacks.suite import attack_all, attack_shuffled
from common.audit.files import LoadedOutputs, Shadows, load_outputs, load_shadows
from common.audit.page import render, summary, warnings
from common.config import Attack
from common.errors import UserError
from common.files import make_folder, sha256, write_json, write_text
from common.metrics.calibration import ece, nll
from common.metrics.intervals import LEVEL, delong_interval
from common.metrics.privacy import Ints
from common.pair import SIDES, Pair
from common.report.figures import draw_phi, draw_roc
from common.report.measure import report_of
from common.seeds import derive_seed

FEWEST = 10  # known points, and scored points, of a side: the NN attack needs as many
MOST_EXPOSED = 20


@dataclass(frozen=True, eq=False)
class AuditPools:
    """Which points the attacker knows and which are scored: ascending positions in the file of each side, disjoint."""

    known: Pair[Ints]
    scored: Pair[Ints]


def audit(files: dict[str, Path], known_fraction: float, fpr: float, seed: int, out: Path) -> dict[str, Any]:
    """Attack what the files hold, write the report into the folder `out`, and return its row (the content of audit.json).

    `files` has `members`, `non_members` and, with shadow models, `shadows`. `known_fraction` of each side is known to the
    attacker; it and `fpr` lie in (0, 1). Raises UserError for files or numbers that do not fit.
    """
    if not 0 < known_fraction < 1 or not 0 < fpr < 1:
        raise UserError(f"--known-fraction and --fpr must lie between 0 and 1, both excluded, not {known_fraction} and {fpr}.")
    paths = Pair(files["members"], files["non_members"])
    loaded = paths.map(load_outputs)
    check_sides(loaded, paths)
    outputs: Pair[Outputs] = loaded.map(attrgetter("outputs"))
    pools = draw_pools(outputs.map(len), known_fraction, seed)
    shadows = load_shadows(files["shadows"], outputs) if "shadows" in files else None
    make_folder(out)
    # Attacks with shadow models come first: they train nothing, and refuse shadow models that do not fit at once.
    with_shadows = attack_with_shadows(outputs, pools, shadows) if shadows else {}
    scores = with_shadows | attack_all(outputs, pools.known, pools.scored, NNOptions(), seed)
    null = {name: shuffled_scores(one, derive_seed("null", name, seed)) for name, one in with_shadows.items()}
    null |= attack_shuffled(outputs, pools.known, pools.scored, NNOptions(), seed, derive_seed("null", seed))
    row: dict[str, Any] = {"kind": "audit", "known_fraction": known_fraction, "fpr": fpr, "seed": seed}
    row |= row_facts(files, loaded, pools, shadows) | measure(scores, null, fpr)
    row["most_exposed"] = most_exposed(outputs.members, pools.scored.members, scores[row["best"]])
    row |= {"summary": summary(row), "warnings": warnings(row)}
    write(out, row, scores, outputs.map(Outputs.take, pools.scored))
    return row


def check_sides(loaded: Pair[LoadedOutputs], files: Pair[Path]) -> None:
    """Refuse two sides that cannot be of one model, that were not saved alike, or that are one set of points given twice."""
    kinds = loaded.map(lambda side: f"`{side.array}` of {side.dtype}")
    if kinds.members != kinds.non_members:
        raise UserError(
            f"{files.members} holds {kinds.members} and {files.non_members} {kinds.non_members}: save both alike, since "
            "rounding alone would tell the sides apart."
        )
    members, non_members = (side.outputs for side in loaded)
    if members.classes != non_members.classes:
        raise UserError(
            f"{files.members} has {members.classes} classes and {files.non_members} {non_members.classes}: both must be "
            "outputs of one model."
        )
    if np.array_equal(members.logits, non_members.logits) and np.array_equal(members.labels, non_members.labels):
        raise UserError(f"{files.members} and {files.non_members} hold the same points: pass non-members as --non-members.")


def draw_pools(counts: Pair[int], known_fraction: float, seed: int) -> AuditPools:
    """A random split of the `counts` points of each side into known and scored ones, the same on every machine."""

    def split(side: str, points: int) -> tuple[Ints, Ints]:
        known = round(known_fraction * points)
        if min(known, points - known) < FEWEST:
            raise UserError(
                f"{points} {side.replace('_', '-')} leave {known} known and {points - known} scored points: save more, at "
                f"least {FEWEST} of each kind are needed ({2 * FEWEST} points at --known-fraction 0.5)."
            )
        order = np.random.default_rng(derive_seed("audit", side, seed)).permutation(points)
        return np.sort(order[:known]), np.sort(order[known:])

    parts = Pair(*SIDES).map(split, counts)
    return AuditPools(parts.map(lambda part: part[0]), parts.map(lambda part: part[1]))


def attack_with_shadows(outputs: Pair[Outputs], pools: AuditPools, shadows: Shadows) -> dict[str, Scores]:
    """Scores of LiRA and RMIA, as far as the shadow models allow.

    RMIA's population is the known non-members. Its threshold is fitted on them too. Being in its own population lowers the
    score of a point by at most one over their number.
    """
    labels = np.concatenate([side.labels for side in outputs])
    members = len(outputs.members)  # positions of non-members follow those of the members
    known, scored = (Pair(pool.members, members + pool.non_members) for pool in (pools.known, pools.scored))
    shadow = ShadowOutputs(shadows.target[None], shadows.phi[:, None], shadows.keep, labels, population=known.non_members)
    return shadow_attacks(shadow, known, scored, Attack())


def row_facts(
    files: dict[str, Path], loaded: Pair[LoadedOutputs], pools: AuditPools, shadows: Shadows | None
) -> dict[str, Any]:
    """What was audited: the files, how many points they hold, and what the scored predictions are worth."""
    scored = loaded.map(lambda side, pool: side.outputs.take(pool), pools.scored)
    saturated = sum(side.saturated for side in loaded) + (shadows.saturated if shadows else 0)
    return {
        "files": {name: {"path": str(path), "sha256": sha256(path)} for name, path in files.items()},
        "array": loaded.map(attrgetter("array")).as_dict(),
        "classes": scored.members.classes,
        "points": loaded.map(lambda side: len(side.outputs)).as_dict(),
        "known": pools.known.map(len).as_dict(),
        "scored": pools.scored.map(len).as_dict(),
        "saturated": saturated,
        "shadows": {"models": len(shadows.keep), "left_out": shadows.left_out} if shadows else None,
        "accuracy": scored.map(lambda side: float((side.logits.argmax(1) == side.labels).mean())).as_dict(),
        "ece": ece(scored.non_members.probabilities, scored.non_members.labels),
        "nll": nll(scored.non_members.logits, scored.non_members.labels),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def measure(scores: dict[str, Scores], null: dict[str, Scores], fpr: float) -> dict[str, Any]:
    """Metrics of every attack with its AUC under shuffled membership, the name of the best attack, and the gap floor.

    best_interval is the interval of the largest AUC at a level that holds for all attacks at once (Bonferroni), because the
    scored points themselves picked the best attack.
    """
    attacks, chance = (
        {name: report_of(one, "clean", Attack(fpr=fpr)) for name, one in by_name.items()} for by_name in (scores, null)
    )
    attacks = {name: report | {"null_auc": chance[name]["auc"]} for name, report in attacks.items()}
    best = max(attacks, key=lambda name: attacks[name]["auc"])
    scored = scores[best].scored
    interval = delong_interval(scored.members, scored.non_members, 1 - (1 - LEVEL) / len(attacks))
    return {"attacks": attacks, "best": best, "best_interval": interval, "gap_floor": attacks["correctness"]["auc"]}


def most_exposed(members: Outputs, scored: Ints, scores: Scores) -> list[dict[str, Any]]:
    """The scored members with the highest scores, highest first, with their position in the file, counted from 0.

    non_members: how many scored non-members score as high or higher. It says how sure an attacker can be.
    """
    first = np.argsort(-scores.scored.members, kind="stable")[:MOST_EXPOSED]
    rows = scored[first]
    p = members.take(rows).probabilities
    return [
        {
            "position": int(row),
            "label": int(members.labels[row]),
            "predicted": int(members.logits[row].argmax()),
            "p": float(p[i, members.labels[row]]),
            "score": float(score),
            "non_members": int((scores.scored.non_members >= score).sum()),
        }
        for i, (row, score) in enumerate(zip(rows, scores.scored.members[first], strict=True))
    ]


def write(out: Path, row: dict[str, Any], scores: dict[str, Scores], scored: Pair[Outputs]) -> None:
    """Write audit.html, audit.json, and the two pictures that the page shows."""
    draw_roc(out / "roc.png", "ROC curves of the scored points", scores)
    draw_phi(out / "phi.png", "", {"": scored.map(attrgetter("logits"))}, scored.map(attrgetter("labels")))
    write_text(out / "audit.html", render(row, {name: (out / f"{name}.png").read_bytes() for name in ("roc", "phi")}))
    write_json(out / "audit.json", row)
