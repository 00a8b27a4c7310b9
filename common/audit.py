"""`python -m common.audit`: audit anybody's classifier for membership inference, from its saved outputs alone.

    np.savez("m.npz", logits=..., labels=...)     # the model's answers on members: logits [n, C], true labels int [n]
    np.savez("n.npz", logits=..., labels=...)     # and on non-members, never seen in training
    python -m common.audit --members m.npz --non-members n.npz --out audit

`probabilities` [n, C] do in place of `logits`, but those with all classes but one at exactly 0 tie. With `--shadows s.npz`
LiRA and RMIA join: `logits` or `probabilities` [M, members + non-members, C] of M >= 2 shadow models on both files' points,
members first, and `keep` bool [M, members + non-members]: which of them each model was trained on. LiRA needs two models of
each kind that it uses. The audited model must not be among them. Nothing is unpickled.

Each side is split at random into known points, on which the NN attack trains and thresholds are fitted, and scored points,
which every number is about. Written to --out: audit.html (one file, no network), audit.json, roc.png and phi.png.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common import cli
from common.attacks import ATTACKS, Known, NNOptions, Outputs, Scores
from common.attacks.contract import dealt_out, redealt
from common.attacks.shadow import ShadowOutputs, shadow_attacks
from common.audit_files import Loaded, Shadows, load_outputs, load_shadows
from common.audit_page import render, summary, table, warnings
from common.calibration import ece, nll
from common.config import Attack
from common.errors import UserError
from common.figures import draw_phi, draw_roc
from common.files import atomic_write, derive_seed, make_folder, sha256, write_json
from common.measure import report_of
from common.metrics import Ints
from common.uncertainty import LEVEL, delong_interval

ROOT = Path(__file__).parents[1]
FEWEST = 10  # known points, and scored points, of a side: the NN attack needs as many
MOST_EXPOSED = 20


@dataclass(frozen=True, eq=False)
class Places:
    """Which points of a side the attacker knows and which are scored: ascending positions in its file, disjoint."""

    known: Ints
    scored: Ints


def audit(files: dict[str, Path], known_fraction: float, fpr: float, seed: int, out: Path) -> dict[str, Any]:
    """Attack what the files hold, write the report into the folder `out`, and return its row (the content of audit.json).

    `files` has `members`, `non_members` and, with shadow models, `shadows`. `known_fraction` of each side is known to the
    attacker; it and `fpr` lie in (0, 1). Raises UserError for files or numbers that do not fit.
    """
    if not 0 < known_fraction < 1 or not 0 < fpr < 1:
        raise UserError(f"--known-fraction and --fpr must lie between 0 and 1, both excluded, not {known_fraction} and {fpr}.")
    loaded = {side: load_outputs(files[side]) for side in ("members", "non_members")}
    sides = {side: one.outputs for side, one in loaded.items()}
    check_sides(loaded, files)
    places = {side: split(side, len(outputs), known_fraction, seed) for side, outputs in sides.items()}
    shadows = load_shadows(files["shadows"], *sides.values()) if "shadows" in files else None
    make_folder(out)
    # First what needs no training, so that shadow models that do not fit are refused at once.
    found, options = attack_with_shadows(sides, places, shadows) if shadows else {}, NNOptions()
    scores = found | attack_all(sides, places, options, seed)
    null = {name: dealt_out(points, derive_seed("null", name, seed)) for name, points in found.items()}
    null |= null_scores(sides, places, options, seed)
    row: dict[str, Any] = {"known_fraction": known_fraction, "fpr": fpr, "seed": seed}
    row |= describe(files, loaded, places, shadows) | measure(scores, null, fpr)
    row["most_exposed"] = most_exposed(sides["members"], places["members"], scores[row["best"]])
    row |= {"summary": summary(row), "warnings": warnings(row)}
    write(out, row, scores, {side: outputs.take(places[side].scored) for side, outputs in sides.items()})
    return row


def check_sides(loaded: dict[str, Loaded], files: dict[str, Path]) -> None:
    """Refuse two sides that cannot be of one model, that were not saved alike, or that are one set of points given twice."""
    kinds = [f"`{one.array}` of {one.dtype}" for one in loaded.values()]
    if len(set(kinds)) > 1:
        raise UserError(
            f"{files['members']} holds {kinds[0]} and {files['non_members']} {kinds[1]}: save both alike, since rounding alone "
            "would tell the sides apart."
        )
    members, non_members = (one.outputs for one in loaded.values())
    if members.classes != non_members.classes:
        raise UserError(
            f"{files['members']} has {members.classes} classes and {files['non_members']} {non_members.classes}: both must be "
            "outputs of one model."
        )
    if np.array_equal(members.logits, non_members.logits) and np.array_equal(members.labels, non_members.labels):
        raise UserError(
            f"{files['members']} and {files['non_members']} hold the same points: pass non-members as --non-members."
        )


def split(side: str, points: int, known_fraction: float, seed: int) -> Places:
    """A random split of a side's points into known and scored ones, the same on every machine for a `seed`."""
    known = round(known_fraction * points)
    if min(known, points - known) < FEWEST:
        raise UserError(
            f"{points} {side.replace('_', '-')} leave {known} known and {points - known} scored points: save more, at least "
            f"{FEWEST} of each kind are needed ({2 * FEWEST} points at --known-fraction 0.5)."
        )
    order = np.random.default_rng(derive_seed("audit", side, seed)).permutation(points)
    return Places(np.sort(order[:known]), np.sort(order[known:]))


def attack_all(sides: dict[str, Outputs], places: dict[str, Places], options: NNOptions, seed: int) -> dict[str, Scores]:
    """Scores of every attack of ATTACKS, which need outputs and known points alone."""
    members, non_members = sides.values()
    known = Known(members.take(places["members"].known), non_members.take(places["non_members"].known))
    scored = members.take(places["members"].scored), non_members.take(places["non_members"].scored)
    attacks = tqdm(ATTACKS.items(), desc="attacks", leave=False)
    return {name: attack(known, *scored, options, derive_seed("attack", name, seed)) for name, attack in attacks}


def null_scores(sides: dict[str, Outputs], places: dict[str, Places], options: NNOptions, seed: int) -> dict[str, Scores]:
    """Scores of the same attacks after all points of both sides were pooled and dealt out again: nothing is left to find.

    Nothing is chosen on scored points, so that no number of epochs can move it: the NN attack trains for a fifth of them.
    """
    members, non_members = sides.values()
    order = np.random.default_rng(derive_seed("null", seed)).permutation(len(members) + len(non_members))
    logits = redealt(members.logits, non_members.logits, order)
    labels = redealt(members.labels, non_members.labels, order)
    dealt = dict(zip(sides, map(Outputs, logits, labels), strict=True))
    return attack_all(dealt, places, replace(options, nn_epochs=-(-options.nn_epochs // 5)), seed)


def attack_with_shadows(sides: dict[str, Outputs], places: dict[str, Places], shadows: Shadows) -> dict[str, Scores]:
    """Scores of LiRA and RMIA, as far as the shadow models allow.

    RMIA's population are the known non-members. They are also what its threshold is fitted on: that a point is in its own
    population lowers its score by at most one over their number.
    """
    members, non_members = sides.values()
    labels = np.concatenate([members.labels, non_members.labels])
    member, other = places["members"], places["non_members"]
    known = member.known, len(members) + other.known
    scored = member.scored, len(members) + other.scored
    outputs = ShadowOutputs(shadows.target[None], shadows.phi[:, None], shadows.keep, labels, population=known[1])
    return shadow_attacks(outputs, (*scored, *known), Attack())


def describe(
    files: dict[str, Path], loaded: dict[str, Loaded], places: dict[str, Places], shadows: Shadows | None
) -> dict[str, Any]:
    """What was audited: the files, how many points they hold, and what the scored predictions are worth."""
    scored = {side: one.outputs.take(places[side].scored) for side, one in loaded.items()}
    saturated = sum(one.saturated for one in loaded.values()) + (shadows.saturated if shadows else 0)
    return {
        "files": {name: {"path": str(path), "sha256": sha256(path)} for name, path in files.items()},
        "array": {side: one.array for side, one in loaded.items()},
        "classes": scored["members"].classes,
        "points": {side: len(one.outputs) for side, one in loaded.items()},
        "known": {side: len(place.known) for side, place in places.items()},
        "scored": {side: len(place.scored) for side, place in places.items()},
        "saturated": saturated,
        "shadows": {"models": len(shadows.keep), "left_out": shadows.left_out} if shadows else None,
        "accuracy": {side: float((o.logits.argmax(1) == o.labels).mean()) for side, o in scored.items()},
        "ece": ece(scored["non_members"].probabilities, scored["non_members"].labels),
        "nll": nll(scored["non_members"].logits, scored["non_members"].labels),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def measure(scores: dict[str, Scores], null: dict[str, Scores], fpr: float) -> dict[str, Any]:
    """Metrics of every attack, with the AUC under shuffled membership, the name of the largest AUC's, and the gap floor.

    best_interval: the largest AUC's, at a level that holds for all attacks at once (Bonferroni), since the scored points
    themselves picked it.
    """
    attacks, chance = (
        {name: report_of(points, "clean", Attack(fpr=fpr)) for name, points in found.items()} for found in (scores, null)
    )
    attacks = {name: report | {"null_auc": chance[name]["auc"]} for name, report in attacks.items()}
    best = max(attacks, key=lambda name: attacks[name]["auc"])
    interval = delong_interval(scores[best].members, scores[best].non_members, 1 - (1 - LEVEL) / len(attacks))
    return {"attacks": attacks, "best": best, "best_interval": interval, "gap_floor": attacks["correctness"]["auc"]}


def most_exposed(members: Outputs, places: Places, scores: Scores) -> list[dict[str, Any]]:
    """The scored members of the highest scores, highest first, with their place in the file, counted from 0.

    non_members: how many scored non-members score as high or higher, that is how sure an attacker can be.
    """
    first = np.argsort(-scores.members, kind="stable")[:MOST_EXPOSED]
    rows = places.scored[first]
    p = members.take(rows).probabilities
    return [
        {
            "position": int(row),
            "label": int(members.labels[row]),
            "predicted": int(members.logits[row].argmax()),
            "p": float(p[i, members.labels[row]]),
            "score": float(score),
            "non_members": int((scores.non_members >= score).sum()),
        }
        for i, (row, score) in enumerate(zip(rows, scores.members[first], strict=True))
    ]


def write(out: Path, row: dict[str, Any], scores: dict[str, Scores], scored: dict[str, Outputs]) -> None:
    """audit.html, audit.json, and the pictures of the page, which draws on them."""
    logits, labels = (tuple(getattr(side, name) for side in scored.values()) for name in ("logits", "labels"))
    draw_roc(out / "roc.png", "ROC curves of the scored points", scores)
    draw_phi(out / "phi.png", "", {"": logits}, labels)
    page = render(row, {name: (out / f"{name}.png").read_bytes() for name in ("roc", "phi")})
    atomic_write(out / "audit.html", lambda file: file.write(page.encode()))
    write_json(out / "audit.json", row)


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line; paths are relative to where it is called."""
    parser = argparse.ArgumentParser(
        prog="python -m common.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--members", type=Path, required=True, metavar="FILE", help=".npz of the model's answers on members")
    parser.add_argument("--non-members", type=Path, required=True, metavar="FILE", help=".npz of its answers on non-members")
    parser.add_argument("--shadows", type=Path, metavar="FILE", help=".npz of shadow models' answers on both, and `keep`")
    parser.add_argument(
        "--out", type=Path, default=Path("audit"), metavar="FOLDER", help="folder of the report (default: audit)"
    )
    parser.add_argument("--known-fraction", type=float, default=0.5, metavar="X", help="share of known points (default: 0.5)")
    parser.add_argument("--fpr", type=float, default=0.001, metavar="X", help="FPR at which TPR is reported (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="seed of split and NN attack (default: 0)")
    options = parser.parse_args(arguments)
    files = {name: getattr(options, name) for name in ("members", "non_members", "shadows") if getattr(options, name)}
    row = audit(files, options.known_fraction, options.fpr, options.seed, options.out)
    print(table(row).to_markdown(index=False, disable_numparse=True))
    print("", *row["summary"], *(f"Warning: {sentence}" for sentence in row["warnings"]), sep="\n")
    print(f"\n{options.out / 'audit.html'} has curves, histograms and the most exposed records; audit.json all numbers.")


if __name__ == "__main__":
    cli.run_script(main, ROOT)
