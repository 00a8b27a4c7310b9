"""Tables V, VI and VIII of the paper: the cost of a query, attacks on labels alone, the cost of training."""

from collections.abc import Callable, Sequence
from functools import partial

from common.report import row_metrics
from common.report.editions import PAPER_DATASETS, Edition, Measurement, Metric, StoredRow, in_order, measure_over_seeds
from common.report.paper import PAPER_DEFENSES, PaperNumbers
from common.report.paper_commands import experiment_command, label_only_command
from common.report.paper_tables import missing_rows, paper_cell, table_3, table_4, table_7, with_values
from common.report.style import DATASET_TITLES, DEFENSE_TITLES, DIFFENCE_TITLES, title_of
from common.report.tables import NOISE_RULE, Cell, Column, Line, PaperTable, measured

TableBuilder = Callable[[Edition, PaperNumbers], PaperTable]


def table_5(edition: Edition, paper: PaperNumbers) -> PaperTable:
    """Table V: milliseconds for an image, alone and in a batch, of the undefended classifier, MemGuard and Diffence."""
    rows = edition.of_kind("overhead")
    datasets = in_order({*PAPER_DATASETS, *(stored.row["dataset"] for stored in rows)}, (*PAPER_DATASETS, "synthetic"))
    batch = max((stored.row["batch"] for stored in rows), default=0)
    heads = {1: "alone", batch: f"in {batch}"}
    columns = [(title_of(DATASET_TITLES, dataset), head) for dataset in datasets for head in heads.values()]
    ways = dict.fromkeys(
        (stored.row["defense"], answer["scenario"], _drawn(answer))
        for stored in rows
        for answer in stored.row["answers"]
        if stored.row["defense"] in ("undefended", "memguard")
        and (answer["scenario"] is None or stored.row["defense"] == "undefended")
    )
    lines, printed = [], {"undefended": ("undefended", "without"), "memguard": ("memguard", "without")}
    for defense in ("undefended", "memguard", "diffence"):
        for way in (one for one in ways if (one[0] if one[1] is None else "diffence") == defense):
            cells = {
                (title_of(DATASET_TITLES, dataset), head): _time_cell(edition, with_values(rows, dataset=dataset), way, size)
                for dataset in datasets
                for size, head in heads.items()
            }
            title = title_of(DEFENSE_TITLES, defense) if way[1] is None else f"{DIFFENCE_TITLES[way[1]]}, {way[2]}"
            lines.append(Line((title, "ours"), cells))
        named, diffence = printed.get(defense, ("undefended", "with"))
        times = {
            (title_of(DATASET_TITLES, dataset), "alone"): Cell(
                paper.find("Table V", "ms", dataset=dataset, defense=named, diffence=diffence), digits=0
            )
            for dataset in PAPER_DATASETS
        }
        lines.append(Line((DEFENSE_TITLES.get(defense, "Diffence"), "paper"), times, paper=True))
    return PaperTable(
        "Table V",
        "Milliseconds for an image, asked alone and in a batch",
        ("defense", "from"),
        columns,
        lines if rows else (),
        (
            "Mean wall time. Candidates are drawn one by one until one qualifies, or all at once. " + machines(rows),
            "The paper measures on one RTX 8000 GPU and names neither scenario, N nor T.",
        ),
        missing=missing_rows(experiment_command(edition, edition.datasets[0], "overhead", defenses=["undefended", "memguard"])),
    )


def _drawn(answer: dict[str, int | None]) -> str:
    at_once = answer["draws_at_once"]
    return "" if at_once is None else "one by one" if at_once == 1 else "all at once"


def _time_cell(edition: Edition, rows: Sequence[StoredRow], way: tuple[str, str | None, str], batch: int) -> Cell:
    defense, scenario, drawn = way
    times = [
        (stored.row["seed"], answer["wall_ms"]["mean"])
        for stored in with_values(rows, defense=defense)
        for answer in stored.row["answers"]
        if (answer["scenario"], _drawn(answer), answer["batch"]) == (scenario, drawn, batch)
    ]
    if not times:
        named = rows[0].row["dataset"] if rows else ""
        return Cell(
            command=experiment_command(edition, named, "overhead", defenses=["undefended", "memguard"]) if named else ""
        )
    return Cell(sum(value for _, value in times) / len(times), seeds=tuple(seed for seed, _ in times))


def machines(rows: Sequence[StoredRow]) -> str:
    """A sentence that names the machines of rows."""
    named = dict.fromkeys(f"{one.row['device']} ({one.row['threads']} threads)" for one in rows)
    return f"Measured on: {', '.join(named)}." if named else ""


def table_6(edition: Edition, paper: PaperNumbers) -> PaperTable:
    """Table VI: attacks on labels alone, without and with Diffence."""
    groups = {"without": "without Diffence", "with": "with Diffence"}
    metrics: dict[str, Metric] = {
        "gap ACC": partial(row_metrics.attack_accuracy, attack="correctness"),
        "boundary AUC": partial(row_metrics.attack_auc, attack="boundary"),
        "boundary ACC": partial(row_metrics.attack_accuracy, attack="boundary"),
    }
    printed = {
        "gap ACC": ("attack_accuracy", "gap"),
        "boundary AUC": ("auc", "boundary"),
        "boundary ACC": ("attack_accuracy", "boundary"),
    }
    columns = [(group, name) for group in groups.values() for name in metrics]
    datasets = [dataset for dataset in edition.datasets if edition.find("label_only", dataset=dataset)]
    found = {
        (dataset, defense, key): most_images(
            [
                one
                for one in edition.find("label_only", dataset=dataset, defense=defense)
                if bool(one.row["diffence"]) == (key == "with")
            ]
        )
        for dataset in datasets
        for defense in PAPER_DEFENSES
        for key in groups
    }
    commands = {
        (dataset, key): label_only_command(
            edition,
            dataset,
            [defense for defense in PAPER_DEFENSES if not found[dataset, defense, key]],
            *(["--scenario 1"] if key == "with" else []),
        )
        for dataset in datasets
        for key in groups
    }
    lines = []
    for defense in PAPER_DEFENSES:
        title = title_of(DEFENSE_TITLES, defense)
        for dataset in datasets:
            cells = {}
            for name, metric in metrics.items():
                without, protected = (measure_over_seeds(found[dataset, defense, key], metric) for key in groups)
                cells[groups["without"], name] = measured(without, commands[dataset, "without"])
                cells[groups["with"], name] = measured(protected, commands[dataset, "with"], without)
            lines.append(Line((title, title_of(DATASET_TITLES, dataset)), cells))
        find = partial(paper.find, "Table VI", dataset="cifar10", defense=defense)
        numbers = {
            (group, name): paper_cell(find(metric, diffence=key, attack=attack))
            for key, group in groups.items()
            for name, (metric, attack) in printed.items()
        }
        lines.append(Line((title, "paper, CIFAR-10"), numbers, paper=True))
    images = " and ".join(
        f"{size:,}" for size in sorted({one.row["scored"]["members"] for rows in found.values() for one in rows})
    )
    return PaperTable(
        "Table VI",
        "Attacks that see labels alone (%)",
        ("defense", "data set"),
        columns,
        lines if datasets else (),
        (
            NOISE_RULE,
            f"Ours score {images} images of each side. Diffence changes no label, so that they see the same with it. The "
            "paper does not name its data set; it is taken as CIFAR-10.",
        ),
        missing=missing_rows(label_only_command(edition, edition.datasets[0], PAPER_DEFENSES)),
    )


def most_images(rows: Sequence[StoredRow]) -> list[StoredRow]:
    """Of label-only rows, those with the most scored images, and of these with the most steps."""
    sizes = [(stored.row["scored"]["members"], stored.row["boundary"]["steps"]) for stored in rows]
    return [stored for stored, size in zip(rows, sizes, strict=True) if size == max(sizes)]


def table_8(edition: Edition, paper: PaperNumbers) -> PaperTable:
    """Table VIII: hours of training of each defense, and of Diffence's diffusion model."""
    rows = edition.find("training_cost")
    datasets = in_order({*PAPER_DATASETS, *(stored.row["dataset"] for stored in rows)}, (*PAPER_DATASETS, "synthetic"))
    columns: list[Column] = [("", title_of(DATASET_TITLES, dataset)) for dataset in datasets]
    with_rows = {stored.row["dataset"] for stored in rows}
    lines = []
    for defense in PAPER_DEFENSES[:-1]:  # MemGuard is not in the table
        title = title_of(DEFENSE_TITLES, defense)
        cells = {}
        for dataset, column in zip(datasets, columns, strict=True):
            command = experiment_command(edition, dataset, "training_cost") if dataset in with_rows else ""
            found = measure_over_seeds(with_values(rows, dataset=dataset, defense=defense), _hours)
            cells[column] = measured(found, command, digits=2, scale=1)
        printed = {
            column: paper_cell(paper.find("Table VIII", "hours", dataset=dataset, defense=defense))
            for dataset, column in zip(datasets, columns, strict=True)
        }
        lines += [Line((title, "ours"), cells), Line((title, "paper"), printed, paper=True)]
    diffusion = {
        column: measured(_diffusion_hours(with_values(rows, dataset=dataset)), "", digits=2, scale=1)
        for dataset, column in zip(datasets, columns, strict=True)
    }
    lines.append(Line(("Diffusion model", "ours"), diffusion))
    return PaperTable(
        "Table VIII",
        "Hours of training",
        ("defense", "from"),
        columns,
        lines if rows else (),
        (
            "Wall time, summed over the epochs of the training logs; that of SELENA is of all its sub-models. "
            + machines(rows)
            + " The paper measures on one RTX 8000 GPU.",
        ),
        missing=missing_rows(experiment_command(edition, edition.datasets[0], "training_cost")),
    )


def _hours(row: dict[str, float]) -> tuple[float, None]:
    return row["seconds"] / 3600, None


def _diffusion_hours(rows: Sequence[StoredRow]) -> Measurement | None:
    timed = {stored.row["seed"]: stored for stored in rows if stored.row["ddpm"]}  # the same in the rows of every defense
    return measure_over_seeds(list(timed.values()), lambda row: (row["ddpm"]["seconds"] / 3600, None))


TABLES: dict[str, TableBuilder] = {
    "III": table_3,
    "IV": table_4,
    "V": table_5,
    "VI": table_6,
    "VII": table_7,
    "VIII": table_8,
}
