"""What an experiment says of itself in its docstring, as HTML: what is asked, and how it is read."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["About", "about", "first_paragraph", "paragraphs"]

INLINE = re.compile(r":\w+:`~?([^`]+)`|``([^`]+)``|`([^`]+)`|\*([^*\s][^*]*)\*")


@dataclass(frozen=True)
class About:
    """What an experiment is about.

    Attributes
    ----------
    question : Markup
        The first paragraph of its docstring, or else its summary.
    reading : tuple of Markup
        The other paragraphs, as blocks of HTML.
    """

    question: Markup
    reading: tuple[Markup, ...]


def about(experiment: object, name: str) -> About:
    """Return what an experiment says of itself; its summary stands in for a docstring that it lacks."""
    first, *others = _paragraphs(experiment) or [str(getattr(experiment, "SUMMARY", name))]
    title, colon, rest = first.partition(": ")
    question = rest[:1].upper() + rest[1:] if colon and title.lower().split()[0] == name.lower().split()[0] else first
    return About(_inline(question), tuple(map(_block, others)))


def first_paragraph(function: object) -> str:
    """Return the first paragraph of a function's docstring, in one line; empty where it has none."""
    return next(iter(paragraphs(function)), "")


def paragraphs(function: object) -> list[str]:
    """Return the paragraphs of a function's docstring, each in one line."""
    return [" ".join(text.split()) for text in _paragraphs(function)]


def _paragraphs(thing: object) -> list[str]:
    own = thing if inspect.ismodule(thing) or inspect.isfunction(thing) else type(thing)
    text = inspect.cleandoc(own.__doc__ or "")
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def _block(paragraph: str) -> Markup:
    """Return a paragraph, a list, or what is laid out by spaces (tables, code) as it is."""
    lines = paragraph.splitlines()
    if lines[0].startswith(("===", "    ", "---")):
        return Markup("<pre>{}</pre>").format(inspect.cleandoc(paragraph))
    if lines[0].startswith("- "):
        points = re.split(r"(?m)^- ", paragraph)[1:]
        return Markup("<ul>{}</ul>").format(
            Markup("").join(Markup("<li>{}</li>").format(_inline(point)) for point in points)
        )
    return Markup("<p>{}</p>").format(_inline(paragraph))


def _inline(text: str) -> Markup:
    """Return text whose code, references and stresses are marked up."""
    parts, end, line = [], 0, " ".join(text.split())
    for match in INLINE.finditer(line):
        role, code, plain, stress = match.groups()
        parts.append(escape(line[end : match.start()]))
        if stress:
            parts.append(Markup("<em>{}</em>").format(stress))
        else:
            parts.append(Markup("<code>{}</code>").format(role.rpartition(".")[2] if role else code or plain))
        end = match.end()
    return Markup("").join([*parts, escape(line[end:])])
