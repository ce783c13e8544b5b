"""A digest of what an object does: its state, and the code behind it.

**Law.** `code_identity` follows an object as pickle does, into its attributes, and collects the modules that define the
classes (base classes included) and functions on the way. Of each of these modules enters the source, and that of every
module it imports, at its head or inside of a function, and that defines what it takes from a module (which may import
lazily), and so on until an installed release. Comments, layout, and docstrings do not count, these unless the module
asks for any. Of a package that is passed on the way to one of its modules counts what importing it executes: all but
plain functions that this does not reach by name.

- a distribution enters by name and version, and by the hash or commit that pip noted where it was installed from a file
  or a repository. One that was installed from a folder, editable or not, can change under the same version, and enters
  by the source of the modules that are imported;
- the standard library enters by Python's version, such as 3.11.

Functions that a module does not know by name (lambdas, and functions defined inside of others) enter by their bytecode
too, with their defaults and the variables that they close over. An extension module outside of all distributions enters
by its bytes, and what it imports is not followed. A distribution that the caller calls optional does not enter:
identities are the same where it is installed and where it is not.

**Refused**, with the reason, is what this law cannot see: code of an interactive session or a notebook, classes defined
inside of functions, modules made at run time, functions that are not what their file has since it was changed, and
whatever cannot be pickled.

**Not seen**: files that code reads, environment variables, modules imported by a computed name (but for those that a
package in memory imports lazily), attributes of modules and classes that are set from elsewhere, constants of a module
whose file was changed after it was imported, and libraries that a user's own extension module is linked to.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import Distribution, distributions, packages_distributions
from importlib.util import find_spec, resolve_name
from operator import attrgetter
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

from joblib.hashing import NumpyHasher

__all__ = ["CodeIdentityError", "code_identity"]

_PYTHON = f"python {sys.version_info.major}.{sys.version_info.minor}"
_STANDARD_LIBRARY = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
_INSTALLED = ("site-packages", "dist-packages")  # names of the folders that distributions are installed in
WHOLE, EXECUTED = "whole module", "what importing it executes"  # neither is the name of a function
_IMPORTS = (ast.Import, ast.ImportFrom)
_owners = cache(packages_distributions)  # half a second: it reads the lists of files of all distributions


class CodeIdentityError(ValueError):
    """An object's code or state cannot be known; the message says of what, and what to do."""


def code_identity(
    thing: object, *, reached_alone: bool = False, optional: Collection[str] = (), in_memory: bool = False
) -> str:
    """Return a SHA-256 digest, as 64 hexadecimal digits, of an object's state and code.

    Parameters
    ----------
    thing : object
        A function, class, module, or an object of any class that can be pickled, or a tuple, list or dict of them.
    reached_alone : bool
        Of the module that defines `thing`, a function, take what the function reaches by name alone: definitions,
        assignments and imports at its head, and what these reach in turn. Statements that are none of these count
        always, and so do imports whose name is not used. What is around it in the file may then change.
    optional : collection of str
        Packages, by the names that they are imported by, whose release does not count.
    in_memory : bool
        Read sources once in a process: what was imported stays as it is, whatever becomes of its file.

    Returns
    -------
    str
        The same in every process with the same sources, releases and minor version of Python; another one when any of
        them changes, or the object's state does.

    Raises
    ------
    CodeIdentityError
        If a source cannot be read, or the object cannot be pickled.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> code_identity(Ridge()) == code_identity(Ridge(alpha=1.0)) != code_identity(Ridge(alpha=2.0))
    True
    """
    hasher = _StateHasher()
    try:
        state = hasher.hash(thing)
    except CodeIdentityError:
        raise
    except Exception as error:  # whatever a third party's object raises
        raise CodeIdentityError(
            f"a code identity needs an object that can be pickled, and one of class {type(thing).__name__} fails with "
            f"{type(error).__name__}: {error}; define classes at the head of a module"
        ) from error
    entry = None
    if reached_alone and isinstance(thing, FunctionType) and _known_by_name(thing):
        entry = thing.__module__, thing.__name__
    if in_memory:
        loaded = tuple((name, sys.modules.get(name)) for name in sorted(hasher.modules))
        sources, releases = _code_in_memory(loaded, entry, frozenset(optional))
    else:
        sources, releases = _code_of(hasher.modules, entry, optional)
    return hashlib.sha256(json.dumps([state, sources, sorted(releases)], sort_keys=True).encode()).hexdigest()


class _StateHasher(NumpyHasher):  # type: ignore[misc]  # joblib has no types
    """Hashes the state of an object and notes the modules that its classes and functions come from."""

    def __init__(self) -> None:
        super().__init__("sha256")
        self.modules: set[str] = set()

    def save(self, thing: Any) -> None:
        """Hash `thing`; of a bound method the function too, which need not be one of the object's class."""
        super().save((thing.__func__, thing.__self__) if isinstance(thing, MethodType) else thing)

    def reducer_override(self, thing: Any) -> Any:
        """Return what is hashed in place of `thing`, in the form of ``object.__reduce__``."""
        if "torch" in sys.modules and isinstance(thing, sys.modules["torch"].Tensor):
            bits = thing.detach().cpu().contiguous().flatten().view(sys.modules["torch"].uint8).numpy()
            return tuple, ((str(thing.dtype), tuple(thing.shape), thing.requires_grad, bits),)
        if isinstance(thing, ReferenceType):
            return str, ("a weak reference",)  # to what is hashed where it is owned
        if isinstance(thing, ModuleType):
            self.modules.add(thing.__name__)
            return str, (thing.__name__,)
        if isinstance(thing, frozenset):  # one of strings has another order in each process
            return tuple, (sorted(map(repr, thing)),)
        if isinstance(thing, CodeType):
            return tuple, ((thing.co_code, thing.co_consts, thing.co_names, thing.co_varnames, thing.co_freevars),)
        for owner in thing.__mro__ if isinstance(thing, type) else (thing,):
            module = getattr(owner, "__module__", None)
            if isinstance(module, str):
                self.modules.add(module)
        return self._reduced(thing) if isinstance(thing, FunctionType) else NotImplemented

    def _reduced(self, function: FunctionType) -> Any:
        module = function.__globals__.get("__name__")  # functools.wraps gives a function the __module__ of another
        if module not in sys.modules or vars(sys.modules[module]) is not function.__globals__:
            raise CodeIdentityError(
                f"the source of function {function.__qualname__} is not to be had: this process has no module "
                f"{module!r} that it comes from; define it in a file, and take the identity where that is imported"
            )
        self.modules.add(module)
        if _known_by_name(function):
            return NotImplemented
        variables = [cell.cell_contents for cell in function.__closure__ or ()]
        # handed over as the state, which is saved last: a function may close over itself
        state = (function.__code__, function.__defaults__, function.__kwdefaults__, variables, vars(function))
        return tuple, ((module, function.__qualname__),), state


def _known_by_name(function: FunctionType) -> bool:
    try:
        return attrgetter(function.__qualname__)(sys.modules[function.__module__]) is function
    except (AttributeError, KeyError):
        return False


def _code_of(
    defining: Collection[str], entry: tuple[str, str] | None = None, optional: Collection[str] = ()
) -> tuple[dict[str, str], set[str]]:
    """Return digests of the sources of the modules and of what they import, by name, and the releases among them.

    Of the module of `entry`, a function by module and name, takes what the function reaches.
    """
    sources: dict[str, str] = {}
    releases: set[str] = set()
    seen = dict.fromkeys(defining, WHOLE)
    ahead = list(defining)
    while ahead:
        name = ahead.pop()
        if name.partition(".")[0] in optional:
            continue
        file, release = _file(name), _release(name)
        if release is not None:
            releases.add(release)
        if file is None or release == _PYTHON or (release and (name not in defining or file.suffix != ".py")):
            continue
        taken = entry[1] if entry is not None and name == entry[0] else seen[name]
        sources[name], imported = _read(name, file, _stamp(name, file), id(sys.modules.get(name)), taken)
        for each, how in imported.items():
            if each not in seen or (seen[each] == EXECUTED and how == WHOLE):
                seen[each] = how
                ahead.append(each)
    return sources, releases


@cache
def _code_in_memory(
    defining: tuple[tuple[str, ModuleType | None], ...], entry: tuple[str, str] | None, optional: frozenset[str]
) -> tuple[dict[str, str], set[str]]:
    """Return the same, once for as long as the modules that define something are those in memory."""
    return _code_of({name for name, _ in defining}, entry, optional)


def _stamp(name: str, file: Path) -> tuple[int, int]:
    """Return what tells a file from what it was."""
    try:
        state = file.stat()
    except OSError as error:
        raise CodeIdentityError(f"the source of module {name} cannot be read: {error}") from error
    return state.st_mtime_ns, state.st_size


@cache  # for as long as the file and the module are the same: a package has hundreds
def _read(name: str, file: Path, _stamp: tuple[int, int], _module: int, taken: str) -> tuple[str, Mapping[str, str]]:
    """Return the digest of what is taken of a module's source, and how much is taken of the modules that it imports.

    Parameters
    ----------
    taken : str
        :data:`WHOLE`, :data:`EXECUTED`, or the name of a function, of which what it reaches is taken.
    """
    try:
        source = file.read_bytes()
    except OSError as error:
        raise CodeIdentityError(f"the source of module {name} cannot be read: {error}") from error
    if file.suffix != ".py":
        return hashlib.sha256(source).hexdigest(), {}
    if name in sys.modules:
        _refuse_other_than(source, sys.modules[name])
    tree = ast.parse(source)
    if b"__doc__" not in source and b"getdoc" not in source:
        tree = _WithoutDocstrings().visit(tree)
    nodes = tree.body if taken == WHOLE else _reached(tree, taken)
    text = "\n".join(map(ast.dump, nodes))
    return hashlib.sha256(text.encode()).hexdigest(), dict(_imports(name, nodes))


class _WithoutDocstrings(ast.NodeTransformer):
    """Takes out statements that are a string and nothing else: docstrings, and those of constants."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def _reached(tree: ast.Module, function: str) -> list[ast.stmt]:
    """Return those statements at the head of a module that a function reaches by name, in their order.

    An import of several names counts as one import of each. What binds no name is always reached, and an import of a
    name that is not used. In place of a function, :data:`EXECUTED` reaches all but plain functions.
    """
    statements = [bound for node in tree.body for bound in _bound(node)]
    if function != EXECUTED and not any(function in names for names, _ in statements):
        return tree.body  # it is defined inside of another
    used = _names_in(tree)
    reached = {function}
    taken = {
        place
        for place, (names, node) in enumerate(statements)
        if not names
        or function in names
        or (isinstance(node, _IMPORTS) and not names & used)
        or (function == EXECUTED and not _is_plain(node))
    }
    new = taken
    while new:
        reached |= {name for place in new for name in _names_in(statements[place][1])}
        new = {place for place, (names, _) in enumerate(statements) if names & reached} - taken
        taken |= new
    return [statements[place][1] for place in sorted(taken)]


def _names_in(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _is_plain(node: ast.stmt) -> bool:
    """Whether a statement is a function of which nothing is executed but that it is defined."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.decorator_list:
        return False
    defaults = [each for each in (*node.args.defaults, *node.args.kw_defaults) if each is not None]
    return not any(isinstance(each, (ast.Call, ast.NamedExpr)) for one in defaults for each in ast.walk(one))


def _bound(node: ast.stmt) -> Iterator[tuple[set[str], ast.stmt]]:
    """Yield the names that a statement binds, with it; of an import, each name apart."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield {alias.asname or alias.name.partition(".")[0]}, ast.Import([alias])
    elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
        for alias in node.names:
            names = set() if alias.name == "*" else {alias.asname or alias.name}
            yield names, ast.ImportFrom(node.module, [alias], node.level)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield {node.name}, node
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        targets += [each.target for each in ast.walk(node) if isinstance(each, ast.NamedExpr)]
        yield {name for target in targets for name in _names_in(target)}, node
    else:
        yield set(), node


def _refuse_other_than(source: bytes, module: ModuleType) -> None:
    """Refuse a module whose functions are not those of its source: the file was changed after it was imported."""
    if type(getattr(module, "__loader__", None)) is not SourceFileLoader:  # pytest's rewrites assertions, for instance
        return
    in_file = set(_codes(compile(source, str(module.__file__), "exec", dont_inherit=True)))
    for thing in list(vars(module).values()):
        for function in vars(thing).values() if isinstance(thing, type) else (thing,):
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType) and code.co_filename == module.__file__ and code not in in_file:
                raise CodeIdentityError(
                    f"{code.co_qualname} of module {module.__name__} is not what {module.__file__} has: the file was "
                    "changed after it was imported; reload the module or start Python anew"
                )


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _imports(name: str, nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    """Yield what statements of a module import, and all packages on the way; attributes of modules, too.

    With each comes how much of it is taken; of those that are yielded twice, the last one counts.
    """
    spec = getattr(sys.modules.get(name), "__spec__", None) or _spec(name)
    package = "" if spec is None else spec.parent or ""
    passed, imported = {package} - {""}, set[str]()
    bound: dict[str, object] = {}  # what names stand for that were imported
    everything = [each for one in nodes for each in ast.walk(one)]
    for node in everything:
        if isinstance(node, ast.Import):
            imported |= {part for alias in node.names for part in _to(alias.name)}
            for alias in node.names:
                first = alias.name if alias.asname else alias.name.partition(".")[0]
                bound[alias.asname or first] = sys.modules.get(first)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            passed.add(origin)
            imported |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
            for alias in node.names:
                bound[alias.asname or alias.name] = _attribute(sys.modules.get(origin), alias.name)
    taken = [*bound.values(), *(_meant(node, bound) for node in everything if isinstance(node, ast.Attribute))]
    imported |= {part for thing in taken for part in _to(_module_of(thing))}
    passed = {part for each in passed for part in _to(each)}
    released = {top: _release(top) is not None for top in {each.partition(".")[0] for each in passed | imported}}
    for how, modules in ((EXECUTED, passed), (WHOLE, imported)):
        for each in modules:
            top = each.partition(".")[0]
            yield (top if released[top] else each), how  # what is below a release need not be looked for


def _meant(node: ast.expr, bound: Mapping[str, object]) -> object:
    """Return what a name, or an attribute of a module of ours, stands for; None for anything else."""
    if isinstance(node, ast.Name):
        return bound.get(node.id)
    return _attribute(_meant(node.value, bound), node.attr) if isinstance(node, ast.Attribute) else None


def _attribute(thing: object, name: str) -> object:
    """Return an attribute of a module that is no release, whose attributes may be imported when they are asked for."""
    if not isinstance(thing, ModuleType) or _release(thing.__name__.partition(".")[0]) is not None:
        return None
    try:
        return getattr(thing, name, None)
    except Exception:  # whatever a lazy import raises
        return None


def _module_of(thing: object) -> str:
    """Return the module that something is, or that defines it; nothing where there is none."""
    module = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return module if isinstance(module, str) and module in sys.modules else ""


def _to(name: str) -> Iterator[str]:
    """Yield the packages on the way to a module, and it."""
    parts = name.split(".") if name else []
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _file(name: str) -> Path | None:
    """Return the file of a module; None for one that is built in, a namespace, or not installed."""
    module = sys.modules.get(name)
    if module is None:
        spec = _spec(name)
        return Path(spec.origin).resolve() if spec is not None and spec.has_location and spec.origin else None
    file = getattr(module, "__file__", None)
    if file is None and not hasattr(module, "__path__") and name.partition(".")[0] not in sys.stdlib_module_names:
        raise CodeIdentityError(
            f"the source of module {name} is not to be had: it has no file, as in an interactive session or a "
            "notebook; move its classes and functions to a file and import them"
        )
    return None if file is None else Path(file).resolve()


def _spec(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ImportError, ValueError):  # an attribute of a module, or something that is not installed
        return None


def _release(name: str) -> str | None:
    """Return what tells the code of a module apart without its source; None where nothing does."""
    top, file = name.partition(".")[0], _file(name)
    folder = next((folder for folder in file.parents if folder.name in _INSTALLED), None) if file else None
    if folder is None:
        in_library = any(map(file.is_relative_to, _STANDARD_LIBRARY)) if file else top in sys.stdlib_module_names
        return _PYTHON if in_library else None
    return _installed(top, folder)


@cache
def _installed(top: str, folder: Path) -> str | None:
    owners = _owners().get(top, ())
    pins = {_pin(each) for owner in owners for each in distributions(name=owner, path=[str(folder)])}
    return " ".join(sorted(pins)) if pins and "" not in pins else None


def _pin(distribution: Distribution) -> str:
    """Return name, version and the hash or commit that pip noted (PEP 610); nothing if installed from a folder.

    conda notes the folder that it builds in, whatever it installs from.
    """
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if "dir_info" in origin and (distribution.read_text("INSTALLER") or "").strip() != "conda":
        return ""
    source = [origin.get("archive_info"), origin.get("vcs_info")]
    return f"{distribution.name} {distribution.version} {json.dumps(source, sort_keys=True)}"
