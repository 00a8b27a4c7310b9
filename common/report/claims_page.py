"""docs/claims.md: the paper's claims one by one, with what our rows say of each and a verdict that follows from them."""

from collections.abc import Iterable
from typing import Any

from common.report.claim_rules import Evidence, Results, Rows, place
from common.report.claims import CLAIMS, Claim
from common.report.load import of_kind

PREFACE = """# The paper's claims

`python -m common.report` makes this page from the rows in [results/](../results/README.md) with protocol `clean`. Of each
setting it takes the rows of one seed. This is seed 0, unless another is named because there are no rows of seed 0. Each
claim is in our words. Each has a test, and the verdict follows from the rows by that test. A claim *holds* where every
setting with the rows meets the test, it *holds in part* where some do, and it *does not hold here* where none does. "Best
AUC" is the AUC of the best of the paper's five attacks, with DeLong's 95% interval. One model is behind each number, so a
small difference may be noise.

The settings differ in size. `narrow` has the paper's numbers of images and a narrow network. `small` has fewer images.
`synthetic` is a generated data set ([reproduce.md](reproduce.md)). SVHN has no rows, because its files could not be
downloaded."""


def load_results(rows: Iterable[dict[str, Any]]) -> Results:
    """The rows with protocol clean and the first seed of their setting, by what --set changed.

    That may be nothing, the number of shadow models, the diffusion model, or the settings of the row's own defense. Other rows
    are left out.
    """
    rows = list(rows)
    results = Results()
    tuned: dict[tuple[str, ...], Rows] = {}
    for row in of_first_seeds(of_kind(rows, "evaluation")):
        changed, shadows = row["overrides"], row["config"]["attack"]["shadows"]
        if row["protocol"] != "clean":
            continue
        if changed and all(change.startswith(f"defenses.{row['defense']}.") for change in changed):
            settings = tuned.setdefault((place(row), *changed), {})
        elif "ddpm.name=stronger" in changed:
            settings = results.stronger.setdefault(place(row), {})
        elif changed in ([], [f"attack.shadows={shadows}"]):
            settings = (results.with_shadows if shadows else results.evaluations).setdefault(place(row), {})
        else:
            continue
        settings[row["defense"], row["diffence"]["scenario"] if row["diffence"] else None] = row
    for (where, *_), settings in tuned.items():
        results.tuned.setdefault(where, []).append(settings)
    for kind in ("label_only", "intervals", "n_and_t", "overhead"):
        results.by_kind[kind] = [row for row in of_first_seeds(of_kind(rows, kind)) if not row["overrides"]]
    return results


def of_first_seeds(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the smallest seed of their setting, which is a data set, a profile, a protocol and what --set changed."""
    settings = [((row["dataset"], row["profile"], row["protocol"], *row["overrides"]), row) for row in rows]
    first: dict[tuple[str, ...], int] = {}
    for setting, row in settings:
        first[setting] = min(row["seed"], first.get(setting, row["seed"]))
    return [row for setting, row in settings if row["seed"] == first[setting]]


def evidence_for(claim: Claim, results: Results) -> list[Evidence]:
    """What the rows say of a claim."""
    return claim.rule(results) if claim.rule else []


def verdict(claim: Claim, evidence: list[Evidence]) -> str:
    """The verdict on a claim, which follows from the evidence."""
    if claim.untestable:
        return "cannot be tested here"
    if not evidence:
        return "not measured yet"
    met = sum(one.holds for one in evidence)
    return "holds" if met == len(evidence) else "holds in part" if met else "does not hold here"


def claims_page(rows: Iterable[dict[str, Any]]) -> str:
    """The page, from all rows."""
    results = load_results(rows)
    judged = [(claim, evidence_for(claim, results)) for claim in CLAIMS]
    summary = ["| claim | paper | verdict |", "| --- | --- | --- |"]
    for number, (claim, evidence) in enumerate(judged, start=1):
        summary.append(f"| [{number}. {claim.title}](#claim-{number}) | {claim.section} | {verdict(claim, evidence)} |")
    parts = [PREFACE, "\n".join(summary)]
    for number, (claim, evidence) in enumerate(judged, start=1):
        parts += [f"## Claim {number}", f"**{claim.title}.** {claim.section}.", f"Test: {claim.test}"]
        if evidence:
            parts.append(
                "\n".join(f"- {one.where}: {one.figures}. **{'Met' if one.holds else 'Not met'}.**" for one in evidence)
            )
        else:
            parts.append(claim.missing)
        parts.append(f"Verdict: **{verdict(claim, evidence)}**. {claim.remark}".rstrip())
    return "\n\n".join(parts) + "\n"
