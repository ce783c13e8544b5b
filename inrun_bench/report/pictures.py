"""Figures for a page: inside of it as SVG, or as PNG where that would be large."""

from __future__ import annotations

import base64
import io
import re
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from inrun_bench.report.docstrings import first_paragraph
from inrun_bench.report.figures import DPI, SETTINGS, with_a_palette
from inrun_bench.report.looks import showing

__all__ = ["LARGEST_SVG", "caption_of", "inline_svg", "picture"]

LARGEST_SVG = 300_000
"""Bytes; a larger drawing is shown as PNG."""

LINK = re.compile(r"url\(#|^#")
POINTS_TO_PIXELS = 96 / 72


def picture(anchor: str, experiment: Any, rows: pd.DataFrame) -> Markup | None:
    """Return an experiment's figure of its rows as HTML; None where it has none, or nothing to draw.

    Parameters
    ----------
    anchor : str
        What ids of the figure begin with, by which figures of a page are told apart.
    experiment : module or object
        With ``draw(rows)``, or without.
    rows : DataFrame
        All of its rows.
    """
    if not hasattr(experiment, "draw") or rows.empty:
        return None
    with mpl.rc_context(SETTINGS), showing(rows["method"].dropna()):
        figure = experiment.draw(rows)
        if not figure.axes:
            return None
        label = caption_of(experiment) or "Figure"
        svg = inline_svg(_saved(figure, "svg", metadata={"Date": None}).decode(), anchor, label)
        return svg if len(svg.encode()) <= LARGEST_SVG else _png(figure, label)


def caption_of(experiment: Any) -> str:
    """Return what a figure shows, by the experiment's summary and the docstring of what draws it."""
    drawn = re.sub(r"^Draw (\w)", lambda match: match[1].upper(), first_paragraph(experiment.draw))
    summary = str(getattr(experiment, "SUMMARY", ""))
    return " ".join(part if part.endswith(".") else f"{part}." for part in (_capital(summary), drawn) if part)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def inline_svg(text: str, anchor: str, label: str) -> Markup:
    """Return matplotlib's SVG as a part of a page: ids of its own, no name spaces, style sheet or metadata.

    Parameters
    ----------
    text : str
        A file as matplotlib writes it.
    anchor : str
        What ids begin with.
    label : str
        What the drawing is called where it is not seen.
    """
    root = ElementTree.fromstring(text)  # noqa: S314 - matplotlib's own
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                element.set(key, f"{anchor}-{value}")
            elif key in ("href", "clip-path", "fill", "style", "marker-start"):
                element.set(key, LINK.sub(lambda match: f"{match[0]}{anchor}-", value))
            else:
                element.set(key, value)
    _drop(root, ("metadata", "style", "title"))
    root.attrib |= {"role": "img", "aria-label": label, "stroke-linejoin": "round", "stroke-linecap": "butt"}
    for side in ("width", "height"):
        root.set(side, f"{float(root.attrib[side].removesuffix('pt')) * POINTS_TO_PIXELS:.0f}")
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - escaped by ElementTree


def _drop(element: ElementTree.Element, tags: tuple[str, ...]) -> None:
    for child in list(element):
        if child.tag in tags:
            element.remove(child)
        else:
            _drop(child, tags)


def _png(figure: Figure, label: str) -> Markup:
    png = with_a_palette(_saved(figure, "png"))
    width = int.from_bytes(png[16:20], "big")  # pixels; where they stand in every PNG
    height = int.from_bytes(png[20:24], "big")
    return Markup('<img alt="{}" width="{:.0f}" height="{:.0f}" src="data:image/png;base64,{}">').format(
        label, width * 96 / DPI, height * 96 / DPI, base64.b64encode(png).decode()
    )


def _saved(figure: Figure, form: str, **how: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=DPI, bbox_inches="tight", **how)
    return file.getvalue()
