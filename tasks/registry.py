"""Registries: what can be named on the command line, found by looking into a package and at entry points."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from types import ModuleType
from typing import Generic, TypeVar

__all__ = ["Registry"]

T = TypeVar("T")

NAME = r"[A-Za-z0-9_-]+"  # names become parts of file names


class Registry(Mapping[str, T], Generic[T]):
    """Things by name, one file each (or several to a file where they are settings of one idea).

    Parameters
    ----------
    kind : str
        What the things are, for messages: ``"task"``.
    package : module
        Its modules are searched, in alphabetical order, when something is first looked up.
    collect : callable
        Given a module's name, dashes for underscores, and the module, returns what it defines, by name.
    group : str, optional
        Entry-point group through which other distributions add theirs, under names that are free.
    reserved : tuple of str
        Names that nobody may take.

    Looking up an unknown name raises ValueError with the nearest known one.
    """

    def __init__(
        self,
        kind: str,
        package: ModuleType,
        collect: Callable[[str, ModuleType], Mapping[str, T]],
        group: str | None = None,
        reserved: tuple[str, ...] = (),
    ) -> None:
        self._kind = kind
        self._package = package
        self._collect = collect
        self._group = group
        self._reserved = reserved
        self._found: dict[str, T] | None = None

    def __getitem__(self, name: str) -> T:
        try:
            return self._all()[name]
        except KeyError:
            raise ValueError(unknown_name(self._kind, name, list(self))) from None

    def choose(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return `names`, each once, or all names where none is given; refuse unknown ones."""
        for name in names:
            self[name]
        return tuple(dict.fromkeys(names)) or tuple(self)

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, T]:
        if self._found is None:
            found: dict[str, T] = {}
            for info in pkgutil.iter_modules(self._package.__path__):
                module = importlib.import_module(f"{self._package.__name__}.{info.name}")
                found.update(self._collect(info.name.replace("_", "-"), module))
            for entry in entry_points(group=self._group) if self._group else ():
                if entry.name in found or entry.name in self._reserved or not re.fullmatch(NAME, entry.name):
                    raise ValueError(
                        f"entry point {entry.name!r} of group {self._group!r} cannot name a {self._kind}: a name must "
                        f"be free (taken: {', '.join((*found, *self._reserved))}) and of letters, digits, dashes and "
                        "underscores alone"
                    )
                found[entry.name] = entry.load()
            self._found = found  # at the end: what fails half-way is not half a registry
        return self._found


def unknown_name(kind: str, got: str, known: list[str]) -> str:
    """Return the message for a name that is not known, with the nearest known one."""
    near = difflib.get_close_matches(got, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {got!r}{hint} (known: {', '.join(known)})"
