"""Docstrings as Markdown: roles, formulas and simple tables of reStructuredText are translated."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(attr|class|data|func|meth|mod):`(~?)([^`]+)`")
FORMULA = re.compile(r":math:`([^`]+)`")
DISPLAYED = re.compile(r"^\.\. math::[ \n]*(.+?)(?=\n\n(?! )|\Z)", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^(=+(?: +=+)+)\n(.*?)\n\1\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)
LITERAL = re.compile(r"::$", re.MULTILINE)
TYPE = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*) : (?![\w.]+(?:, optional)?$)", re.MULTILINE)
AS_WRITTEN = "\u2060"  # no width; what begins with it is no expression


class Docstrings(griffe.Extension):
    """Translate each docstring as it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Translate the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _markdown(obj.docstring.value, obj)


def _markdown(text: str, owner: griffe.Object) -> str:
    text = TABLE.sub(_table, text)
    text = DISPLAYED.sub(lambda formula: rf"\[{' '.join(formula[1].split())}\]", text)
    text = FORMULA.sub(lambda formula: rf"\({' '.join(formula[1].split())}\)", text)
    text = ROLE.sub(lambda role: _reference(role, owner), text)
    # a type in words stays as it is written; else griffe reads it as Python, and the first of {"a", "b"} as the default
    return LITERAL.sub(":", TYPE.sub(rf"\1 : {AS_WRITTEN}", text))


def _reference(role: re.Match[str], owner: griffe.Object) -> str:
    """Return a name that links to its place in the reference, where it has one."""
    shortened, name = role[2], role[3]
    shown = name.rpartition(".")[2] if shortened else name
    call = "()" if role[1] in ("func", "meth") else ""
    return f'<autoref identifier="{_resolved(name, owner)}" optional><code>{shown}{call}</code></autoref>'


def _resolved(name: str, owner: griffe.Object) -> str:
    """Return the full name of what a docstring calls by a name of its own scope."""
    first, dot, rest = name.partition(".")
    scope: griffe.Object | None = owner
    while scope is not None:
        if scope.is_class and name in scope.members:
            return f"{scope.path}.{name}"
        scope = scope.parent  # type: ignore[assignment]
    try:
        return f"{owner.resolve(first)}{dot}{rest}"
    except griffe.NameResolutionError:
        return name


def _table(table: re.Match[str]) -> str:
    """Return a simple table of reStructuredText as Markdown; a row without a first cell goes on with the last."""
    columns = [slice(bar.start(), bar.end()) for bar in re.finditer("=+", table[1])]
    columns[-1] = slice(columns[-1].start, None)
    rows: list[list[str]] = []
    for line in (*table[2].splitlines(), *table[3].splitlines()):
        cells = [line[column].strip() for column in columns]
        if rows and not cells[0]:
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])
