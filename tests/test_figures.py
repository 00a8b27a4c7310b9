"""The paper's figures from rows with known numbers: what is drawn, how, and what is said where nothing can be drawn."""

import shutil
from pathlib import Path

import made_up_rows as made
import numpy as np
import pytest
from conftest import ROOT, planted
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from common.attacks import Outputs
from common.attacks.metric import entropy, loss
from common.metrics.privacy import phi
from common.report import ablations, bars, distributions, figures, style, trade_offs
from common.report.editions import Edition, Selection, StoredRow, read_folder, select_editions
from common.report.paper import paper_numbers
from common.report.paper_figures import PaperFigure
from common.report.publish import FIGURES, draw_files, publish

PAPER = paper_numbers(ROOT)
SHADOWS = ("attack.shadows=16",)


def edition_of(root: Path, *rows: made.Row) -> Edition:
    (edition,) = select_editions(read_folder(made.write_rows(root, *rows)), Selection())
    return edition


def drawn(figure: PaperFigure) -> Figure:
    assert figure.drawing is not None, figure.missing
    return figure.drawing


def numbers(figure: PaperFigure) -> dict[tuple[str, ...], list[str]]:
    """The texts of the cells beside a figure, by the heads of the line."""
    assert figure.numbers is not None
    return {line.heads: [figure.numbers.text(cell) for cell in line.cells.values()] for line in figure.numbers.lines}


def scenarios(defense: str, *aucs: float, **more: object) -> list[made.Row]:
    return [
        made.evaluation(defense=defense, scenario=one, auc=auc, **more)  # type: ignore[arg-type]
        for one, auc in zip((None, "1", "2", "3"), aucs, strict=False)
    ]


# style: the same thing looks the same everywhere


def test_things_are_told_apart_by_more_than_colour() -> None:
    scenario_styles = list(style.DIFFENCE_STYLES.values())
    for key in ("color", "hatch", "linestyle"):
        assert len({str(one[key]) for one in scenario_styles}) == len(scenario_styles), key
    assert len(set(style.DEFENSE_MARKERS.values())) == len(style.DEFENSE_TITLES)
    assert len({(one["color"], str(one["linestyle"])) for one in style.ATTACK_STYLES.values()}) == len(style.ATTACK_TITLES)


def test_scenarios_and_sides_differ_in_grey() -> None:
    """Luminance (Rec. 709) of members and non-members; the scenarios have hatches besides."""

    def luminance(color: str) -> float:
        red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    members, non_members = (one["color"] for one in style.MEMBER_STYLES.values())
    assert abs(luminance(members) - luminance(non_members)) > 0.3


def test_no_text_is_smaller_than_7_points() -> None:
    assert (
        min(value for key, value in style.SETTINGS.items() if key.endswith(("size", "fontsize")) and "marker" not in key) >= 7
    )


def test_pictures_of_an_evaluation_have_titles_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn_figures = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn_figures.append(figure))
    outputs = planted(50, 2.0, seed=0)
    figures.draw_reliability(tmp_path / "r.png", "CIFAR-10, HAMP", {None: outputs, "2": outputs})
    (figure,) = drawn_figures
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == ["without Diffence", "Diffence, scenario 2"]
    colors = [axis.patches[0].get_facecolor()[:3] for axis in figure.axes]
    assert colors == [to_rgb(style.DIFFENCE_STYLES[scenario]["color"]) for scenario in (None, "2")]


# Figures 1, 3 and 4


def test_predictions_come_back_from_scores(tmp_path: Path) -> None:
    """Confidence, entropy and phi of correctly classified images are those of their logits, through the stored file."""
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 3, (50, 10)) for _ in range(2)]
    outputs = [Outputs(one, np.where(np.arange(50) % 3, one.argmax(1), (one.argmax(1) + 1) % 10)) for one in logits]
    folder = made.write_rows(tmp_path, made.evaluation())
    (stored,) = read_folder(folder)
    arrays = {}
    for name, attack in (("loss", loss), ("entropy", entropy), ("correctness", lambda one: np.arange(50) % 3 > 0)):
        arrays[name] = np.concatenate([attack(one) for one in outputs]).astype(np.float32)
        arrays[f"{name} members"] = np.array(50)
    np.savez_compressed(stored.path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    predictions = distributions.correct_predictions(stored)
    assert predictions is not None
    for side, one in zip(("members", "non_members"), outputs, strict=True):
        right = np.arange(50) % 3 > 0
        assert getattr(predictions.phi, side) == pytest.approx(phi(one.logits[right]), abs=1e-4)
        assert getattr(predictions.confidence, side) == pytest.approx(one.probabilities.max(1)[right], rel=1e-5)
        expected = -(one.probabilities * np.log(one.probabilities)).sum(1)[right]
        assert getattr(predictions.entropy, side) == pytest.approx(expected, abs=1e-5)


def with_scores(tmp_path: Path, *rows: made.Row) -> Edition:
    folder = made.write_rows(tmp_path, *rows)
    for i, path in enumerate(sorted(folder.rglob("*.json"))):
        made.write_scores(path, 5.0 if i == 0 else 0.0)
    return select_editions(read_folder(folder), Selection())[0]


def test_figures_3_and_4_are_histograms_with_the_interval(tmp_path: Path) -> None:
    edition = with_scores(tmp_path, *scenarios("undefended", 0.8, 0.7, 0.7, 0.7))
    third, fourth = (drawn(build(edition, PAPER)) for build in (distributions.figure_3, distributions.figure_4))
    assert [axis.get_xlabel() for axis in third.axes] == ["confidence", "entropy (nats)", style.PHI_FORMULA]
    assert [axis.get_title() for axis in fourth.axes] == list(style.DIFFENCE_TITLES.values())[:4]
    assert [len(axis.lines) for axis in fourth.axes] == [0, 2, 2, 2]  # the ends of the interval
    assert third.axes[0].get_legend_handles_labels()[1] == ["members", "non-members"]


def test_figure_3_needs_scores(tmp_path: Path) -> None:
    figure = distributions.figure_3(edition_of(tmp_path, made.evaluation()), PAPER)
    assert figure.drawing is None
    assert "`bash all-train-all.sh --datasets cifar10 --profile narrow --defenses undefended`" in figure.missing


def test_figure_1_shows_the_picture_of_reconstructions(tmp_path: Path) -> None:
    edition = edition_of(tmp_path, made.evaluation())
    source = ROOT / "results" / "cifar10" / "narrow-clean-seed0" / "reconstructions.png"
    shutil.copy(source, edition.rows[0].path.parent)
    left, right = drawn(distributions.figure_1(edition, PAPER)).axes
    assert (left.get_title(), right.get_title()) == ("CIFAR-10, members", "CIFAR-10, non-members")
    width = imread(source).shape[1]
    assert left.images[0].get_size()[1] == pytest.approx(5 / 16 * width, abs=4)


def test_figure_1_finds_the_picture_of_a_run_that_was_not_collected(tmp_path: Path) -> None:
    path = tmp_path / "cifar10" / "evaluate_MIAs" / "results" / "narrow" / "undefended.json"
    model = tmp_path / "cifar10" / "diff_defense" / "diff_models" / "narrow" / "seed0"
    model.mkdir(parents=True)
    edition = Edition("narrow", "clean", [StoredRow(made.evaluation(), path)])
    assert distributions.figure_1(edition, PAPER).drawing is None
    shutil.copy(ROOT / "results" / "cifar10" / "narrow-clean-seed0" / "reconstructions.png", model)
    assert distributions.figure_1(edition, PAPER).drawing is not None


# Figures 5, 6, 7 and 12


def test_figure_5_goes_from_without_to_scenario_1_beside_the_paper(tmp_path: Path) -> None:
    rows = scenarios("undefended", 0.80, 0.64) + scenarios("hamp", 0.90, 0.72, test_accuracy=0.73)
    figure = trade_offs.figure_5(edition_of(tmp_path, *rows), PAPER)
    ours, theirs, *_ = drawn(figure).axes
    assert (ours.get_title(), theirs.get_title()) == ("CIFAR-10", "paper, mean of 3 data sets")
    line = ours.lines[3]  # after the line and the two markers of the undefended classifier
    assert np.allclose(line.get_xydata(), [[-2, 90], [-2, 72]])
    assert len(theirs.lines) == 3 * 7
    assert np.allclose(theirs.lines[0].get_xydata(), [[0, 79.14], [0, 68.08]])
    assert numbers(figure)["Undefended", "CIFAR-10"] == ["20.0", "0.0≈"]
    assert numbers(figure)["HAMP", "paper, mean of 3"] == ["14.4", "14.4"]


def test_figure_8_is_of_faces_in_scenario_3(tmp_path: Path) -> None:
    rows = scenarios("undefended", 0.80, 0.79, 0.79, 0.60, dataset="celeba") + scenarios("undefended", 0.80, 0.70)
    edition = edition_of(tmp_path, *rows)
    figure = trade_offs.figure_8(edition, PAPER)
    assert [axis.get_title() for axis in drawn(figure).axes] == ["CelebA", ""]
    assert numbers(figure) == {("CelebA", "ours"): ["25.0", "0.0"], ("CelebA", "paper"): ["6.2", "6.0"]}
    fifth = drawn(trade_offs.figure_5(edition, PAPER))
    assert [axis.get_title() for axis in fifth.axes[:2]] == ["CIFAR-10", "paper, mean of 3 data sets"]


def test_figure_6_has_a_bar_for_each_scenario_and_defense(tmp_path: Path) -> None:
    hamp = made.evaluation(defense="hamp")
    hamp["utility"]["ece"] = 0.28
    figure = bars.figure_6(edition_of(tmp_path, *scenarios("undefended", 0.8, 0.7, 0.7, 0.7), hamp), PAPER)
    (axis,) = drawn(figure).axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["Undefended", *list(style.DIFFENCE_TITLES.values())[1:4], "HAMP"]
    assert [patch.get_width() for patch in axis.patches] == pytest.approx([0.14] * 4 + [0.28])  # type: ignore[attr-defined]
    assert [line.get_xdata()[0] for line in axis.lines] == [0.139, 0.142, 0.126, 0.131]  # type: ignore[index]
    assert numbers(figure)[("CIFAR-10",)] == ["0.140", "0.140", "0.140", "0.140", "100.0"]


def test_figure_7_takes_the_best_attack_of_rows_with_shadow_models(tmp_path: Path) -> None:
    without, protected = (made.evaluation(scenario=one, overrides=SHADOWS) for one in (None, "3"))
    without["attacks"]["lira-online"]["tpr_at_fpr"] = made.RATE | {"rate": 0.08, "interval": [0.07, 0.09]}
    figure = bars.figure_7(edition_of(tmp_path, without, protected), PAPER)
    tpr, _ = drawn(figure).axes
    assert [patch.get_width() for patch in tpr.patches] == pytest.approx([8.0, 2.0])  # type: ignore[attr-defined]
    assert numbers(figure)["Undefended", "CIFAR-10"] == ["75.0", "0.0≈"]
    assert numbers(figure)["Undefended", "paper, SVHN"] == ["63.9", "56.8"]
    assert "--experiments lira" in bars.figure_7(edition_of(tmp_path / "b", made.evaluation()), PAPER).missing


def test_figure_12_has_a_panel_for_each_architecture(tmp_path: Path) -> None:
    rows = [made.evaluation(auc=0.99)]
    for model in ("vgg16", "vit"):
        rows += scenarios("undefended", 0.80, 0.60, overrides=(f"model.name={model}", "train.lr=0.0001"))
    figure = trade_offs.figure_12(edition_of(tmp_path, *rows), PAPER)
    assert [axis.get_title() for axis in drawn(figure).axes[:2]] == ["VGG16, CIFAR-10", "ViT, CIFAR-10"]
    assert numbers(figure)["VGG16", "CIFAR-10", "1"] == ["25.0", "0.0"]
    assert numbers(figure)["ViT", "paper, CIFAR-10", "6"] == ["7.7", "6.6"]


# Figures 9 to 11


def test_figures_9_and_10_take_the_row_nearest_to_the_papers_setting(tmp_path: Path) -> None:
    rows = [made.intervals("cifar10", *one) for one in ((30, 160), (50, 40), (30, 100))]
    edition = edition_of(tmp_path, *rows, made.evaluation())
    ninth, tenth = ablations.figure_9(edition, PAPER), ablations.figure_10(edition, PAPER)
    assert drawn(ninth).axes[0].get_title() == "CIFAR-10, N = 50, T = 40"
    assert drawn(tenth).axes[0].get_title() == "CIFAR-10, T = 100"
    assert np.allclose(drawn(ninth).axes[0].lines[0].get_xydata()[0], [0.01, 61])  # type: ignore[index]
    assert drawn(tenth).axes[0].lines[0].get_ydata()[-1] == pytest.approx(90)  # type: ignore[index]
    assert numbers(ninth)["CIFAR-10", "50", "40"] == ["0.71"]


def test_figure_11_has_a_line_for_each_n_and_the_corners_in_numbers(tmp_path: Path) -> None:
    figure = ablations.figure_11(edition_of(tmp_path, made.n_and_t("cifar10"), made.evaluation()), PAPER)
    auc = drawn(figure).axes[0]
    assert np.allclose(auc.lines[1].get_xydata(), [[40, 83], [160, 71]])
    assert auc.get_legend_handles_labels()[1] == ["N = 2", "N = 30", "without Diffence", "gap attack"]
    assert numbers(figure)["CIFAR-10", "Diffence, scenario 3", "2..30", "40..160"] == ["90.0", "85.8", "73.8", "83.0", "71.0"]


# files, and figures that cannot be drawn


def test_pictures_are_as_wide_as_a_column_and_the_same_every_time(tmp_path: Path) -> None:
    folder = made.write_rows(tmp_path, made.evaluation(), made.intervals("cifar10", 30, 160))
    contents = []
    for out in ("a", "b"):
        files = draw_files(publish(ROOT, folder, figures=["10"]), tmp_path / out)
        assert set(files) == {"10"}
        contents.append([path.read_bytes() + path.with_suffix(".pdf").read_bytes() for path in files.values()])
        assert {imread(path).shape[1] for path in files.values()} == {round(style.COLUMN * 200)}
    assert contents[0] == contents[1]


@pytest.mark.parametrize("number", list(FIGURES))
def test_a_figure_without_rows_says_what_is_missing(tmp_path: Path, number: str) -> None:
    figure = FIGURES[number](edition_of(tmp_path, made.label_only("cifar10", "hamp", None, 0.7)), PAPER)
    assert (figure.number, figure.drawing) == (number, None)
    if number in ("8", "13", "14"):
        assert "could not be downloaded" in figure.missing
    elif number == "worst_case":
        assert "--experiments worst_case`" in figure.missing
    elif number == "frontier":
        assert "`python cifar10/evaluate_MIAs/frontier.py --profile narrow`" in figure.missing
    else:
        assert "`bash all-train-all.sh --datasets cifar10 --profile narrow" in figure.missing


def test_a_figure_comes_from_the_nearest_profile_that_can_draw_it(tmp_path: Path) -> None:
    small = [made.evaluation(scenario=one, profile="small", overrides=SHADOWS) for one in (None, "3")]
    publication = publish(ROOT, made.write_rows(tmp_path, *scenarios("undefended", 0.8, 0.7), *small), figures=["5", "7"])
    assert {number: edition.profile for number, (edition, _) in publication.figures.items()} == {"5": "narrow", "7": "small"}


def test_the_first_seed_is_drawn() -> None:
    rows = [StoredRow({"seed": seed}, Path()) for seed in (2, 0, 1)]
    first = distributions.first_seed(rows)
    assert first is not None and first.row["seed"] == 0
