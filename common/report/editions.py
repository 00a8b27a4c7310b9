"""Editions: the rows of one profile under one protocol, and what they measure.

A table or a figure of the paper is made for each edition. It has the data sets of which the edition has rows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.config import PROTOCOLS
from common.errors import check_name
from common.report.paper import PAPER_DEFENSES
from common.report.rows import read_row, scenario_of

PROFILE_ORDER = ("paper", "narrow", "gpu", "small")  # the nearest to the paper first
DATASET_ORDER = ("cifar10", "cifar100", "svhn", "celeba", "utkface", "synthetic")
PAPER_DATASETS, FACES = DATASET_ORDER[:3], DATASET_ORDER[3:5]  # of Table III, and of Figure 8

Row = dict[str, Any]


@dataclass(frozen=True)
class StoredRow:
    """A row, and the JSON file that it was read from, beside which its scores and pictures lie."""

    row: Row
    path: Path


@dataclass(frozen=True)
class Selection:
    """Which rows to use; an empty tuple means all."""

    datasets: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()

    def keeps(self, row: Row) -> bool:
        """Whether a row is selected."""
        wanted = ((self.datasets, "dataset"), (self.profiles, "profile"), (self.protocols, "protocol"))
        return all(not names or row[key] in names for names, key in wanted)


@dataclass
class Edition:
    """The rows of one profile and one protocol."""

    profile: str
    protocol: str
    rows: list[StoredRow] = field(default_factory=list)
    asked: tuple[str, ...] = ()  # the data sets that the user named

    @property
    def name(self) -> str:
        """The name of its folder: `narrow-clean`."""
        return f"{self.profile}-{self.protocol}"

    @property
    def title(self) -> str:
        return f"profile {self.profile}, protocol {self.protocol}"

    @property
    def datasets(self) -> list[str]:
        """The data sets with rows, those of the paper first."""
        return in_order({stored.row["dataset"] for stored in self.rows}, DATASET_ORDER)

    @property
    def absent_datasets(self) -> list[str]:
        """The paper's data sets that have no rows, if another one of them has and the user did not name data sets."""
        return [] if self.asked or not set(PAPER_DATASETS) & set(self.datasets) else missing_from(PAPER_DATASETS, self.datasets)

    def of_kind(self, kind: str) -> list[StoredRow]:
        """The rows of a kind, whatever their settings."""
        return [stored for stored in self.rows if stored.row["kind"] == kind]

    def find(self, kind: str, **wanted: Any) -> list[StoredRow]:
        """The rows of a kind without changed settings, in which every key of `wanted` has the given value.

        `scenario` is that of Diffence.
        """
        return [stored for stored in self.of_kind(kind) if not stored.row["overrides"] and has_values(stored.row, **wanted)]

    def defenses(self, kind: str = "evaluation") -> list[str]:
        """The defenses with rows of a kind: those of the paper first, as in its Table III."""
        return in_order({stored.row["defense"] for stored in self.of_kind(kind)}, PAPER_DEFENSES)


def has_values(row: Row, **wanted: Any) -> bool:
    """Whether every key of `wanted` has the given value in a row; `scenario` is that of Diffence."""
    return all((scenario_of(row) if key == "scenario" else row.get(key)) == value for key, value in wanted.items())


def missing_from(wanted: Sequence[str], present: Iterable[str]) -> list[str]:
    """Those of `wanted` that are not `present`."""
    return [name for name in wanted if name not in set(present)]


def in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """The names in the order of `order`; the others follow by name."""
    present = set(names)
    return [name for name in order if name in present] + sorted(present - set(order))


def read_folder(folder: Path) -> list[StoredRow]:
    """Every row in a folder and the folders in it, in the order of their files."""
    paths = [path for path in sorted(folder.rglob("*.json")) if not path.name.startswith("benchmark_")]  # which are no rows
    return [StoredRow(read_row(path), path) for path in paths]


def select_editions(rows: Sequence[StoredRow], selection: Selection) -> list[Edition]:
    """The editions of the selected rows, the nearest to the paper first.

    Raises UserError, with the list of what there is, for a name of which there is no row.
    """
    for kind, key, names in (("data set", "dataset", selection.datasets), ("profile", "profile", selection.profiles)):
        known = sorted({stored.row[key] for stored in rows})
        for name in names:
            check_name(f"{kind} in the rows", name, known)
    for name in selection.protocols:
        check_name("protocol", name, PROTOCOLS)
    editions: dict[tuple[str, str], Edition] = {}
    for stored in rows:
        profile, protocol = stored.row["profile"], stored.row["protocol"]
        if selection.keeps(stored.row):
            edition = editions.setdefault((profile, protocol), Edition(profile, protocol, asked=selection.datasets))
            edition.rows.append(stored)
    profiles = in_order({profile for profile, _ in editions}, PROFILE_ORDER)
    return sorted(editions.values(), key=lambda one: (profiles.index(one.profile), PROTOCOLS.index(one.protocol)))


@dataclass(frozen=True)
class Measurement:
    """A number over the seeds of a setting.

    value: its mean. sd: the sample standard deviation over seeds, None for a single one. half_width: half the width of the mean
    95% interval, None where a number has none.
    """

    value: float
    sd: float | None
    half_width: float | None
    seeds: tuple[int, ...]

    @property
    def uncertainty(self) -> float:
        """The larger of half the width of the interval and the standard deviation over seeds."""
        return max(self.sd or 0.0, self.half_width or 0.0)


# A metric of a row: its value, and half the width of its 95% interval or None.
Metric = Callable[[Row], tuple[float, float | None]]


def measure_over_seeds(rows: Sequence[StoredRow], metric: Metric) -> Measurement | None:
    """A metric over rows that differ in their seed only; None where there is no row."""
    if not rows:
        return None
    values, half_widths = zip(*(metric(stored.row) for stored in rows), strict=True)
    return Measurement(
        float(np.mean(values)),
        float(np.std(values, ddof=1)) if len(values) > 1 else None,
        None if None in half_widths else float(np.mean(half_widths)),
        tuple(sorted(stored.row["seed"] for stored in rows)),
    )


def is_noise(value: Measurement | None, reference: Measurement | None) -> bool:
    """Whether two numbers differ by no more than the uncertainty of the less certain of them."""
    if value is None or reference is None:
        return False
    return abs(value.value - reference.value) <= max(value.uncertainty, reference.uncertainty)
