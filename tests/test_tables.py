"""README's tables come from the committed rows by common.report, beside the paper's, and as means where there are seeds."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.attacks import ATTACKS, Scores
from common.attacks.shadow import SHADOW_ATTACKS
from common.config import Attack, Config
from common.errors import UserError
from common.pair import Pair
from common.report import collect, pages
from common.report import rows as report
from common.report.load import by_setting, read_rows
from common.report.measure import measure
from common.report.paper import PAPER_DEFENSES, paper_lines, paper_table
from common.report.results_page import experiment_tables, results_page

ROOT = Path(__file__).parents[1]


def row_of(defense: str = "undefended", scenario: str | None = None, seed: int = 0, accuracy: float = 0.5) -> dict[str, Any]:
    """A row whose attacks have AUC .75 (seed 0) or .875 (seed 1) and whose null has .5, with the rest made up."""
    points, chance = Pair(np.array([1.0 + seed, 3.0]), np.array([0.0, 2.0])), Pair(*[np.array([0.0, 1.0])] * 2)
    scores, null = Scores(points, points), Scores(chance, chance)
    facts = {
        "scenario": scenario,
        "no_match": {"members": 7, "non_members": 23},
        "draws": {"members": 6.0, "non_members": 7.0},
        "labels_changed": {"members": 0, "non_members": 0},
        "n": 30,
        "t": 160,
    }
    return {
        "kind": "evaluation",
        "dataset": "cifar10",
        "profile": "small",
        "protocol": "clean",
        "defense": defense,
        "seed": seed,
        "overrides": [],
        "accuracy": {"members": 1.0, "non_members": accuracy},
        "scored": {"members": 2, "non_members": 2},
        "utility": {"accuracy": accuracy, "label_agreement": {"members": 1.0, "non_members": 1.0}, "ece": 0.25, "nll": 1.5},
        "diffence": None if scenario is None else facts,
        "commit": "0123456789ab",
        "torch": "2",
        "device": "cpu",
        "config": Config().as_dict(),
    } | measure(dict.fromkeys(ATTACKS, scores), dict.fromkeys(ATTACKS, null), "clean", Attack())


def cells(markdown: str, *names: str) -> dict[str, str]:
    """The cells of the first line that begins with `names`, by their column's head."""
    table = [[cell.strip() for cell in line.strip("| ").split("|")] for line in markdown.splitlines() if line.startswith("|")]
    head: list[str] = []
    for before, line in pairwise(table):
        if set("".join(line)) <= set(":-"):
            head = before
        elif tuple(line[: len(names)]) == names:
            return dict(zip(head, line, strict=True))
    raise AssertionError(f"no line {names} in\n{markdown}")


def write_rows(root: Path, *rows: dict[str, Any]) -> None:
    for row in rows:
        path = root / "results" / row["dataset"] / report.setting(row) / f"{report.result_name(row)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
    shutil.copy(ROOT / "results" / "paper.csv", root / "results")
    shutil.copy(ROOT / "results" / "benchmark_reconstruction.json", root / "results")


# the committed rows


def test_readme_is_what_the_rows_say() -> None:
    for path, text in pages.fill_pages(ROOT).items():
        assert path.read_text() == text, "run: python -m common.report"


# what a table says of a row


def test_the_privacy_table() -> None:
    """AUC .75 of 2 + 2 points: variance 1/8 (test_uncertainty), so the interval is [.057, 1]; TPR is 1 of 2 at FPR 0."""
    shown = cells(report.as_markdown(report.privacy_table([row_of()])), "undefended", "without")
    assert shown["test acc %"] == "50.0"
    assert shown["best AUC [95%]"] == "0.750 [0.057, 1.000]"
    assert (shown["best ACC"], shown["oracle ACC"]) == ("0.750", "0.750")
    assert shown["TPR @0.1%FPR"] == "50.0% (1/2)"
    assert (shown["nn"], shown["m-entropy"], shown["entropy"], shown["loss"]) == ("0.750",) * 4
    assert (shown["gap floor"], shown["null AUC"]) == ("0.750", "0.500")
    assert not {"confidence", "correctness", "per-class ACC"} & set(shown)


def test_further_attacks_get_a_column_and_rows_without_them_a_dash() -> None:
    more = row_of("hamp")
    more["attacks"]["lira-offline"] = more["attacks"]["loss"]
    markdown = report.as_markdown(report.privacy_table([row_of(), more]))
    assert cells(markdown, "undefended")["lira-offline"] == "-"
    assert cells(markdown, "hamp")["lira-offline"] == "0.750"


def test_the_utility_table_has_accuracy_against_undefended() -> None:
    rows = [row_of(accuracy=0.535), row_of("selena", "1", accuracy=0.515)]
    markdown = report.as_markdown(report.utility_table(rows))
    assert cells(markdown, "undefended", "without")["delta acc"] == "+0.0"
    shown = cells(markdown, "selena", "scenario 1")
    assert (shown["delta acc"], shown["labels changed"], shown["ECE"], shown["NLL"]) == ("-2.0", "0", "0.250", "1.500")
    assert (shown["no match (mem./non)"], shown["draws"]) == ("7 / 23", "6.5")
    assert cells(report.as_markdown(report.utility_table(rows[1:])), "selena")["delta acc"] == "-"


def test_warnings_stand_once_under_the_tables_and_in_the_text() -> None:
    markdown = report.tables_markdown([row_of(), row_of("hamp")])
    assert markdown.count("Warning: TPR at 0.1% FPR: 2 non-members are too few") == 1
    enough = row_of() | {"warnings": []}
    assert "Warning" not in report.tables_markdown([enough])


# README


def test_changed_rows_change_the_readme(tmp_path: Path) -> None:
    write_rows(tmp_path, row_of())
    before = pages.headline_table(read_rows(tmp_path), paper_lines(tmp_path))
    write_rows(tmp_path, row_of() | {"gap_floor": 0.123456})
    after = pages.headline_table(read_rows(tmp_path), paper_lines(tmp_path))
    assert "| 0.123 " in after
    assert before.replace("0.750", "0.123").count("0.123") == after.replace("0.750", "0.123").count("0.123")
    assert after != before


def test_the_headlines(tmp_path: Path) -> None:
    """A line a defense: AUC .75 beside the paper's; of settings with --set only those that add shadow models."""
    more = row_of("hamp") | {"overrides": ["attack.shadows=4"]}
    more["config"]["attack"]["shadows"] = 4
    more["attacks"] |= dict.fromkeys(SHADOW_ATTACKS, more["attacks"]["loss"])
    more["null"]["attacks"] |= {"rmia-online": {"auc": 0.25}}
    other = row_of("advreg") | {"overrides": ["diffence.n=5"]}
    write_rows(tmp_path, row_of(), row_of("undefended", "3"), row_of("dpsgd-private"), row_of("selena", seed=1), more, other)
    text = pages.auc_tables(read_rows(tmp_path), paper_lines(tmp_path))
    shown = cells(text, "undefended")
    assert (shown["without"], shown["scenario 3"]) == ("0.750 / 0.791", "0.750 / 0.691")
    assert (shown["test acc %"], shown["gap floor"], shown["null AUC"]) == ("50.0", "0.750", "0.500 .. 0.500")
    assert (cells(text, "dpsgd-private")["without"], cells(text, "dpsgd-private")["scenario 3"]) == ("0.750", "-")
    shadowed = cells(text, "hamp", "without")
    assert "(TPR at 0.1% FPR) with 4 shadow models" in text
    assert (shadowed["best of five"], shadowed["lira-offline"]) == ("0.750 (50.0%)",) * 2
    assert shadowed["null AUC"] == "0.250 .. 0.500"
    assert text.count("Warning: TPR at 0.1% FPR: 2 non-members are too few") == 1  # below the TPRs
    assert "advreg" not in text and "selena" not in text


def test_the_papers_table_stands_beside_ours(tmp_path: Path) -> None:
    write_rows(tmp_path, row_of(), row_of("selena", "1", accuracy=0.48), row_of("selena", "average"), row_of("dpsgd-private"))
    text = results_page(read_rows(tmp_path), paper_lines(tmp_path))
    beside = text[text.index("beside the paper's Table III") :]
    assert "Sizes differ" in beside
    assert cells(beside, "undefended", "without")["paper: best AUC"] == "0.791"
    shown = cells(beside, "selena", "scenario 1")
    assert (shown["delta acc"], shown["paper: delta acc"]) == ("-2.0", "-2.1")
    assert (shown["best AUC"], shown["paper: best AUC"]) == ("0.750", "0.560")
    assert (shown["best ACC"], shown["paper: best ACC"]) == ("0.750", "0.552")
    assert "average |" not in beside and "dpsgd-private" not in beside
    write_rows(tmp_path / "other", row_of() | {"dataset": "svhn"}, row_of() | {"overrides": ["diffence.n=5"]})
    assert "Table III" not in results_page(read_rows(tmp_path / "other"), paper_lines(ROOT))


def test_the_papers_numbers_are_all_there() -> None:
    """Against Table III by its row sums, which a slip of one number would change."""
    paper = paper_table(ROOT)
    assert paper["defense"].drop_duplicates().tolist() == list(PAPER_DEFENSES)
    assert paper["scenario"].tolist() == ["without", "scenario 1", "scenario 2", "scenario 3"] * 7
    sums = paper.groupby("defense", sort=False)[["auc", "accuracy"]].sum().round(2)
    assert sums["auc"].tolist() == [287.13, 236.33, 242.69, 286.97, 281.1, 227.08, 271.0]
    assert sums["accuracy"].tolist() == [277.28, 231.89, 233.82, 274.1, 270.79, 224.86, 263.49]


def test_rows_of_several_seeds_become_a_mean_and_a_deviation(tmp_path: Path) -> None:
    """AUC .75 and .875 (sd .088), accuracy 50% and 54% (sd 2.8). One seed, or another configuration, is no second."""
    other = row_of("hamp", seed=1)
    other["config"]["attack"]["fpr"] = 0.01
    write_rows(tmp_path, row_of(), row_of(seed=1, accuracy=0.54), row_of("selena"), row_of("hamp"), other)
    text = results_page(read_rows(tmp_path), paper_lines(tmp_path))
    over = text[text.index("over seeds") :]
    shown = cells(over, "undefended", "without")
    assert shown["seeds"] == "0, 1"
    assert (shown["best AUC"], shown["test acc %"]) == ("0.812 ± 0.088", "52.0 ± 2.8")
    assert "selena" not in over and "hamp" not in over
    assert cells(text, "selena")["best AUC [95%]"].startswith("0.750")


def test_differences_over_seeds_have_an_interval(tmp_path: Path) -> None:
    """HAMP is .05 above the undefended classifier of seed 0 and .1 below that of seed 1; Student's quantile is 12.706."""
    rows = [
        row_of(),
        row_of(seed=1),
        row_of("hamp"),
        row_of("hamp", seed=1),
        row_of("selena", seed=1),
        row_of("selena", seed=2),
    ]
    for row, auc in zip(rows, (0.7, 0.8, 0.75, 0.7, 0.6, 0.6), strict=True):
        row["best"]["auc"] = auc
    write_rows(tmp_path, *rows)
    text = results_page(read_rows(tmp_path), paper_lines(tmp_path))
    over, column = text[text.index("over seeds") :], "minus undefended [95%]"
    assert cells(over, "hamp")[column] == "-0.025 [-0.978, +0.928]"
    assert cells(over, "undefended")[column] == cells(over, "selena")[column] == "-"  # selena shares one seed


def test_the_order_is_the_papers_and_other_experiments_stay_out(tmp_path: Path) -> None:
    write_rows(tmp_path, *(row_of(name) for name in ("zebra", "advreg", "selena", "undefended")), row_of("selena", "2"))
    other = row_of("hamp") | {"kind": "repeated_queries", "runs": []}
    (tmp_path / "results" / "cifar10" / "small-clean-seed0" / "attack_diffence-hamp.json").write_text(json.dumps(other))
    (rows,) = by_setting(read_rows(tmp_path)).values()
    assert [report.result_name(row) for row in rows] == [
        "undefended",
        "selena",
        "selena_w_Diffence_scenario2",
        "advreg",
        "zebra",
    ]


def test_label_only_rows_get_a_table_of_their_own(tmp_path: Path) -> None:
    row = row_of() | {"kind": "label_only"}
    del row["best"]
    row["attacks"] = dict.fromkeys(("correctness", "boundary"), row["attacks"]["loss"])
    row["null"] = {"attacks": dict.fromkeys(row["attacks"], row["null"]["attacks"]["loss"])}
    row |= {
        "correctness": {"asked_an_image": 1},
        "boundary": {"asked_an_image": 6600.4, "failed": {"members": 2, "non_members": 1}},
    }
    folder = tmp_path / "results" / "cifar10" / "small-clean-seed0"
    folder.mkdir(parents=True)
    (folder / "label_only-undefended.json").write_text(json.dumps(row))
    assert by_setting(read_rows(tmp_path)) == {}
    (text,) = experiment_tables(read_rows(tmp_path))
    assert text.startswith(
        "**label-only attacks: cifar10, small, clean, seed0, undefended**: scored 2 + 2; commit 0123456789ab."
    )
    shown = cells(text, "boundary")
    assert (shown["AUC"], shown["null AUC"], shown["labels an image"], shown["failed"]) == ("0.750", "0.500", "6,600", "3")
    assert cells(text, "correctness")["failed"] == "-"


def test_rows_from_uncommitted_code_and_lost_markers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "ROOT", tmp_path)
    made = tmp_path / "cifar10" / "evaluate_MIAs" / "results"
    made.mkdir(parents=True)
    (made / "undefended.json").write_text(json.dumps(row_of() | {"commit": "0123456789ab+changes"}))
    with pytest.raises(UserError, match="uncommitted"):
        collect.collect("cifar10")
    (made / "undefended.json").write_text(json.dumps(row_of()))
    (made / "undefended_phi.png").write_bytes(b"a picture")
    (copied,) = collect.collect("cifar10")
    assert copied.is_file() and (copied.parent / "undefended_phi.png").read_bytes() == b"a picture"
    (made / "hamp_grid.csv").write_text("dataset,profile,seed,commit\ncifar10,small,0,12345e789012\n")
    (made / "hamp_grid.png").write_bytes(b"a picture")
    collect.collect("cifar10")
    grid = tmp_path / "results" / "cifar10" / "small-clean-seed0" / "hamp_grid.csv"
    assert grid.read_text() == (made / "hamp_grid.csv").read_text() and grid.with_suffix(".png").is_file()
    (made / "hamp_grid.csv").write_text("dataset,profile,seed,commit\ncifar10,small,0,12345e789012+changes\n")
    with pytest.raises(UserError, match=r"hamp_grid\.csv was made from uncommitted code"):
        collect.collect("cifar10")
    with pytest.raises(UserError, match=r"page\.md lacks its marks"):
        pages.fill("no marks", "tables", "a table", "page.md")
