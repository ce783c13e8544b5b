"""Tables in LaTeX, as the package ``booktabs`` sets them."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from markupsafe import Markup

from inrun_bench.report.markdown_tables import Table, TableCell

__all__ = ["latex", "latex_text"]

TAG = re.compile(r"(</?(?:em|strong|code)>)")
COMMANDS = {"<em>": r"\emph{", "<strong>": r"\textbf{", "<code>": r"\texttt{"}
SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: f"\\{character}" for character in "{}$&#_%"},
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"$<$",
        ">": r"$>$",
        "|": r"$|$",
        "[": "{[}",  # not taken for an option after \\
        "]": "{]}",
        "\n": " ",
        "→": r"$\rightarrow$",
        "×": r"$\times$",
        "±": r"$\pm$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "−": "$-$",
    }
)
MINUS = re.compile(r"(?<![\w)}-])-(?=[\d.])")


def latex(table: Table, label: str, caption: Markup) -> str:
    r"""Return a table environment; rows that bound the others stand apart at the end, named in italics.

    Parameters
    ----------
    table : Table
        Its heads and cells.
    label : str
        What ``\ref`` calls it.
    caption : Markup
        What stands above it.
    """
    lines = [
        r"\begin{table}",
        r"  \centering",
        r"  \small",
        rf"  \caption{{{latex_text(caption)}}}",
        rf"  \label{{{label}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
        r"    \toprule",
        f"    {_line(table.heads)}",
        r"    \midrule",
        *_body(table.rows),
        *([r"    \midrule", *_body(table.bounds)] if table.bounds else []),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_text(marked_up: Markup) -> str:
    """Return text with stresses and code, as of :mod:`inrun_bench.report.markdown_tables`, in LaTeX."""
    parts = TAG.split(str(marked_up))
    return "".join(COMMANDS.get(part, "}") if TAG.fullmatch(part) else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return MINUS.sub("−", html.unescape(text)).translate(SPECIAL)


def _body(rows: Sequence[tuple[TableCell, ...]]) -> list[str]:
    return [f"    {_line([cell.html for cell in row])}" for row in rows]


def _line(cells: Sequence[Markup]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"
