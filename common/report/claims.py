"""docs/claims.md: the paper's claims one by one, with what our rows say of each and a verdict that follows from them."""

from pathlib import Path

from common.report.claim_rules import CLAIMS, Claim, Evidence, Results
from common.report.load import rows_of_kind

PREFACE = """# The paper's claims

Made by `python -m common.report` from the rows in [results/](../results/README.md) with seed 0 and protocol `clean`. Each
claim is in our words. Its verdict follows from the rows by the stated test. A claim *holds* where every setting with the rows
meets the test, it *holds in part* where some do, and it *does not hold here* where none does. "Best AUC" is the AUC of the
best of the paper's five attacks, with DeLong's 95% interval. One model is behind each number, so a small difference may be
noise.

The settings differ in size. `narrow` has the paper's numbers of images and a narrow network. `small` has fewer images.
`synthetic` is a generated data set ([reproduce.md](reproduce.md)). SVHN has no rows, because its files could not be
downloaded."""


def load_results(root: Path) -> Results:
    """The rows under `root`/results with seed 0, protocol clean, and no setting changed but the number of shadow models."""
    results = Results()
    for row in rows_of_kind(root, "evaluation"):
        shadows = row["config"]["attack"]["shadows"]
        if row["seed"] or row["protocol"] != "clean" or row["overrides"] not in ([], [f"attack.shadows={shadows}"]):
            continue
        scenario = row["diffence"]["scenario"] if row["diffence"] else None
        settings = results.with_shadows if shadows else results.evaluations
        settings.setdefault(f"{row['dataset']}, {row['profile']}", {})[row["defense"], scenario] = row
    for kind in ("label_only", "intervals"):
        rows = rows_of_kind(root, kind)
        results.by_kind[kind] = [row for row in rows if not row["seed"] and not row["overrides"]]
    return results


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


def claims_page(root: Path) -> str:
    """The page, from the rows under `root`/results."""
    results = load_results(root)
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
            parts.append(claim.untestable or f"There are no rows yet. This makes them: `{claim.command}`")
        parts.append(f"Verdict: **{verdict(claim, evidence)}**.")
    return "\n\n".join(parts) + "\n"
