"""Attack the saved outputs of a model and write a report. The command line is in `__main__`."""

import time
from collections import Counter
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import hypergeom

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
from common.metrics.privacy import Ints, allowed_errors, auc
from common.pair import SIDES, Pair
from common.report.figures import draw_phi, draw_roc
from common.report.measure import report_of
from common.seeds import derive_seed

MIN_POINTS = 10  # of known points and of scored points, on each side: the NN attack needs them
COINCIDENCES = 0.001  # the share of non-members that may have the answers of a member by chance
MOST_EXPOSED = 20  # records in the report


@dataclass(frozen=True, eq=False)
class AuditPools:
    """Positions of the known points and of the scored points in the file of each side, ascending and disjoint."""

    known: Pair[Ints]
    scored: Pair[Ints]


def audit(files: dict[str, Path], known_fraction: float, fpr: float, seed: int, out: Path) -> dict[str, Any]:
    """Attack the outputs in the files and write a report into the folder `out`. Returns the row, which is also audit.json.

    `files` are the paths of `members`, `non_members` and, if there are shadow models, `shadows`. `known_fraction` is the share
    of each side that the attacker knows. TPR is reported at `fpr`. Both lie in (0, 1). Raises UserError for files or numbers
    that do not fit.
    """
    check_fractions(known_fraction, fpr)
    paths = Pair(files["members"], files["non_members"])
    loaded = paths.map(load_outputs)
    check_sides(loaded, paths)
    outputs: Pair[Outputs] = loaded.map(attrgetter("outputs"))
    pools = draw_pools(outputs.map(len), known_fraction, seed)
    shadows = load_shadows(files["shadows"], outputs) if "shadows" in files else None
    make_folder(out)
    # Attacks with shadow models come first: they train nothing, so that shadow models that do not fit are refused at once.
    by_shadows = attack_with_shadows(outputs, pools, shadows) if shadows else {}
    scores = by_shadows | attack_all(outputs, pools.known, pools.scored, NNOptions(), seed)
    null = {name: shuffled_scores(by_shadows[name], derive_seed("null", name, seed)) for name in by_shadows}
    null |= attack_shuffled(outputs, pools.known, pools.scored, NNOptions(), seed, derive_seed("null", seed))
    row: dict[str, Any] = {"kind": "audit", "known_fraction": known_fraction, "fpr": fpr, "seed": seed}
    row |= row_facts(files, loaded, pools, shadows) | measure(scores, null, fpr)
    row["most_exposed"] = most_exposed(outputs.members, pools.scored.members, scores[row["best"]])
    row |= {"summary": summary(row), "warnings": warnings(row)}
    write_report(out, row, scores, outputs.map(Outputs.take, pools.scored))
    return row


def check_fractions(known_fraction: float, fpr: float) -> None:
    """Raise UserError unless both lie in (0, 1)."""
    if not 0 < known_fraction < 1 or not 0 < fpr < 1:
        raise UserError(f"--known-fraction and --fpr must lie between 0 and 1, both excluded, not {known_fraction} and {fpr}.")


def check_sides(loaded: Pair[LoadedOutputs], files: Pair[Path]) -> None:
    """Raise UserError if the sides differ in number type or classes, or share points."""
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
    rows = [[row.tobytes() for row in np.column_stack([side.labels, side.logits])] for side in (members, non_members)]
    seen = set(rows[0])
    copies = [position for position, row in enumerate(rows[1]) if row in seen]
    repeated = sum(count for side in rows for count in Counter(side).values() if count > 1)
    # Answers that agree by chance, as those of few bits do, agree within a side at least as often as across.
    if len(copies) > max(repeated, COINCIDENCES * len(non_members)):
        raise UserError(
            f"{len(copies)} of {len(non_members)} non-members in {files.non_members} have exactly the logits and the label of "
            f"a member, such as row {copies[0]}, counted from 0: leave them out, since non-members are never used in training."
        )


def draw_pools(counts: Pair[int], known_fraction: float, seed: int) -> AuditPools:
    """Split the points of each side at random into known and scored ones. `counts` are the numbers of points.

    The split is the same on every machine. Raises UserError if a pool is too small for the NN attack.
    """

    def split(side: str, points: int) -> tuple[Ints, Ints]:
        known = round(known_fraction * points)
        if min(known, points - known) < MIN_POINTS:
            raise UserError(
                f"{points} {side.replace('_', '-')} leave {known} known and {points - known} scored points: save more, at "
                f"least {MIN_POINTS} of each kind are needed ({2 * MIN_POINTS} points at --known-fraction 0.5)."
            )
        order = np.random.default_rng(derive_seed("audit", side, seed)).permutation(points)
        return np.sort(order[:known]), np.sort(order[known:])

    splits = Pair(*SIDES).map(split, counts)
    return AuditPools(known=splits.map(itemgetter(0)), scored=splits.map(itemgetter(1)))


def attack_with_shadows(outputs: Pair[Outputs], pools: AuditPools, shadows: Shadows) -> dict[str, Scores]:
    """Scores of LiRA and RMIA, as far as the shadow models allow.

    RMIA's population are the k known non-members. Its threshold is fitted on them too. This is harmless: the score of a point
    that is in the population is at most 1 / k lower than it would be otherwise.
    """
    labels = np.concatenate([side.labels for side in outputs])
    offset = len(outputs.members)  # in the shadow models' arrays, the non-members follow the members
    known, scored = (Pair(pool.members, offset + pool.non_members) for pool in (pools.known, pools.scored))
    answers = ShadowOutputs(shadows.target[None], shadows.phi[:, None], shadows.keep, labels, population=known.non_members)
    return shadow_attacks(answers, known, scored, Attack())


def row_facts(
    files: dict[str, Path], loaded: Pair[LoadedOutputs], pools: AuditPools, shadows: Shadows | None
) -> dict[str, Any]:
    """The part of the row that is not about attacks: files, numbers of points, and utility of the scored predictions."""
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
        "shadows": shadows.facts if shadows else None,
        "accuracy": scored.map(lambda side: float((side.logits.argmax(1) == side.labels).mean())).as_dict(),
        "ece": ece(scored.non_members.probabilities, scored.non_members.labels),
        "nll": nll(scored.non_members.logits, scored.non_members.labels),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def measure(scores: dict[str, Scores], null: dict[str, Scores], fpr: float) -> dict[str, Any]:
    """The part of the row that is about attacks. `null` are the scores of the same attacks under shuffled membership.

    Keys of the result:
    - attacks: `attack_report` of each attack, and null_auc, its AUC under shuffled membership
    - best: the name of the attack with the largest AUC
    - best_interval: the interval of that AUC at a level that holds for all attacks at once (Bonferroni), because the best
      attack is selected on the scored points
    - best_at_fpr: the name of the attack with the largest TPR at `fpr`
    - best_at_fpr_p: how likely chance alone gives some attack as large a TPR, at most (Bonferroni); 0..1
    - gap_floor: the AUC of the gap attack
    """
    attacks = {
        name: report_of(scores[name], "clean", Attack(fpr=fpr)) | {"null_auc": auc(*null[name].scored)} for name in scores
    }
    best = max(attacks, key=lambda name: attacks[name]["auc"])
    scored = scores[best].scored
    interval = delong_interval(scored.members, scored.non_members, 1 - (1 - LEVEL) / len(attacks))
    best_at_fpr = max(attacks, key=lambda name: attacks[name]["tpr_at_fpr"]["hits"])
    found = attacks[best_at_fpr]["tpr_at_fpr"]
    p = chance_of_hits(found["hits"], found["positives"], found["negatives"], allowed_errors(fpr, found["negatives"]))
    return {
        "attacks": attacks,
        "best": best,
        "best_interval": interval,
        "best_at_fpr": best_at_fpr,
        "best_at_fpr_p": min(1.0, len(attacks) * p),
        "gap_floor": attacks["correctness"]["auc"],
    }


def chance_of_hits(hits: int, members: int, non_members: int, errors: int) -> float:
    """How likely an attack that guesses finds at least `hits` of the `members`, while it accuses at most `errors` non-members.

    The threshold is the lowest that accuses so few of the scored non-members, so it is selected on the scored points. A guess
    ranks all points at random. It finds `hits` members or more if at most `errors` of the first `hits` + `errors` points of
    this ranking are non-members; their number has a hypergeometric law. Ties only lower the count. `errors` < `non_members`.
    """
    return float(hypergeom.cdf(errors, members + non_members, non_members, hits + errors))


def most_exposed(members: Outputs, scored: Ints, scores: Scores) -> list[dict[str, Any]]:
    """The scored members with the highest scores, highest first.

    `members` are the outputs of all members, `scored` [n] the positions of the scored ones, `scores` those of the best attack.

    Keys of a record:
    - position: its position in the file, counted from 0
    - label, predicted: its true class and the predicted one
    - p: the probability of its true class
    - score: its score
    - non_members: how many scored non-members have the same or a higher score; few of them make an attacker sure
    """
    top = np.argsort(-scores.scored.members, kind="stable")[:MOST_EXPOSED]
    outputs = members.take(scored[top])
    return [
        {
            "position": int(position),
            "label": int(label),
            "predicted": int(logits.argmax()),
            "p": float(probabilities[label]),
            "score": float(score),
            "non_members": int((scores.scored.non_members >= score).sum()),
        }
        for position, label, logits, probabilities, score in zip(
            scored[top], outputs.labels, outputs.logits, outputs.probabilities, scores.scored.members[top], strict=True
        )
    ]


def write_report(out: Path, row: dict[str, Any], scores: dict[str, Scores], scored: Pair[Outputs]) -> None:
    """Write audit.html, audit.json, and the pictures roc.png and phi.png, which audit.html contains."""
    draw_roc(out / "roc.png", "ROC curves of the scored points", scores)
    draw_phi(out / "phi.png", "", {"": scored.map(attrgetter("logits"))}, scored.map(attrgetter("labels")))
    write_text(out / "audit.html", render({"audit": row}, {"audit": read_pictures(out)}))
    write_json(out / "audit.json", row)


def read_pictures(out: Path) -> dict[str, bytes]:
    """The contents of the pictures that `write_report` wrote into the folder `out`."""
    return {name: (out / f"{name}.png").read_bytes() for name in ("roc", "phi")}
