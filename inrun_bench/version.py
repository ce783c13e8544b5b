"""The version of this code, installed or not."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["UNKNOWN", "__version__", "version_of", "versions"]

NAME = "inrun-bench"
UNKNOWN = "0+unknown"


def version_of(package: Path) -> str:
    """Return the version of the code in the folder `package`.

    In a clone it is the one that ``pyproject.toml`` beside the folder states, whether the clone is installed or not;
    elsewhere that of the distribution installed. Code that has neither is of version :data:`UNKNOWN`.
    """
    stated = package.parent / "pyproject.toml"
    project = tomllib.loads(stated.read_text(encoding="utf-8")).get("project", {}) if stated.exists() else {}
    if project.get("name") == NAME:
        return str(project["version"])
    return versions([NAME])[NAME] or UNKNOWN


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each distribution, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


__version__ = version_of(Path(__file__).parent)
