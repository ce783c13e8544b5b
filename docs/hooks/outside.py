"""Links of the pages that lead out of ``docs/``, which MkDocs does not follow, and the published results as pages.

The pages are written for the repository, where ``../results/cost/summary.md`` is a file beside them. On the site

- summaries of ``results/`` are pages of their own, and figures that pages show are copied;
- what is left (code, folders) links to the repository where ``repo_url`` is set, and is its own path where it is not.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
SUMMARIES = sorted(ROOT.glob("results/*/summary.md"))
RESULTS = [path.relative_to(ROOT).as_posix() for path in (ROOT / "results" / "README.md", *SUMMARIES)]


def on_files(files: Files, config: Any) -> Files:
    """Add the published results, and the figures that pages show."""
    pages = {file.src_uri: Path(file.abs_src_path).read_text() for file in files.documentation_pages()}
    for uri in RESULTS:
        pages[uri] = (ROOT / uri).read_text()
        files.append(_file(uri, config))
    for uri, text in pages.items():
        for shown, _, target, _ in LINK.findall(text):
            path = _in_repository(uri, target)
            if shown and not path.startswith("docs/") and files.get_file_from_path(path) is None:
                files.append(_file(path, config))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links out of ``docs/`` into those of the site, of the repository, or into paths."""
    uri = page.file.src_uri

    def on_site(link: re.Match[str]) -> str:
        shown, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        path = _in_repository(uri, target)
        inside = path.removeprefix("docs/")
        if files.get_file_from_path(inside) is not None:
            return f"{shown}[{text}]({posixpath.relpath(inside, posixpath.dirname(uri) or '.')}{anchor})"
        if not (ROOT / path).exists():
            return link[0]  # which MkDocs then tells
        if config.repo_url:
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/main/{path}{anchor})"
        return text if path in text else f"{text} (`{path}`)"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else LINK.sub(on_site, part) for number, part in enumerate(parts))


def _in_repository(uri: str, target: str) -> str:
    """Return the path from the repository's root that a page of the site links to."""
    folder = posixpath.dirname(uri if uri.startswith("results/") else f"docs/{uri}")
    return posixpath.normpath(posixpath.join(folder, target))


def _file(path: str, config: Any) -> File:
    return File.generated(config, path, abs_src_path=str(ROOT / path))
