"""Tables III, IV and VII of the paper, from evaluations: our lines of every data set, and the paper's line below them."""

from collections.abc import Sequence
from functools import partial

from common.report import row_metrics
from common.report.editions import PAPER_DATASETS, Edition, Measurement, Metric, StoredRow, has_values, measure_over_seeds
from common.report.paper import PAPER_DEFENSES, PaperNumbers
from common.report.paper_commands import absent_notes, evaluation_command, experiment_command
from common.report.style import DATASET_TITLES, DEFENSE_TITLES, title_of
from common.report.tables import NOISE_RULE, Cell, Column, Line, PaperTable, measured

PRINTED_SCENARIOS = {None: "without", "1": "scenario 1", "2": "scenario 2", "3": "scenario 3"}  # as in paper.csv
GROUPS: dict[str | None, str] = {
    None: "without Diffence",
    "1": "Diffence, scenario 1",
    "2": "Diffence, scenario 2",
    "3": "Diffence, scenario 3",
}
SIZES = "Sizes differ from the paper's, so compare directions, not values."


def paper_cell(value: float | None, digits: int = 1) -> Cell:
    """A number of the paper."""
    return Cell(value, digits=digits)


def accuracy_deltas(edition: Edition, dataset: str, defense: str) -> Measurement | None:
    """Test accuracy minus that of the undefended classifier of the same seed, 0..1, over the seeds that have both."""
    undefended = {
        stored.row["seed"]: stored.row["accuracy"]["non_members"]
        for stored in edition.find("evaluation", dataset=dataset, defense="undefended", scenario=None)
    }
    rows = edition.find("evaluation", dataset=dataset, defense=defense, scenario=None)
    paired = [stored for stored in rows if stored.row["seed"] in undefended]
    return measure_over_seeds(paired, lambda row: (row["accuracy"]["non_members"] - undefended[row["seed"]], None))


def mean_cell(cells: Sequence[Cell]) -> Cell:
    """The mean over data sets; it does not apply unless every data set has the number."""
    values = [cell.value for cell in cells if cell.value is not None]
    return Cell(sum(values) / len(values)) if len(values) == len(cells) else Cell()


def table_3(edition: Edition, paper: PaperNumbers) -> PaperTable:
    """Table III: accuracy against undefended, best attack AUC and accuracy, without Diffence and in each scenario."""
    metrics: dict[str, Metric] = {"AUC": row_metrics.best_auc, "ACC": row_metrics.best_accuracy}
    columns: list[Column] = [("", "Δ acc."), *((group, name) for group in GROUPS.values() for name in metrics)]
    defenses = [*PAPER_DEFENSES, *(name for name in edition.defenses() if name not in PAPER_DEFENSES)]
    lacking = {
        dataset: [
            defense
            for defense in PAPER_DEFENSES
            if any(not edition.find("evaluation", dataset=dataset, defense=defense, scenario=one) for one in GROUPS)
        ]
        for dataset in edition.datasets
    }
    lines = []
    for defense in defenses:
        ours: dict[str, dict[Column, Cell]] = {}
        for dataset in edition.datasets:
            command = evaluation_command(edition, dataset, defenses=lacking[dataset])
            rows = {one: edition.find("evaluation", dataset=dataset, defense=defense, scenario=one) for one in GROUPS}
            cells = {columns[0]: measured(accuracy_deltas(edition, dataset, defense), command)}
            cells |= protected_cells(rows, GROUPS, metrics, command)
            if defense in PAPER_DEFENSES or any(rows.values()):
                ours[dataset] = cells
        title = title_of(DEFENSE_TITLES, defense)
        lines += [Line((title, title_of(DATASET_TITLES, dataset)), cells) for dataset, cells in ours.items()]
        printed = [
            cells for dataset, cells in ours.items() if dataset in PAPER_DATASETS and cells[columns[1]].value is not None
        ]
        if len(printed) > 1:
            mean = {column: mean_cell([cells[column] for cells in printed]) for column in columns}
            lines.append(Line((title, f"mean of these {len(printed)}"), mean))
        if defense in PAPER_DEFENSES:
            lines.append(Line((title, "paper, mean of 3"), paper_line_3(paper, defense, columns), paper=True))
    return PaperTable(
        "Table III",
        "Accuracy against undefended (points), and AUC and accuracy of the best of five attacks (%), ResNet18",
        ("defense", "data set"),
        columns,
        lines,
        (
            NOISE_RULE,
            SIZES + " The paper's lines are means over CIFAR-10, CIFAR-100 and SVHN. Its attack accuracy is at the best "
            "thresholds of the scored points, ours at thresholds of the protocol.",
            *absent_notes(edition),
        ),
    )


def paper_line_3(paper: PaperNumbers, defense: str, columns: Sequence[Column]) -> dict[Column, Cell]:
    """The paper's numbers of a defense in Table III."""
    find = partial(paper.find, "Table III", defense=defense)
    cells = {columns[0]: paper_cell(find("accuracy_delta"))}
    for scenario, group in GROUPS.items():
        for name, metric in (("AUC", "auc"), ("ACC", "attack_accuracy")):
            cells[group, name] = paper_cell(find(metric, diffence=PRINTED_SCENARIOS[scenario], attack="best"))
    return cells


IV_OVERRIDES = ("diffence.n=10", "diffence.t=50")
IV_SETTINGS = ("selena", "relaxloss", "hamp")  # the three papers whose settings the table has


def table_4(edition: Edition, paper: PaperNumbers) -> PaperTable:
    """Table IV: CIFAR-100 with N = 10 and T = 50 in scenario 3."""
    title = "N = 10, T = 50, scenario 3: accuracy, and AUC and accuracy of the best of five attacks (%)"
    groups: dict[str | None, str] = {None: "without Diffence", "3": "Diffence, scenario 3"}
    metrics: dict[str, Metric] = {"AUC": row_metrics.best_auc, "ACC": row_metrics.best_accuracy}
    columns: list[Column] = [
        ("", "train acc."),
        ("", "test acc."),
        *((group, name) for group in groups.values() for name in metrics),
    ]
    rows = [one for one in edition.of_kind("evaluation") if sorted(one.row["overrides"]) == sorted(IV_OVERRIDES)]
    datasets = [dataset for dataset in edition.datasets if any(one.row["dataset"] == dataset for one in rows)]
    lines = []
    for defense in ("undefended", *IV_SETTINGS):
        head = title_of(DEFENSE_TITLES, defense)
        for dataset in datasets:
            found = {one: with_values(rows, dataset=dataset, defense=defense, scenario=one) for one in groups}
            command = experiment_command(edition, dataset, "table_iv")
            cells = {
                columns[0]: measured(measure_over_seeds(found[None], row_metrics.train_accuracy), command),
                columns[1]: measured(measure_over_seeds(found[None], row_metrics.test_accuracy), command),
            } | protected_cells(found, groups, metrics, command)
            lines.append(Line((head, title_of(DATASET_TITLES, dataset)), cells))
        for setting in IV_SETTINGS if defense == "undefended" else (defense,):
            find = partial(paper.find, "Table IV", dataset="cifar100", model=f"{setting}-setting", defense=defense)
            printed = {columns[0]: paper_cell(find("train_accuracy")), columns[1]: paper_cell(find("accuracy"))}
            for scenario, group in groups.items():
                for name, metric in (("AUC", "auc"), ("ACC", "attack_accuracy")):
                    printed[group, name] = paper_cell(find(metric, diffence=PRINTED_SCENARIOS[scenario], attack="best"))
            lines.append(Line((head, f"paper, {title_of(DEFENSE_TITLES, setting)}'s setting"), printed, paper=True))
    dataset = "cifar100" if "cifar100" in edition.datasets else edition.datasets[0]
    return PaperTable(
        "Table IV",
        title,
        ("defense", "data set"),
        columns,
        lines if datasets else (),
        (
            NOISE_RULE,
            "The paper takes CIFAR-100 classifiers in the settings of three other papers, with other splits, optimizers and "
            "networks. Ours are those of the profile.",
        ),
        missing=missing_rows(experiment_command(edition, dataset, "table_iv")),
    )


def table_7(edition: Edition, paper: PaperNumbers) -> PaperTable:
    """Table VII: averaged predictions of a diffusion model that is trained on more images than the classifier."""
    groups: dict[str | None, str] = {None: "without Diffence", "average": "Diffence, average"}
    metrics: dict[str, Metric] = {
        "test acc.": row_metrics.test_accuracy,
        "ACC": row_metrics.best_accuracy,
        "AUC": row_metrics.best_auc,
    }
    columns = [(group, name) for group in groups.values() for name in metrics]
    rows = [one for one in edition.of_kind("evaluation") if "ddpm.name=stronger" in one.row["overrides"]]
    datasets = [dataset for dataset in edition.datasets if any(one.row["dataset"] == dataset for one in rows)]
    lines = []
    for defense in ("undefended", "advreg", "dpsgd", "selena", "relaxloss", "hamp"):
        head = title_of(DEFENSE_TITLES, defense)
        for dataset in datasets:
            found = {one: with_values(rows, dataset=dataset, defense=defense, scenario=one) for one in groups}
            command = experiment_command(edition, dataset, "stronger")
            lines.append(Line((head, title_of(DATASET_TITLES, dataset)), protected_cells(found, groups, metrics, command)))
        printed = {}
        for scenario, group in groups.items():
            find = partial(paper.find, "Table VII", dataset="cifar10", defense=defense, diffence=scenario or "without")
            printed[group, "test acc."] = paper_cell(find("accuracy"))
            printed[group, "ACC"] = paper_cell(find("attack_accuracy", attack="best"))
            printed[group, "AUC"] = paper_cell(find("auc", attack="best"))
        lines.append(Line((head, "paper, CIFAR-10"), printed, paper=True))
    dataset = edition.datasets[0]
    return PaperTable(
        "Table VII",
        "Averaged predictions of a stronger diffusion model: test accuracy, and the best of five attacks (%)",
        ("defense", "data set"),
        columns,
        lines if datasets else (),
        (NOISE_RULE, "The diffusion model is trained on the members and the reference images. Labels may change. " + SIZES),
        missing=missing_rows(experiment_command(edition, dataset, "stronger")),
    )


def with_values(rows: Sequence[StoredRow], **wanted: str | None) -> list[StoredRow]:
    """The rows that have the given values."""
    return [stored for stored in rows if has_values(stored.row, **wanted)]


def protected_cells(
    rows: dict[str | None, list[StoredRow]], groups: dict[str | None, str], metrics: dict[str, Metric], command: str
) -> dict[Column, Cell]:
    """The cells of metrics without Diffence and in the scenarios of `groups`, which are noise against those without it."""
    cells = {}
    for name, metric in metrics.items():
        without = measure_over_seeds(rows[None], metric)
        for scenario, group in groups.items():
            measurement = measure_over_seeds(rows[scenario], metric)
            cells[group, name] = measured(measurement, command, without if scenario else None)
    return cells


def missing_rows(command: str) -> str:
    """The sentence in place of a table without rows."""
    return f"There are no rows yet. This makes them: `{command}`"
