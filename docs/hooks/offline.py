"""The site is whole: nothing of it is loaded from elsewhere, and nothing of a docstring is left untranslated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

FAULTS = {
    "loads a script or a picture from elsewhere": re.compile(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//'),
    "loads a style from elsewhere": re.compile(r'<link[^>]+href="(?:https?:)?//'),
    "has a role of reStructuredText": re.compile(r":(?:attr|class|data|func|math|meth|mod):(?:`|<code>)"),
    "has a formula that is not MathML": re.compile(r'class="arithmatex"|<m[a-z]+[^>]*>\\'),
}


def on_post_build(config: Any) -> None:
    """Refuse a site with a page that is at fault."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        text = page.read_text()
        for fault, sign in FAULTS.items():
            found = sign.search(text)
            if found is not None:
                raise PluginError(f"{page} {fault}: {text[found.start() : found.end() + 80]!r}")
