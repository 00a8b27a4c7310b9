"""The paper's tables and figures from rows: built, written to a folder, and listed on a page in Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import UserError, check_name
from common.report import ablations, bars, distributions, frontier, trade_offs, worst_case
from common.report.cost_tables import TABLES
from common.report.editions import Edition, Selection, StoredRow, in_order, read_folder, select_editions
from common.report.paper import PAPER_DEFENSES, PaperNumbers, paper_numbers
from common.report.paper_figures import FigureBuilder, PaperFigure
from common.report.rows import as_markdown
from common.report.style import DATASET_TITLES, DEFENSE_TITLES, save_figure, title_of
from common.report.table_latex import latex, latex_document
from common.report.tables import PaperTable, csv_text, markdown

FIGURES: dict[str, FigureBuilder] = {
    "1": distributions.figure_1,
    "3": distributions.figure_3,
    "4": distributions.figure_4,
    "5": trade_offs.figure_5,
    "6": bars.figure_6,
    "7": bars.figure_7,
    "8": trade_offs.figure_8,
    "9": ablations.figure_9,
    "10": ablations.figure_10,
    "11": ablations.figure_11,
    "12": trade_offs.figure_12,
    "13": trade_offs.figure_13,
    "14": distributions.figure_14,
    # Not in the paper:
    "frontier": frontier.figure_frontier,
    "worst_case": worst_case.figure_worst_case,
}


@dataclass(frozen=True)
class Publication:
    """The tables and figures of some rows.

    tables: by number, those of every edition that has lines, the nearest to the paper first; where none has, the empty one of
    the first edition. figures: by number, that of the first edition that can draw it, else the sentence of the first edition.
    """

    editions: list[Edition]
    tables: dict[str, list[tuple[Edition, PaperTable]]]
    figures: dict[str, tuple[Edition, PaperFigure]]


def publish(
    root: Path, folder: Path, selection: Selection | None = None, tables: Sequence[str] = (), figures: Sequence[str] = ()
) -> Publication:
    """Build tables and figures from the rows in a folder; results/paper.csv lies under `root`.

    `tables` and `figures` name the wanted ones. Where both are empty, all are built. Raises UserError for unknown names and
    where no row is left.
    """
    for kind, names, known in (("table", tables, TABLES), ("figure", figures, FIGURES)):
        for name in names:
            check_name(kind, name, known)
    rows = read_folder(folder)
    editions = select_editions(rows, selection or Selection())
    if not editions:
        chosen = " that --dataset, --profile and --protocol select" if rows else ""
        raise UserError(f"{folder} holds no rows{chosen}. Make some with: bash synthetic/evaluate_MIAs/evaluate_mia.sh --help")
    paper = paper_numbers(root)
    everything = not tables and not figures
    wanted_tables = list(TABLES) if everything else [name for name in TABLES if name in tables]
    wanted_figures = list(FIGURES) if everything else [name for name in FIGURES if name in figures]
    return Publication(
        editions,
        {name: _tables(name, editions, paper) for name in wanted_tables},
        {name: _figure(name, editions, paper) for name in wanted_figures},
    )


def _tables(name: str, editions: Sequence[Edition], paper: PaperNumbers) -> list[tuple[Edition, PaperTable]]:
    built = [(edition, TABLES[name](edition, paper)) for edition in editions]
    return [(edition, table) for edition, table in built if table.lines] or built[:1]


def _figure(name: str, editions: Sequence[Edition], paper: PaperNumbers) -> tuple[Edition, PaperFigure]:
    first = None
    for edition in editions:
        figure = FIGURES[name](edition, paper)
        if figure.drawing is not None:
            return edition, figure
        first = first or (edition, figure)
    assert first is not None
    return first


def table_name(table: PaperTable, edition: Edition) -> str:
    """The file name of a table without its suffix: `table-III-narrow-clean`."""
    return f"table-{table.label.removeprefix('Table ')}-{edition.name}"


def figure_name(figure: PaperFigure, edition: Edition) -> str:
    """The file name of a figure without its suffix: `figure-11-narrow-clean`."""
    return f"figure-{figure.number}-{edition.name}"


def text_files(publication: Publication) -> dict[str, str]:
    """The text of every file but the pictures, by its name: README.md, and each table as LaTeX and CSV."""
    files = {"README.md": paper_page(publication)}
    names = []
    for made in publication.tables.values():
        for edition, table in made:
            if table.lines:
                names.append(table_name(table, edition))
                files |= {f"{names[-1]}.tex": latex(table, edition.title), f"{names[-1]}.csv": csv_text(table, edition.name)}
    for edition, figure in publication.figures.values():
        if figure.numbers:
            files[f"{figure_name(figure, edition)}.csv"] = csv_text(figure.numbers, edition.name)
    return files | ({"tables.tex": latex_document(names)} if names else {})


def draw_files(publication: Publication, out: Path) -> dict[str, Path]:
    """Write every figure as PNG and PDF into the folder `out`; returns the PNG files by the number of the figure."""
    drawn = {}
    for number, (edition, figure) in publication.figures.items():
        if figure.drawing is not None:
            drawn[number] = out / f"{figure_name(figure, edition)}.png"
            save_figure(figure.drawing, drawn[number], drawn[number].with_suffix(".pdf"))
    return drawn


PREFACE = """# The paper's tables and figures, ours beside the paper's

`python -m common.report` makes this page from the rows in `results/`. Each table is here for every profile and protocol with
rows, the nearest to the paper first, and each figure for the first of these that has what it needs. Numbers of the paper come
from `results/paper.csv`. Beside this page, tables lie as LaTeX (`tables.tex` holds them all) and CSV (with intervals, seeds and
nothing rounded), and figures as PNG and, after the command above, as PDF."""


def paper_page(publication: Publication) -> str:
    """README.md of the folder: what was run, tables, figures."""
    parts = [PREFACE, "## What was run", as_markdown(runs_table(publication.editions))]
    parts += ["## Tables"] if publication.tables else []
    for made in publication.tables.values():
        for edition, table in made:
            parts += [f"### {table.label}, {edition.title}" if table.lines else f"### {table.label}", markdown(table).rstrip()]
    parts += ["## Figures"] if publication.figures else []
    for edition, figure in publication.figures.values():
        if figure.drawing is None:
            parts += [f"### {figure.label}", f"{figure.title}. {figure.missing}"]
            continue
        parts += [f"### {figure.label}, {edition.title}", f"![{figure.title}]({figure_name(figure, edition)}.png)"]
        parts += [f"**{figure.title}.** {figure.caption}"]
        parts += [markdown(figure.numbers).rstrip()] if figure.numbers else []
    return "\n\n".join(parts) + "\n"


def runs_table(editions: Iterable[Edition]) -> pd.DataFrame:
    """What was run on what: a line for each profile, protocol, data set and environment, with its defenses and seeds."""
    lines: dict[tuple[Any, ...], list[StoredRow]] = {}
    for edition in editions:
        for stored in edition.of_kind("evaluation"):
            row = stored.row
            key = edition.name, row["dataset"], *row["overrides"], row.get("threads"), row["device"], row["torch"]
            lines.setdefault(key, []).append(stored)
    return pd.DataFrame([_run_line(rows) for rows in lines.values()])


def _run_line(rows: Sequence[StoredRow]) -> dict[str, str]:
    first = rows[0].row
    defenses = in_order({stored.row["defense"] for stored in rows}, PAPER_DEFENSES)
    facts = next((stored.row["diffence"] for stored in rows if stored.row["diffence"]), None)
    return {
        "profile, protocol": ", ".join([first["profile"], first["protocol"], *first["overrides"]]),
        "data set": title_of(DATASET_TITLES, first["dataset"]),
        "members": f"{first['config']['data']['members']:,}",
        "scored": "{members:,} + {non_members:,}".format(**first["scored"]),
        "N, T": f"{facts['n']}, {facts['t']}" if facts else "-",
        "defenses": ", ".join(title_of(DEFENSE_TITLES, name) for name in defenses),
        "seeds": ", ".join(map(str, sorted({stored.row["seed"] for stored in rows}))),
        "threads": str(first.get("threads", "-")),
        "device": first["device"],
        "torch": first["torch"],
        "commits": ", ".join(dict.fromkeys(stored.row["commit"] for stored in rows)),
    }
