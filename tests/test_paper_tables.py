"""Tables III to VIII from rows with known numbers: ours beside the paper's, noise, seeds, and commands in empty cells."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import made_up_rows as made
import pytest
from conftest import ROOT

from common.errors import UserError
from common.report.cost_tables import TABLES
from common.report.editions import Edition, Measurement, Selection, is_noise, measure_over_seeds, read_folder, select_editions
from common.report.paper import PAPER_DEFENSES, paper_numbers
from common.report.publish import publish, text_files
from common.report.row_metrics import best_auc, binomial_half_width
from common.report.table_latex import latex, latex_escape
from common.report.tables import PaperTable, csv_text, markdown

PAPER = paper_numbers(ROOT)


def edition_of(root: Path, *rows: made.Row, **selection: tuple[str, ...]) -> Edition:
    (edition,) = select_editions(read_folder(made.write_rows(root, *rows)), Selection(**selection))
    return edition


def cells(table: PaperTable, *heads: str) -> dict[str, str]:
    """The texts of one line, by `group, column`."""
    (line,) = [one for one in table.lines if one.heads == heads]
    return {", ".join(filter(None, column)): table.text(cell) for column, cell in line.cells.items()}


def four(defense: str, aucs: tuple[float, float, float, float], **more: object) -> list[made.Row]:
    """Rows without Diffence and in scenarios 1, 2 and 3."""
    return [
        made.evaluation(defense=defense, scenario=one, auc=auc, **more)  # type: ignore[arg-type]
        for one, auc in zip((None, "1", "2", "3"), aucs, strict=True)
    ]


# the rule of noise, and numbers over seeds


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        (Measurement(0.70, None, 0.02, (0,)), Measurement(0.719, None, 0.01, (0,)), True),  # within the wider one
        (Measurement(0.70, None, 0.02, (0,)), Measurement(0.721, None, 0.01, (0,)), False),
        (Measurement(0.70, 0.04, 0.02, (0, 1)), Measurement(0.73, 0.01, 0.01, (0, 1)), True),  # seeds differ by more
        (Measurement(0.70, None, None, (0,)), Measurement(0.70001, None, None, (0,)), False),  # nothing known of either
    ],
)
def test_a_difference_within_the_larger_uncertainty_is_noise(
    value: Measurement, reference: Measurement, expected: bool
) -> None:
    assert is_noise(value, reference) == expected
    assert is_noise(reference, value) == expected


def test_a_number_over_seeds_is_mean_and_sample_deviation(tmp_path: Path) -> None:
    """.70, .72 and .80: mean .74, deviation sqrt((16 + 4 + 36) / 2) / 100 = .0529."""
    rows = [made.evaluation(auc=auc, seed=seed) for seed, auc in enumerate((0.70, 0.72, 0.80))]
    edition = edition_of(tmp_path, *rows, made.evaluation(scenario="1", auc=0.70))
    found = measure_over_seeds(edition.find("evaluation", scenario=None), best_auc)
    assert found is not None
    assert (found.value, found.sd) == (pytest.approx(0.74), pytest.approx(0.05292, abs=1e-5))
    assert (found.half_width, found.seeds) == (pytest.approx(0.02), (0, 1, 2))
    shown = cells(TABLES["III"](edition, PAPER), "Undefended", "CIFAR-10")
    assert shown["without Diffence, AUC"] == "74.0 ± 5.3"
    assert shown["Diffence, scenario 1, AUC"] == "70.0≈"  # .04 from .74, within the deviation


def test_the_interval_of_an_accuracy() -> None:
    assert binomial_half_width(0.5, 400) == pytest.approx(1.959964 * 0.025)


# Table III


def test_table_3_has_ours_the_mean_and_the_papers(tmp_path: Path) -> None:
    rows = four("undefended", (0.80, 0.70, 0.72, 0.71)) + four("undefended", (0.90, 0.60, 0.64, 0.63), dataset="cifar100")
    rows += four("hamp", (0.85, 0.84, 0.70, 0.70), test_accuracy=0.73)
    table = TABLES["III"](edition_of(tmp_path, *rows), PAPER)
    assert cells(table, "Undefended", "CIFAR-10")["Diffence, scenario 1, AUC"] == "70.0"
    mean = cells(table, "Undefended", "mean of these 2")
    assert (mean["without Diffence, AUC"], mean["Diffence, scenario 3, AUC"]) == ("85.0", "67.0")
    hamp = cells(table, "HAMP", "CIFAR-10")
    assert (hamp["Δ acc."], hamp["Diffence, scenario 1, AUC"]) == ("-2.0", "84.0≈")
    paper = cells(table, "Undefended", "paper, mean of 3")  # the paper's Table III prints 79.14, 68.08 and 65.41
    assert paper["without Diffence, AUC"] == "79.1"
    assert (paper["Diffence, scenario 1, AUC"], paper["Diffence, scenario 1, ACC"]) == ("68.1", "65.4")
    assert cells(table, "AdvReg", "paper, mean of 3")["Δ acc."] == "-5.5"


def test_a_cell_without_a_row_names_the_command_that_makes_it(tmp_path: Path) -> None:
    rows = four("undefended", (0.80, 0.70, 0.72, 0.71)) + four("hamp", (0.80, 0.70, 0.72, 0.71))[:1]
    table = TABLES["III"](edition_of(tmp_path, *rows), PAPER)
    letter = cells(table, "HAMP", "CIFAR-10")["Diffence, scenario 2, AUC"]
    assert cells(table, "SELENA", "CIFAR-10")["Δ acc."] == letter
    assert cells(table, "HAMP", "CIFAR-10")["without Diffence, AUC"] == "80.0"
    (note,) = [note for note in table.footnotes() if note.startswith(letter)]
    missing = [name for name in PAPER_DEFENSES if name != "undefended"]
    assert f"`bash all-train-all.sh --datasets cifar10 --profile narrow --defenses {' '.join(missing)}`" in note
    absent = [note for note in table.footnotes() if "has no rows yet" in note]
    assert [note.split()[0] for note in absent] == ["CIFAR-100", "SVHN"]
    assert "--datasets svhn --profile paper" in absent[1]  # svhn/configs has no narrow.yaml


def test_a_row_with_another_setting_is_not_in_table_3(tmp_path: Path) -> None:
    rows = [made.evaluation(auc=0.80), made.evaluation(auc=0.99, overrides=("diffence.n=10",))]
    shown = cells(TABLES["III"](edition_of(tmp_path, *rows), PAPER), "Undefended", "CIFAR-10")
    assert shown["without Diffence, AUC"] == "80.0"


# the other tables


def test_table_4_takes_the_rows_of_n_10_and_t_50(tmp_path: Path) -> None:
    setting = {"dataset": "cifar100", "overrides": ("diffence.n=10", "diffence.t=50")}
    rows = [made.evaluation("cifar100", auc=0.99)]
    rows += [made.evaluation(auc=0.77, **setting), made.evaluation(scenario="3", auc=0.65, **setting)]  # type: ignore[arg-type]
    table = TABLES["IV"](edition_of(tmp_path, *rows), PAPER)
    shown = cells(table, "Undefended", "CIFAR-100")
    assert (shown["without Diffence, AUC"], shown["Diffence, scenario 3, AUC"], shown["test acc."]) == ("77.0", "65.0", "75.0")
    assert cells(table, "Undefended", "paper, HAMP's setting")["without Diffence, AUC"] == "70.8"
    assert cells(table, "RelaxLoss", "paper, RelaxLoss's setting")["Diffence, scenario 3, ACC"] == "57.7"
    assert any("--experiments table_iv" in command for command in table.commands)


def test_table_5_has_a_query_alone_and_in_a_batch(tmp_path: Path) -> None:
    rows = [made.overhead("cifar10", "undefended", 2.0), made.overhead("cifar10", "memguard", 70.0)]
    rows.append(made.overhead("cifar10", "your-own", 3.0))  # the paper's table has no such line, ours neither
    table = TABLES["V"](edition_of(tmp_path, *rows), PAPER)
    assert cells(table, "Undefended", "ours")["CIFAR-10, alone"] == "2.0"
    assert cells(table, "MemGuard", "ours")["CIFAR-10, in 100"] == "7.0"
    assert cells(table, "Diffence, scenario 1, one by one", "ours")["CIFAR-10, alone"] == "20.0"
    assert cells(table, "Diffence, scenario 1, all at once", "ours")["CIFAR-10, in 100"] == "4.0"
    assert cells(table, "Diffence", "paper")["CIFAR-10, alone"] == "82"
    assert cells(table, "MemGuard", "paper")["SVHN, alone"] == "586"


def test_table_6_takes_the_row_with_the_most_images(tmp_path: Path) -> None:
    rows = [made.label_only("cifar10", "hamp", None, 0.99), made.label_only("cifar10", "hamp", None, 0.70, images=100)]
    rows.append(made.label_only("cifar10", "hamp", "1", 0.71, images=100))
    table = TABLES["VI"](edition_of(tmp_path, *rows), PAPER)
    shown = cells(table, "HAMP", "CIFAR-10")
    assert (shown["without Diffence, boundary AUC"], shown["with Diffence, boundary AUC"]) == ("70.0", "71.0≈")
    assert cells(table, "HAMP", "paper, CIFAR-10")["without Diffence, boundary AUC"] == "69.5"


def test_table_7_takes_the_rows_of_the_stronger_diffusion_model(tmp_path: Path) -> None:
    stronger = ("ddpm.name=stronger", "ddpm.steps=4000")
    rows = [made.evaluation(auc=0.99), made.evaluation(auc=0.77, overrides=stronger)]
    rows.append(made.evaluation(scenario="average", auc=0.65, test_accuracy=0.79, overrides=stronger))
    table = TABLES["VII"](edition_of(tmp_path, *rows), PAPER)
    shown = cells(table, "Undefended", "CIFAR-10")
    assert (shown["without Diffence, AUC"], shown["Diffence, average, AUC"]) == ("77.0", "65.0")
    assert (shown["without Diffence, test acc."], shown["Diffence, average, test acc."]) == ("75.0", "79.0")
    assert cells(table, "Undefended", "paper, CIFAR-10")["Diffence, average, test acc."] == "83.2"


def test_table_8_is_in_hours(tmp_path: Path) -> None:
    rows = [made.training_cost("cifar10", "undefended", 0.5), made.training_cost("cifar10", "selena", 2.25)]
    table = TABLES["VIII"](edition_of(tmp_path, *rows), PAPER)
    assert cells(table, "SELENA", "ours")["CIFAR-10"] == "2.25"
    assert cells(table, "SELENA", "paper")["CIFAR-100"] == "11.9"
    assert cells(table, "Diffusion model", "ours")["CIFAR-10"] == "0.25"


@pytest.mark.parametrize("name", ["IV", "V", "VI", "VII", "VIII"])
def test_a_table_without_rows_names_the_command(tmp_path: Path, name: str) -> None:
    table = TABLES[name](edition_of(tmp_path, made.evaluation()), PAPER)
    assert not table.lines
    assert re.search(r"`(bash|for) .*cifar10.*`", table.missing)
    assert table.missing in markdown(table)


# Markdown, CSV and LaTeX


def test_the_csv_rounds_nothing_and_tells_ours_from_the_papers(tmp_path: Path) -> None:
    rows = four("undefended", (0.80123456, 0.70, 0.72, 0.71))
    table = TABLES["III"](edition_of(tmp_path, *rows), PAPER)
    lines = list(csv.DictReader(io.StringIO(csv_text(table, "narrow-clean"))))
    wanted = {"defense": "Undefended", "group": "without Diffence", "column": "AUC"}
    ours, paper = [line for line in lines if wanted.items() <= line.items()]
    assert (float(ours["value"]), float(ours["ci95_half_width"]), ours["seeds"]) == (80.123456, pytest.approx(2), "0")
    assert (ours["from"], paper["from"], float(paper["value"])) == ("ours", "paper", 79.14)
    missing = [line for line in lines if line["defense"] == "SELENA" and line["from"] == "ours"]
    assert all(line["value"] == "" and line["command"].startswith("bash all-train-all.sh") for line in missing)


def test_latex_escapes_what_it_must() -> None:
    assert latex_escape("50% & a_b ± ≈") == r"50\% \& a\_b $\pm$ $\approx$"
    assert latex_escape("see `python x/y.py --a_b`") == r"see \texttt{python x/\allowbreak{}y.py -{}-a\_\allowbreak{}b}"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_of_every_table_compiles(tmp_path: Path) -> None:
    rows = [*four("undefended", (0.80, 0.79, 0.72, 0.71)), made.overhead("cifar10", "undefended", 2.0)]
    rows += [made.label_only("cifar10", "hamp", None, 0.70), made.training_cost("cifar10", "selena", 2.25)]
    rows += [made.evaluation(overrides=one) for one in (("diffence.n=10", "diffence.t=50"), ("ddpm.name=stronger",))]
    publication = publish(ROOT, made.write_rows(tmp_path, *rows), tables=list(TABLES))
    assert all(table.lines for group in publication.tables.values() for _, table in group)
    for name, text in text_files(publication).items():
        (tmp_path / name).write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout


@pytest.mark.parametrize("name", list(TABLES))
def test_every_line_of_latex_has_all_columns(tmp_path: Path, name: str) -> None:
    rows = [*four("undefended", (0.80, 0.79, 0.72, 0.71)), made.overhead("cifar10", "undefended", 2.0)]
    rows += [made.label_only("cifar10", "hamp", None, 0.70), made.training_cost("cifar10", "selena", 2.25)]
    rows += [made.evaluation(overrides=one) for one in (("diffence.n=10", "diffence.t=50"), ("ddpm.name=stronger",))]
    table = TABLES[name](edition_of(tmp_path, *rows), PAPER)
    body = latex(table, "profile narrow").split(r"\midrule")[1].split(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(table.lines)
    assert {line.count("&") for line in lines} == {len(table.head_names) + len(table.columns) - 1}


# choosing


def test_profiles_and_protocols_are_editions_the_nearest_to_the_paper_first(tmp_path: Path) -> None:
    rows = [made.evaluation(profile=profile) for profile in ("small", "narrow", "mine")]
    rows.append(made.evaluation(protocol="released"))
    editions = select_editions(read_folder(made.write_rows(tmp_path, *rows)), Selection())
    assert [edition.name for edition in editions] == ["narrow-clean", "narrow-released", "small-clean", "mine-clean"]


def test_a_selection_leaves_out_the_rest(tmp_path: Path) -> None:
    folder = made.write_rows(
        tmp_path, made.evaluation(), made.evaluation("cifar100", auc=0.9), made.evaluation(profile="small")
    )
    (edition,) = select_editions(read_folder(folder), Selection(datasets=("cifar100",)))
    assert (edition.datasets, len(edition.rows), edition.absent_datasets) == (["cifar100"], 1, [])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tables": ["II"]}, "unknown table 'II'. .*Known: III, IV, V, VI, VII, VIII."),
        ({"figures": ["2"]}, "unknown figure '2'. .*Known: 1, 3, 4, 5"),
        ({"selection": Selection(datasets=("mnist",))}, "unknown data set in the rows 'mnist'. Known: cifar10."),
        ({"selection": Selection(profiles=("narow",))}, "unknown profile in the rows 'narow'. Did you mean 'narrow'?"),
        ({"selection": Selection(protocols=("dirty",))}, "unknown protocol 'dirty'. Known: clean, released."),
        ({"selection": Selection(protocols=("released",))}, "holds no rows that --dataset, --profile and --protocol select"),
    ],
)
def test_unknown_names_are_refused_with_the_list(tmp_path: Path, arguments: dict[str, object], sentence: str) -> None:
    folder = made.write_rows(tmp_path, made.evaluation())
    with pytest.raises(UserError, match=sentence.replace("?", r"\?").replace("Known: cifar10.", "Known: cifar10")):
        publish(ROOT, folder, **arguments)  # type: ignore[arg-type]


# the committed files


def test_the_committed_tables_are_what_the_rows_say() -> None:
    for name, text in text_files(publish(ROOT, ROOT / "results")).items():
        assert (ROOT / "results" / "paper" / name).read_text() == text, "run: python -m common.report"
