"""The benchmark from a script: tasks, methods and experiments by name, or the objects themselves."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from baselines import InterruptedEstimateWarning, Valuation
from baselines.real_numbers import real_numbers
from inrun_bench.experiments import EXPERIMENTS, Experiment, units_of
from inrun_bench.methods import METHODS, Method, method_names
from inrun_bench.report import write_summary
from inrun_bench.report.figures import draw_figures, drawn
from inrun_bench.runs.fingerprint import code_of
from inrun_bench.runs.plan import PROFILES, Plan
from inrun_bench.runs.runner import run
from inrun_bench.runs.store import Store
from tasks import CATALOG, Task, TaskSpec
from tasks import names as task_names
from tasks.registry import NAME, unknown_name

__all__ = ["Results", "benchmark"]

Named: TypeAlias = "str | Any"

ASKED = ("agreement", "removal", "detection")
"""What is asked where nobody says."""


@dataclass(frozen=True)
class Results:
    """What a benchmark left behind.

    Attributes
    ----------
    folder : Path
        Where rows, figures, ``summary.md`` and the manifest are; running again into it goes on from there.
    summary : str
        The tables, in Markdown.
    figures : tuple of Path
        Those that were drawn.
    failed : mapping of str to str
        Units that failed, and why; their rows are missing, and all others are there.
    """

    folder: Path
    summary: str
    figures: tuple[Path, ...]
    failed: Mapping[str, str]

    def rows(self, experiment: str) -> pd.DataFrame:
        """Return the rows of an experiment: task, method, seed, metric, value and what else says where they hold."""
        return Store(self.folder, create=False).read_all(experiment)


def benchmark(
    tasks: Iterable[str | Task] | str | Task = (),
    methods: Iterable[Named] | Mapping[str, Callable[..., Any]] | Named = (),
    experiments: Iterable[Named] | Mapping[str, Experiment] | Named | None = None,
    *,
    out: str | Path,
    seeds: Iterable[int] = (0,),
    profile: str = "quick",
    jobs: int = -1,
    force: bool = False,
    progress: bool = False,
) -> Results:
    """Run experiments on tasks and methods, and draw and tell what they found.

    Parameters
    ----------
    tasks : names and tasks
        Of the catalogue (:func:`tasks.names`), or made by :func:`tasks.from_arrays` or :func:`tasks.load`, as which
        they are then built: with the same recipe, flipped share, size and precision. All of the profile where empty.
    methods : names, methods and functions, or a mapping of names to these
        Of the registry, :class:`~inrun_bench.methods.Method`, or functions ``method(task, seed)`` that return a
        :class:`baselines.Valuation` or an array with a value for each training sample, and take all chance from `seed`,
        a ``numpy.random.SeedSequence``. Functions are called by their name; with an argument `groups`, or `budget` and
        `stop`, they can be asked for these (:class:`~inrun_bench.methods.Method`). All of the profile where empty.
    experiments : names and modules, or a mapping of names to these
        What is asked; a module, or any object, that offers what :mod:`inrun_bench.experiments` lists. Those of
        :data:`ASKED`, as far as they have to do with the tasks, where None.
    out : path
        Where rows go; what is there and up to date is not measured again.
    seeds : iterable of int
        Of the tasks: splits, initial weights and batch orders.
    profile : str
        How much work the experiments do, a name of :data:`inrun_bench.runs.plan.PROFILES`.
    jobs : int
        Units at a time; -1 for one a core. Functions travel to worker processes by value.
    force : bool
        Measure all units anew.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    Results

    Raises
    ------
    ValueError
        If a name is unknown, taken by something else, or stands for two things; nothing is run then.
    TypeError
        If something is neither a name nor of its kind.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> def norms(task, seed):
    ...     return -np.linalg.norm(task.train.x.flatten(1), axis=1)
    >>> found = benchmark("iris-logreg", [norms, "knn"], "detection", out=tempfile.mkdtemp(), jobs=1)
    >>> sorted(found.rows("detection").query("metric == 'auroc'")["method"])
    ['knn', 'norms', 'reference']
    """
    if profile not in PROFILES:
        raise ValueError(unknown_name("profile", profile, list(PROFILES)))
    of_tasks, lent_tasks = _told("task", tasks, _task)
    of_methods, lent_methods = _told("method", methods, _method)
    of_experiments, lent_experiments = _told("experiment", ASKED if experiments is None else experiments, _experiment)
    for kind, registry, lent in (("tasks", CATALOG, lent_tasks), ("methods", METHODS, lent_methods)):
        _refuse_taken(kind, registry, lent)
    _refuse_taken("experiments", EXPERIMENTS, lent_experiments)
    everything = {**EXPERIMENTS, **lent_experiments}
    lend = partial(_lend, lent_tasks, lent_methods)
    lend()
    try:
        plan = Plan(
            profile=profile,
            tasks=CATALOG.choose(of_tasks or PROFILES[profile].tasks or task_names(large=False)),
            methods=METHODS.choose(of_methods or PROFILES[profile].methods or method_names()),
            seeds=_seeds(seeds),
        )
        chosen = [name if name in lent_experiments else EXPERIMENTS.choose([name])[0] for name in of_experiments]
        asked = {
            "tasks_named": bool(of_tasks),
            "methods_named": bool(of_methods),
            "asked_for": experiments is not None,
        }
        units = [unit for name in chosen for unit in units_of(name, everything[name], plan, **asked)]
        store = Store(Path(out))
        with warnings.catch_warnings():
            warnings.simplefilter("error", InterruptedEstimateWarning)
            outcome = run(units, store, everything, jobs=jobs, progress=progress, force=force, prepare=lend)
        figures = draw_figures(store, [name for name in drawn(everything) if name in chosen], everything)
        summary = write_summary(store, everything)
    finally:
        CATALOG.take_back(lent_tasks)
        METHODS.take_back(lent_methods)
    return Results(store.root, summary, tuple(figures), {str(unit): message for unit, message in outcome.failed})


def _lend(tasks: Mapping[str, TaskSpec], methods: Mapping[str, Method]) -> None:
    CATALOG.lend(tasks)
    METHODS.lend(methods)


def _told(
    kind: str, given: Any, thing: Callable[[str | None, Any], tuple[str, Any]]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the names of what is asked for, and of these the things that were given themselves."""
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        several = not isinstance(given, str | Task | Method) and isinstance(given, Iterable)
        pairs = [(None, one) for one in (given if several else [given])]
    names: list[str] = []
    own: dict[str, Any] = {}
    for called, one in pairs:
        if isinstance(one, str) and called is None:
            names.append(one)
            continue
        name, found = thing(called, one)
        if name in own:
            raise ValueError(f"two {kind}s are called {name!r}; give them names in a mapping, or of their own")
        own[name] = found
        names.append(name)
    return tuple(dict.fromkeys(names)), own


def _task(called: str | None, one: Any) -> tuple[str, TaskSpec]:
    if not isinstance(one, Task):
        raise TypeError(f"tasks must be names or tasks (tasks.from_arrays, tasks.load), got {type(one).__name__}")
    if one.spec is None:
        one.rebuilt()  # says what to do
    assert one.spec is not None
    defaults = {"recipe": one.recipe_name, "flipped": len(one.flipped) / one.n_train}
    defaults["dtype"] = one.dtype or one.train.x.dtype
    return called or one.name, replace(one.spec, n_train=one.n_train, defaults=defaults)


def _method(called: str | None, one: Any) -> tuple[str, Method]:
    if not callable(one):
        raise TypeError(f"methods must be names, Methods or functions method(task, seed), got {type(one).__name__}")
    if not isinstance(one, Method):
        name = called or str(getattr(one, "__name__", type(one).__name__)).strip("<>").replace("_", "-")
        one = Method(one, label=name)
    name = called or re.sub(r"[^A-Za-z0-9_-]+", "-", one.label).strip("-").lower()
    return name, replace(one, run=_Handed(name, one.run, code_of(one.run)))


@dataclass(frozen=True)
class _Handed:
    """A method that was handed over: its arrays are made valuations, and its code is known where its source is not."""

    name: str
    run: Callable[..., Any]
    code_identity: str

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """What takes the arguments: `inspect.signature` looks here."""
        return self.run

    def __call__(self, task: Task, seed: np.random.SeedSequence, **more: Any) -> Valuation:
        """Return what the method makes of a task."""
        start = time.perf_counter()
        answer = self.run(task, seed, **more)
        if isinstance(answer, np.ndarray | list | tuple) or hasattr(answer, "__array__"):
            seconds = time.perf_counter() - start
            values = real_numbers(f"what method {self.name!r} returns", answer).astype(np.float64)
            return Valuation(values, stderr=None, evaluations=0, seconds=seconds, method=self.name)
        return answer  # type: ignore[no-any-return]


def _experiment(called: str | None, one: Any) -> tuple[str, Experiment]:
    missing = [what for what in ("units", "measure", "EXCLUSIVE") if not hasattr(one, what)]
    if missing:
        raise TypeError(
            f"experiments must be names, or modules with units, measure and EXCLUSIVE, got {type(one).__name__} "
            f"without {', '.join(missing)}"
        )
    name = called or str(getattr(one, "__name__", type(one).__name__)).rpartition(".")[2].replace("_", "-")
    return name, one


def _refuse_taken(kind: str, registry: Mapping[str, Any], lent: Mapping[str, Any]) -> None:
    for name in lent:
        if name in registry:
            raise ValueError(f"{kind}: {name!r} is already the name of one; call yours something else")
        if not re.fullmatch(NAME, name):
            raise ValueError(f"{kind}: a name is of letters, digits, dashes and underscores alone, got {name!r}")


def _seeds(given: Iterable[int]) -> tuple[int, ...]:
    seeds = tuple(dict.fromkeys(int(seed) for seed in given))
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds must be at least one, and not negative, got {list(seeds)}")
    return seeds
