"""A table as HTML."""

import re
from html import escape

from common.report.tables import Cell, PaperTable, group_columns


def html(table: PaperTable, anchor: str) -> str:
    """The `<table>` as HTML. Lines of the paper have a class, an interval is a tooltip, and an empty cell links to its command.

    The command of footnote a has the id `<anchor>-a` (`html_notes`).
    """
    groups = group_columns(table.columns)
    over = "".join(f'<th scope="colgroup" colspan="{len(names)}">{escape(group)}</th>' for group, names in groups)
    empty = f'<td colspan="{len(table.head_names)}"></td>'
    heads = "".join(f'<th scope="col" class="head">{escape(name)}</th>' for name in table.head_names)
    heads += "".join(f'<th scope="col">{escape(name)}</th>' for _, name in table.columns)
    lines = []
    for line in table.lines:
        first, *others = line.heads
        cells = "".join(f"<td>{_html_cell(table, line.cells.get(column, Cell()), anchor)}</td>" for column in table.columns)
        kind = ' class="paper"' if line.paper else ""
        names = f'<th scope="row">{escape(first)}</th>' + "".join(f'<td class="head">{escape(head)}</td>' for head in others)
        lines.append(f"<tr{kind}>{names}{cells}</tr>")
    group_line = f"<tr>{empty}{over}</tr>" if any(group for group, _ in groups) else ""
    return f"<table><thead>{group_line}<tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _html_cell(table: PaperTable, cell: Cell, anchor: str) -> str:
    text = escape(table.text(cell))
    if cell.value is None and cell.command:
        return f'<a href="#{anchor}-{table.commands[cell.command]}">{text}</a>'
    if cell.value is None or cell.half_width is None:
        return text
    seeds = f"; seeds {', '.join(map(str, cell.seeds))}" if len(cell.seeds) > 1 else ""
    low, high = cell.value - cell.half_width, cell.value + cell.half_width
    return f'<span title="95% interval {low:.{cell.digits}f} to {high:.{cell.digits}f}{seeds}">{text}</span>'


def html_notes(table: PaperTable, anchor: str) -> str:
    """The footnotes as items of a list."""
    letters = [""] * len(table.notes) + [f' id="{anchor}-{letter}"' for letter in table.commands.values()]
    return "".join(f"<li{letter}>{with_code(note)}</li>" for letter, note in zip(letters, table.footnotes(), strict=True))


def with_code(text: str) -> str:
    """Text as HTML, in which `code` between backticks is marked as such."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))
