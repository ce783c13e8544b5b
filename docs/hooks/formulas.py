"""Formulas of docstrings as MathML, which browsers show without scripts or fonts from elsewhere."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[\(\[](.*?)\\[\)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Convert what ``pymdownx.arithmatex`` has marked as a formula."""
    return FORMULA.sub(_mathml, content)


def _mathml(formula: re.Match[str]) -> str:
    display = "block" if formula[1] == "div" else "inline"
    latex = html.unescape(formula[2]).strip().replace(r"\arg\min", r"\text{arg}\,\min")  # \arg is unknown there
    return convert(latex, display=display)
