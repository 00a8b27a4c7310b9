"""A table of the paper with our numbers beside it, and how it is written: as Markdown, LaTeX, CSV and HTML."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import count, product
from string import ascii_lowercase

import pandas as pd

from common.report.editions import Measurement, is_noise
from common.report.rows import as_markdown

NOISE_RULE = (
    "≈ marks a value that cannot be told from the one without Diffence: they differ by no more than half the width of the "
    "wider 95% interval or, with several seeds, than the larger standard deviation over seeds, whichever is more."
)


@dataclass(frozen=True)
class Cell:
    """A number of a table. Without a `value` it is empty, and `command` says what makes it; without both it does not apply."""

    value: float | None = None
    sd: float | None = None  # over seeds
    half_width: float | None = None  # of the 95% interval
    seeds: tuple[int, ...] = ()
    noise: bool = False
    command: str = ""
    digits: int = 1

    def text(self) -> str:
        """The number as a reader sees it, without footnotes."""
        if self.value is None:
            return "" if self.command else "-"
        spread = "" if self.sd is None else f" ± {self.sd:.{self.digits}f}"
        return f"{self.value:.{self.digits}f}{spread}" + ("≈" if self.noise else "")


def measured(
    measurement: Measurement | None, command: str, reference: Measurement | None = None, digits: int = 1, scale: float = 100
) -> Cell:
    """The cell of a measurement, times `scale` (100: percent). A value that is noise against `reference` is marked."""
    if measurement is None:
        return Cell(command=command)
    sd, half_width = (None if one is None else scale * one for one in (measurement.sd, measurement.half_width))
    noise = is_noise(measurement, reference)
    return Cell(scale * measurement.value, sd, half_width, measurement.seeds, noise, digits=digits)


Column = tuple[str, str]  # a group of columns, such as a scenario, and the column's own head


@dataclass(frozen=True)
class Line:
    """A line of a table: its heads, such as defense and data set, its cells by column, and whether they are the `paper`'s."""

    heads: tuple[str, ...]
    cells: dict[Column, Cell]
    paper: bool = False


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, or the numbers of a figure. `label` is such as "Table III"; `columns` gives their order."""

    label: str
    title: str
    head_names: tuple[str, ...]
    columns: Sequence[Column]
    lines: Sequence[Line]
    notes: Sequence[str] = ()
    missing: str = ""  # where there are no lines: why, and what makes the rows
    commands: dict[str, str] = field(init=False)  # the letter of a footnote by its command

    def __post_init__(self) -> None:
        wanted = dict.fromkeys(cell.command for line in self.lines for cell in line.cells.values() if cell.command)
        object.__setattr__(self, "commands", dict(zip(wanted, _letters(), strict=False)))

    def text(self, cell: Cell) -> str:
        """The text of a cell. An empty one has the letter of the footnote with its command."""
        return f"[{self.commands[cell.command]}]" if cell.value is None and cell.command else cell.text()

    def footnotes(self) -> list[str]:
        """The notes below the table, then the command behind each letter, in backticks."""
        return [*self.notes, *(f"[{letter}] no row yet; `{command}` makes it." for command, letter in self.commands.items())]


def _letters() -> Iterator[str]:
    """a .. z, then aa, ab, .."""
    for length in count(1):
        yield from map("".join, product(ascii_lowercase, repeat=length))


def markdown(table: PaperTable) -> str:
    """Title, table and notes as Markdown."""
    if not table.lines:
        return f"**{table.label}: {table.title}.**\n\n{table.missing}\n"
    heads = [f"{group}, {name}" if group else name for group, name in table.columns]
    frame = pd.DataFrame(
        [[*line.heads, *(table.text(line.cells.get(column, Cell())) for column in table.columns)] for line in table.lines],
        columns=[*table.head_names, *heads],
    )
    notes = "\n".join(f"- {note}" for note in table.footnotes())
    return f"**{table.label}: {table.title}.**\n\n{as_markdown(frame)}\n\n{notes}\n"


CSV_COLUMNS = ("value", "sd", "ci95_half_width", "seeds", "noise", "from", "command")


def csv_text(table: PaperTable, edition: str) -> str:
    """One line for each cell, with nothing rounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "edition", *table.head_names, "group", "column", *CSV_COLUMNS])
    for line in table.lines:
        for group, name in table.columns:
            cell = line.cells.get((group, name), Cell())
            source = "paper" if line.paper else "ours"
            seeds = " ".join(map(str, cell.seeds))
            numbers = (cell.value, cell.sd, cell.half_width)
            shown = ["" if number is None else f"{number:.10g}" for number in numbers]
            writer.writerow(
                [table.label, edition, *line.heads, group, name, *shown, seeds, int(cell.noise), source, cell.command]
            )
    return file.getvalue()


_LATEX = {"\\": r"\textbackslash{}", "≈": r"$\approx$", "±": r"$\pm$", "Δ": r"$\Delta$"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}


def latex_escape(text: str) -> str:
    """Text for LaTeX; what stands between backticks is set in typewriter and may break behind slashes and underscores."""
    parts = ["".join(_LATEX.get(character, character) for character in part) for part in text.split("`")]
    return "".join(_typewriter(part) if i % 2 else part for i, part in enumerate(parts))


def _typewriter(escaped: str) -> str:
    breakable = re.sub(r"(?<=[/_])(?=\w)", r"\\allowbreak{}", escaped).replace("--", "-{}-")
    return rf"\texttt{{{breakable}}}"


def latex(table: PaperTable, edition: str) -> str:
    """A `table*` in the style of booktabs, with the notes below it. `edition` is told in the caption."""
    groups = group_columns(table.columns)
    heads = len(table.head_names)
    over, rules, start = [""] * heads, [], heads + 1
    for group, names in groups:
        over.append(rf"\multicolumn{{{len(names)}}}{{c}}{{{latex_escape(group)}}}")
        rules += [rf"\cmidrule(lr){{{start}-{start + len(names) - 1}}}"] if group else []
        start += len(names)
    rows = [[*table.head_names, *(name for _, name in table.columns)]]
    body = []
    for i, line in enumerate(table.lines):
        if i and line.heads[0] != table.lines[i - 1].heads[0]:
            body.append(r"\addlinespace")
        first = "" if i and line.heads[0] == table.lines[i - 1].heads[0] else line.heads[0]
        texts = [first, *line.heads[1:], *(table.text(line.cells.get(column, Cell())) for column in table.columns)]
        cells = [latex_escape(text) for text in texts]
        body.append(" & ".join([*cells[:1], *(rf"\textit{{{cell}}}" if line.paper else cell for cell in cells[1:])]) + r" \\")
    return "\n".join(
        [
            "% Made by python -m common.report. It needs \\usepackage{booktabs}.",
            r"\begin{table*}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{latex_escape(f'{table.label} of the paper. {table.title}; {edition}')}.}}",
            rf"\begin{{tabular}}{{{'l' * heads}{'r' * len(table.columns)}}}",
            r"\toprule",
            *([" & ".join(over) + r" \\", " ".join(rules)] if any(group for group, _ in groups) else []),
            " & ".join(map(latex_escape, rows[0])) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\smallskip\raggedright\scriptsize",
            *(latex_escape(note) + r"\par" for note in table.footnotes()),
            r"\end{table*}",
            "",
        ]
    )


def latex_document(names: Iterable[str]) -> str:
    """A document that holds the tables of the given files, beside it."""
    inputs = [rf"\input{{{name}}}" for name in names]
    lines = [
        "% Made by python -m common.report. Compile it with: pdflatex tables.tex",
        r"\documentclass[10pt,twocolumn]{article}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage{booktabs}",
        r"\usepackage[margin=0.75in]{geometry}",
        r"\begin{document}",
        *inputs,
        r"\end{document}",
    ]
    return "\n".join(lines) + "\n"


def group_columns(columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """Neighbouring columns of one group together: [(group, heads)]."""
    groups: list[tuple[str, list[str]]] = []
    for group, name in columns:
        if groups and group and groups[-1][0] == group:
            groups[-1][1].append(name)
        else:
            groups.append((group, [name]))
    return groups


def html(table: PaperTable, anchor: str) -> str:
    """The `<table>` as HTML. Lines of the paper have a class, an interval is a tooltip, and an empty cell links to its command.

    The command of footnote a has the id `<anchor>-a` (`html_notes`).
    """
    groups = group_columns(table.columns)
    over = "".join(f'<th scope="colgroup" colspan="{len(names)}">{escape(group)}</th>' for group, names in groups)
    empty = f'<td colspan="{len(table.head_names)}"></td>'
    heads = "".join(f'<th scope="col" class="head">{escape(name)}</th>' for name in table.head_names)
    heads += "".join(f'<th scope="col">{escape(name)}</th>' for _, name in table.columns)
    lines = []
    for line in table.lines:
        first, *others = line.heads
        cells = "".join(f"<td>{_html_cell(table, line.cells.get(column, Cell()), anchor)}</td>" for column in table.columns)
        kind = ' class="paper"' if line.paper else ""
        names = f'<th scope="row">{escape(first)}</th>' + "".join(f'<td class="head">{escape(head)}</td>' for head in others)
        lines.append(f"<tr{kind}>{names}{cells}</tr>")
    group_line = f"<tr>{empty}{over}</tr>" if any(group for group, _ in groups) else ""
    return f"<table><thead>{group_line}<tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _html_cell(table: PaperTable, cell: Cell, anchor: str) -> str:
    text = escape(table.text(cell))
    if cell.value is None and cell.command:
        return f'<a href="#{anchor}-{table.commands[cell.command]}">{text}</a>'
    if cell.value is None or cell.half_width is None:
        return text
    seeds = f"; seeds {', '.join(map(str, cell.seeds))}" if len(cell.seeds) > 1 else ""
    low, high = cell.value - cell.half_width, cell.value + cell.half_width
    return f'<span title="95% interval {low:.{cell.digits}f} to {high:.{cell.digits}f}{seeds}">{text}</span>'


def html_notes(table: PaperTable, anchor: str) -> str:
    """The footnotes as items of a list."""
    letters = [""] * len(table.notes) + [f' id="{anchor}-{letter}"' for letter in table.commands.values()]
    return "".join(f"<li{letter}>{with_code(note)}</li>" for letter, note in zip(letters, table.footnotes(), strict=True))


def with_code(text: str) -> str:
    """Text as HTML, in which `code` between backticks is marked as such."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))
