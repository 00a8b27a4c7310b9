"""What `python -m common.report` writes."""

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import make_folder, write_text
from common.report.editions import Selection, read_folder
from common.report.pages import fill_pages
from common.report.paper import paper_numbers
from common.report.publish import draw_files, publish, text_files
from common.report.report_page import report_page


def make_all(root: Path, datasets: Sequence[str]) -> Path:
    """Collect the rows of data sets, then make every page, table and figure from the rows in `root`/results.

    Returns the path of report.html.
    """
    if datasets:
        from common.report.collect import collect  # not above: it imports what reads the data sets

    for dataset in datasets:
        print(f"{len(collect(dataset))} rows of {dataset} are in results/")
    for path, text in fill_pages(root).items():
        write_text(path, text)
        print(f"{path.relative_to(root)}: tables made from results/")
    results = root / "results"
    return _write(root, results, results / "paper", results / "report.html", Selection(), (), ())


def make_chosen(root: Path, rows: Path, out: Path, selection: Selection, tables: Sequence[str], figures: Sequence[str]) -> Path:
    """Make the chosen tables and figures from the selected rows in the folder `rows`, and report.html, in the folder `out`.

    Returns the path of report.html.
    """
    if not rows.is_dir():
        raise UserError(f"{rows} is no folder: name one that holds rows, such as synthetic/evaluate_MIAs/results.")
    make_folder(out)
    return _write(root, rows, out, out / "report.html", selection, tables, figures)


def _write(
    root: Path,
    rows: Path,
    out: Path,
    page: Path,
    selection: Selection,
    tables: Sequence[str],
    figures: Sequence[str],
) -> Path:
    publication = publish(root, rows, selection, tables, figures)
    for name, text in text_files(publication).items():
        write_text(out / name, text)
    drawn = draw_files(publication, out)
    kept = [stored for stored in read_folder(rows) if selection.keeps(stored.row)]
    write_text(page, report_page(kept, publication, drawn, paper_numbers(root)))
    made = sum(bool(table.lines) for group in publication.tables.values() for _, table in group)
    print(f"{out}: tables: {made}, figures: {len(drawn)}")
    return page
