"""report.html: what the rows show, on one page that needs nothing else.

The page is a single file with its pictures inside. It has no script and loads nothing.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from common.report import row_metrics
from common.report.claims import CLAIMS
from common.report.claims_page import evidence_for, load_results, verdict
from common.report.editions import Edition, StoredRow, measure_over_seeds
from common.report.page_style import STYLE
from common.report.paper import PaperNumbers
from common.report.publish import Publication, runs_table
from common.report.report_template import PAGE
from common.report.style import DATASET_TITLES, title_of
from common.report.table_html import html, html_notes, with_code

KINDS = {"holds": "holds", "holds in part": "part", "does not hold here": "fails"}  # the class of a verdict


@dataclass(frozen=True)
class Headline:
    """The undefended classifier of one data set: the AUC without Diffence and in a scenario, and sentences."""

    title: str
    scenario: str
    without: str
    protected: str
    lines: tuple[str, ...]


def report_page(rows: Sequence[StoredRow], publication: Publication, drawn: dict[str, Path], paper: PaperNumbers) -> str:
    """The page. `drawn` are the PNG files of the figures, by number; without tables and figures it has the rest."""
    nothing: tuple[Edition, list[Headline]] = publication.editions[0], []
    edition, cards = next((found for one in publication.editions if (found := headlines(one))), nothing)
    sections = [("headline", "In short"), ("claims", "Claims"), ("tables", "Tables"), ("figures", "Figures")]
    sections += [("runs", "What was run"), ("rerun", "Run it again")]
    claims = _claims(rows)
    present = {"claims": claims, "tables": publication.tables, "figures": publication.figures}
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(PAGE).render(
        style=STYLE,
        rows=f"{len(rows):,}",
        contents=[(anchor, title) for anchor, title in sections if present.get(anchor, True)],
        headlines=cards and [*cards, *_paper_headline(paper)],
        edition=edition.title,
        claims=claims,
        tables=[_table_group(number, publication) for number in publication.tables],
        figures=[_figure(number, publication, drawn) for number in publication.figures],
        runs=runs_table(publication.editions),
        commands=_commands(publication.editions),
    )


def headlines(edition: Edition) -> tuple[Edition, list[Headline]] | None:
    """A card for each data set of the edition that has the undefended classifier without and with Diffence, else None."""
    cards = []
    for dataset in edition.datasets:
        rows = {
            scenario: edition.find("evaluation", dataset=dataset, defense="undefended", scenario=scenario)
            for scenario in (None, "1", "2", "3")
        }
        protected = [scenario for scenario, found in rows.items() if scenario and found]
        if rows[None] and protected:
            cards.append(_headline(dataset, rows, protected))
    return (edition, cards) if cards else None


def _headline(dataset: str, rows: dict[str | None, list[StoredRow]], scenarios: list[str]) -> Headline:
    aucs = {one: measure_over_seeds(rows[one], row_metrics.best_auc) for one in (None, *scenarios)}
    accuracy = measure_over_seeds(rows[None], row_metrics.test_accuracy)
    floor = measure_over_seeds(rows[None], row_metrics.gap_floor)
    assert accuracy and floor
    changed = [sum(stored.row["diffence"]["labels_changed"].values()) for one in scenarios for stored in rows[one]]
    answers = sum(sum(stored.row["scored"].values()) for one in scenarios for stored in rows[one])
    seeds = len(rows[None])
    shown = {one: f"{found.value:.3f}" for one, found in aucs.items() if found}
    spreads = [
        f"± {found.sd if found.sd is not None else found.half_width or 0:.3f}"
        for one in (None, scenarios[0])
        if (found := aucs[one])
    ]
    meaning = f"standard deviation over {seeds} seeds" if seeds > 1 else "95% interval, one seed"
    unchanged = ", so accuracy is unchanged" if not sum(changed) else ""
    lines = [
        f"{' and '.join(spreads)} ({meaning}).",
        f"Floor: {floor.value:.3f}.",
        f"Test accuracy {100 * accuracy.value:.1f}%. Diffence changed {sum(changed):,} of {answers:,} labels{unchanged}.",
    ]
    others = [f"Scenario {one}: {shown[one]}." for one in scenarios[1:]]
    title = title_of(DATASET_TITLES, dataset)
    return Headline(title, f"scenario {scenarios[0]}", shown[None], shown[scenarios[0]], (*lines, " ".join(others)))


def _paper_headline(paper: PaperNumbers) -> list[Headline]:
    """The paper's card, from its Table III."""
    scenarios = ("without", "scenario 1", "scenario 2", "scenario 3")
    aucs = [paper.find("Table III", "auc", diffence=one, attack="best") for one in scenarios]
    first, *protected = [f"{auc / 100:.3f}" for auc in aucs if auc is not None]
    lines = ("Average over CIFAR-10, CIFAR-100 and SVHN.", f"Scenario 2: {protected[1]}. Scenario 3: {protected[2]}.")
    return [Headline("The paper (Table III)", "scenario 1", first, protected[0], lines)]


def _claims(rows: Sequence[StoredRow]) -> list[dict[str, Any]]:
    """The claims that any row speaks of, with verdict and evidence; of claims without rows, the command."""
    results = load_results([stored.row for stored in rows])
    judged = [(claim, evidence_for(claim, results)) for claim in CLAIMS]
    return [
        {
            "title": claim.title,
            "section": claim.section,
            "test": claim.test,
            "evidence": evidence,
            "remark": claim.remark,
            "verdict": verdict(claim, evidence),
            "kind": KINDS.get(verdict(claim, evidence), "open"),
            "missing": with_code(claim.missing),
        }
        for claim, evidence in judged
    ]


def _table_group(number: str, publication: Publication) -> dict[str, Any]:
    made = publication.tables[number]
    tables = [
        {
            "edition": edition.title,
            "html": html(table, anchor) if table.lines else "",
            "title": table.title,
            "notes": html_notes(table, anchor),
            "missing": with_code(table.missing),
        }
        for edition, table in made
        for anchor in [f"table-{number}-{edition.name}"]
    ]
    return {"label": made[0][1].label, "anchor": f"table-{number}", "tables": tables}


def _figure(number: str, publication: Publication, drawn: dict[str, Path]) -> dict[str, Any]:
    edition, figure = publication.figures[number]
    size = figure.drawing.get_size_inches() * 125 if figure.drawing is not None else (0, 0)  # pixels on the page
    return {
        "anchor": f"figure-{number}",
        "label": figure.label,
        "own": not number.isdecimal(),
        "title": figure.title,
        "caption": with_code(figure.caption),
        "plain": figure.caption,
        "edition": edition.title,
        "png": b64encode(drawn[number].read_bytes()).decode() if number in drawn else "",
        "width": round(size[0]),
        "height": round(size[1]),
        "numbers": html(figure.numbers, f"figure-{number}") if figure.numbers else "",
        "notes": html_notes(figure.numbers, f"figure-{number}") if figure.numbers else "",
        "missing": with_code(figure.missing),
    }


def _commands(editions: Sequence[Edition]) -> list[str]:
    """The command behind each data set's evaluations in each edition, and the one that makes this page."""
    commands = []
    for edition in editions:
        options = "" if edition.protocol == "clean" else f" --protocol {edition.protocol}"
        for dataset in edition.datasets:
            commands.append(f"bash all-train-all.sh --datasets {dataset} --profile {edition.profile}{options}")
    return [*commands, "python -m common.report"]
