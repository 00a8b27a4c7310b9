"""The report on canaries: the table of every defense, the figure, the page, and what they say without rows."""

from pathlib import Path

import made_up_rows as made
import numpy as np
import pytest
from conftest import ROOT

from common.report.editions import Selection, read_folder, select_editions
from common.report.pages import fill_pages
from common.report.paper import paper_numbers
from common.report.tables import markdown
from common.report.worst_case import figure_worst_case, worst_case_findings, worst_case_tables

ROWS = (
    made.worst_case("dpsgd-strong", None, 0.05, 0.01, epsilon=4321.0),
    made.worst_case("undefended", "1", 0.4, 0.1, fallback="reorder"),
    made.worst_case("undefended", "1", 0.6, 0.2),
    made.worst_case("undefended", None, 0.8, 0.2),
    made.worst_case("undefended", None, 0.8, 0.2, fallback="reorder"),  # the same answers once more
)


def test_the_table_has_a_line_for_each_defense_and_way() -> None:
    (table,) = worst_case_tables([*ROWS])
    assert table.startswith("**images with a wrong label: cifar10, narrow, seed0**: 8 models, 100 canaries")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    heads, rows = lines[0], [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    assert [(row["defense"], row["Diffence"]) for row in rows] == [
        ("undefended", "without"),
        ("undefended", "scenario 1"),
        ("undefended", "scenario 1, reorder"),
        ("dpsgd-strong", "without"),
    ]
    assert [row["epsilon"] for row in rows] == ["-", "-", "-", "4.32e+03"]
    assert rows[0]["canaries: TPR @0.1%FPR"] == "80.0% [75.0, 85.0]"
    assert rows[0]["canaries: TPR @1%FPR"] == "120.0% [115.0, 125.0]"  # of the same attack
    assert {row["canaries: best attack"] for row in rows} == {"knowing"}
    lost = [row["canaries without a match, members / non-members"] for row in rows]
    assert lost == ["0.0% / 0.0%", "30.0% / 10.0%", "30.0% / 10.0%", "0.0% / 0.0%"]
    assert rows[1]["random images: TPR @0.1%FPR"] == "20.0% [15.0, 25.0]"
    assert "accuracy %" in heads and rows[0]["accuracy %"] == "70.0"


def test_rows_of_other_settings_have_tables_of_their_own() -> None:
    fewer = made.worst_case("undefended", None, 0.7, 0.1)
    fewer["canaries"] = fewer["canaries"] | {"points": 20}
    narrower = made.worst_case("undefended", None, 0.6, 0.1) | {"overrides": ["model.width=8", "data.canaries=100"]}
    launched = made.worst_case("hamp", None, 0.6, 0.1) | {"overrides": ["attack.shadows=8", "data.canaries=100"]}
    tables = worst_case_tables([*ROWS, fewer, narrower, launched])
    assert ["20 canaries" in table for table in tables] == [False, True, False]
    assert ["hamp" in table for table in tables] == [True, False, False]


def test_the_figure_has_a_point_for_each_row_and_group(tmp_path: Path) -> None:
    made.write_rows(tmp_path, *ROWS, made.evaluation())
    (edition,) = select_editions(read_folder(tmp_path / "results"), Selection())
    figure = figure_worst_case(edition, paper_numbers(ROOT))
    assert figure.drawing is not None and figure.numbers is not None
    (axis,) = figure.drawing.axes
    drawn = [np.asarray(line.get_xdata()) for line in axis.lines]
    points = {round(float(values[0]), 3) for values in drawn if len(values) == 1}
    assert points == {80.0, 20.0, 60.0, 5.0, 1.0}  # the fallback `reorder` is in the table alone
    assert [label.get_text() for label in axis.get_yticklabels()] == ["Undefended", "DP-SGD, tuned"]
    text = markdown(figure.numbers)
    assert "scenario 1, reorder" in text and "4321.0" in text
    assert len(figure.rows) == 4


def test_the_page_names_the_most_and_the_least_exposed(tmp_path: Path) -> None:
    text = worst_case_findings([*ROWS])
    assert "without Diffence: at 0.1% FPR, most canaries are found for Undefended (80.0% [75.0, 85.0], knowing)" in text
    assert "fewest for DP-SGD, tuned (5.0% [0.0, 10.0], knowing)" in text
    assert "- CIFAR-10, narrow: scenario 1" not in text  # which has rows of one defense
    assert "`bash all-train-all.sh --datasets synthetic --profile small --experiments worst_case`" in worst_case_findings([])


@pytest.mark.parametrize("page", ["docs/worst_case.md", "results/README.md"])
def test_the_committed_page_is_what_the_rows_say(page: str) -> None:
    assert fill_pages(ROOT)[ROOT / page] == (ROOT / page).read_text()
