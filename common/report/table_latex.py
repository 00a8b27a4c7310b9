"""A table as LaTeX, in the style of booktabs."""

import re
from collections.abc import Iterable

from common.report.tables import Cell, PaperTable, group_columns

_LATEX = {"\\": r"\textbackslash{}", "≈": r"$\approx$", "±": r"$\pm$", "Δ": r"$\Delta$"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}


def latex_escape(text: str) -> str:
    """Text for LaTeX; what stands between backticks is set in typewriter and may break behind slashes and underscores."""
    parts = ["".join(_LATEX.get(character, character) for character in part) for part in text.split("`")]
    return "".join(_typewriter(part) if i % 2 else part for i, part in enumerate(parts))


def _typewriter(escaped: str) -> str:
    breakable = re.sub(r"(?<=[/_])(?=\w)", r"\\allowbreak{}", escaped).replace("--", "-{}-")
    return rf"\texttt{{{breakable}}}"


def latex(table: PaperTable, edition: str) -> str:
    """A `table*` in the style of booktabs, with the notes below it. `edition` is told in the caption."""
    groups = group_columns(table.columns)
    heads = len(table.head_names)
    over, rules, start = [""] * heads, [], heads + 1
    for group, names in groups:
        over.append(rf"\multicolumn{{{len(names)}}}{{c}}{{{latex_escape(group)}}}")
        rules += [rf"\cmidrule(lr){{{start}-{start + len(names) - 1}}}"] if group else []
        start += len(names)
    rows = [[*table.head_names, *(name for _, name in table.columns)]]
    body = []
    for i, line in enumerate(table.lines):
        if i and line.heads[0] != table.lines[i - 1].heads[0]:
            body.append(r"\addlinespace")
        first = "" if i and line.heads[0] == table.lines[i - 1].heads[0] else line.heads[0]
        texts = [first, *line.heads[1:], *(table.text(line.cells.get(column, Cell())) for column in table.columns)]
        cells = [latex_escape(text) for text in texts]
        body.append(" & ".join([*cells[:1], *(rf"\textit{{{cell}}}" if line.paper else cell for cell in cells[1:])]) + r" \\")
    return "\n".join(
        [
            "% Made by python -m common.report. It needs \\usepackage{booktabs}.",
            r"\begin{table*}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{latex_escape(f'{table.label} of the paper. {table.title}; {edition}')}.}}",
            rf"\begin{{tabular}}{{{'l' * heads}{'r' * len(table.columns)}}}",
            r"\toprule",
            *([" & ".join(over) + r" \\", " ".join(rules)] if any(group for group, _ in groups) else []),
            " & ".join(map(latex_escape, rows[0])) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\smallskip\raggedright\scriptsize",
            *(latex_escape(note) + r"\par" for note in table.footnotes()),
            r"\end{table*}",
            "",
        ]
    )


def latex_document(names: Iterable[str]) -> str:
    """A document that holds the tables of the given files, beside it."""
    inputs = [rf"\input{{{name}}}" for name in names]
    lines = [
        "% Made by python -m common.report. Compile it with: pdflatex tables.tex",
        r"\documentclass[10pt,twocolumn]{article}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage{booktabs}",
        r"\usepackage[margin=0.75in]{geometry}",
        r"\begin{document}",
        *inputs,
        r"\end{document}",
    ]
    return "\n".join(lines) + "\n"
