"""A table of the paper with our numbers beside it, as Markdown and CSV; table_latex.py and table_html.py have the rest."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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


def reduction(without: Measurement | None, protected: Measurement | None) -> Cell:
    """By how many percent a number falls."""
    if without is None or protected is None or not without.value:
        return Cell()
    return Cell(100 * (1 - protected.value / without.value), noise=is_noise(protected, without))


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


def group_columns(columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """Neighbouring columns of one group together: [(group, heads)]."""
    groups: list[tuple[str, list[str]]] = []
    for group, name in columns:
        if groups and group and groups[-1][0] == group:
            groups[-1][1].append(name)
        else:
            groups.append((group, [name]))
    return groups
