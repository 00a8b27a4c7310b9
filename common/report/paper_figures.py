"""What a figure of the paper is here: a drawing with its caption, or a sentence that says what makes it."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from common.report.editions import Edition, StoredRow
from common.report.paper import PaperNumbers
from common.report.style import DATASET_TITLES, title_of
from common.report.tables import PaperTable


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper for an edition. `number` is as in the paper, or a name.

    drawing: None where the figure cannot be drawn; then `missing` says why, and names the command that makes its rows. numbers:
    what the paper's text says of the figure beside our numbers, None where it says nothing.
    """

    number: str
    title: str
    caption: str = ""
    drawing: Figure | None = None
    numbers: PaperTable | None = None
    missing: str = ""
    rows: tuple[StoredRow, ...] = ()  # those that were drawn

    @property
    def label(self) -> str:
        return f"Figure {self.number}" if self.number.isdecimal() else f"Not in the paper: {self.number}"


FigureBuilder = Callable[[Edition, PaperNumbers], PaperFigure]


def no_rows(number: str, title: str, command: str) -> PaperFigure:
    """A figure whose rows are missing."""
    return PaperFigure(number, title, missing=f"There are no rows yet. This makes them: `{command}`")


def dataset_titles(names: list[str]) -> str:
    """The titles of data sets in a sentence."""
    return ", ".join(title_of(DATASET_TITLES, name) for name in names)


def shown_datasets(rows: list[StoredRow]) -> str:
    """The titles of the data sets of rows, each once."""
    return dataset_titles(list(dict.fromkeys(stored.row["dataset"] for stored in rows)))


def first_seed(rows: list[StoredRow]) -> StoredRow | None:
    """The row of the smallest seed, None where there is no row."""
    return min(rows, key=lambda stored: stored.row["seed"], default=None)
