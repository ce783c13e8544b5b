"""Registries: what can be named on the command line, found by looking into a package and at entry points."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
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
    accepts : callable, optional
        Whether something that an entry point loads is of this kind.

    Looking up an unknown name raises ValueError with the nearest known one. What another distribution adds and cannot
    be used is skipped with a RuntimeWarning; :attr:`broken` says why.
    """

    def __init__(
        self,
        kind: str,
        package: ModuleType,
        collect: Callable[[str, ModuleType], Mapping[str, T]],
        group: str | None = None,
        reserved: tuple[str, ...] = (),
        accepts: Callable[[object], bool] = lambda _: True,
    ) -> None:
        self._kind = kind
        self._package = package
        self._collect = collect
        self._group = group
        self._reserved = reserved
        self._accepts = accepts
        self._broken: dict[str, str] = {}
        self._found: dict[str, T] | None = None

    def __getitem__(self, name: str) -> T:
        try:
            return self._all()[name]
        except KeyError:
            if name in self._broken:
                raise ValueError(f"{self._kind} {name!r} cannot be used: {self._broken[name]}") from None
            raise ValueError(unknown_name(self._kind, name, list(self))) from None

    def choose(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return `names`, each once, or all names where none is given; refuse unknown ones."""
        for name in names:
            self[name]
        return tuple(dict.fromkeys(names)) or tuple(self)

    def lend(self, things: Mapping[str, T]) -> None:
        """Add things in this process, over what they are called by now.

        Parameters
        ----------
        things : mapping of str to object
            By name, of letters, digits, dashes and underscores.
        """
        for name, thing in things.items():
            if name in self._reserved or not re.fullmatch(NAME, name) or not self._accepts(thing):
                raise ValueError(
                    f"{name!r} ({type(thing).__name__}) cannot name a {self._kind}: a name is of letters, digits, "
                    f"dashes and underscores alone, and none of {', '.join(self._reserved) or 'those that are taken'}"
                )
        self._all().update(things)

    def take_back(self, names: Iterable[str]) -> None:
        """Take out what was lent."""
        for name in names:
            self._all().pop(name, None)

    @property
    def broken(self) -> Mapping[str, str]:
        """Names of other distributions' entry points that cannot be used, and why."""
        self._all()
        return dict(self._broken)

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
                try:
                    found[entry.name] = self._load(entry, found)
                except Exception as error:  # whatever a third party's module raises
                    self._broken[entry.name] = f"{type(error).__name__}: {error}"
                    warnings.warn(
                        f"{self._kind} {entry.name!r} ({entry.value}) is skipped: {self._broken[entry.name]}",
                        RuntimeWarning,
                        stacklevel=3,
                    )
            self._found = found  # at the end: what fails half-way is not half a registry
        return self._found

    def _load(self, entry: EntryPoint, found: Mapping[str, T]) -> T:
        if entry.name in found or entry.name in self._reserved or not re.fullmatch(NAME, entry.name):
            raise ValueError(
                f"entry point {entry.name!r} of group {self._group!r} cannot name a {self._kind}: a name must "
                f"be free (taken: {', '.join((*found, *self._reserved))}) and of letters, digits, dashes and "
                "underscores alone"
            )
        thing: T = entry.load()
        if not self._accepts(thing):
            raise TypeError(f"entry point {entry.name!r} loads a {type(thing).__name__}, which is no {self._kind}")
        return thing


def unknown_name(kind: str, got: str, known: list[str]) -> str:
    """Return the message for a name that is not known, with the nearest known one."""
    near = difflib.get_close_matches(got, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {got!r}{hint} (known: {', '.join(known)})"
