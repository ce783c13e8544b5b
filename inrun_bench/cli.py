"""The command line: ``inrun-bench list | run | figures | report | pack | renew | reference | verify``."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from baselines import InterruptedEstimateWarning
from inrun_bench import __version__
from inrun_bench.experiments import EXPERIMENTS, units_of
from inrun_bench.methods import METHODS, method_names, method_of
from inrun_bench.methods.method import OPTIONS, Method
from inrun_bench.reference import blocks as reference
from inrun_bench.reference.blocks import references
from inrun_bench.reference.make import extend, note_present_task, thin
from inrun_bench.reference.verify import verify
from inrun_bench.report import update_page, write_summary
from inrun_bench.report.figures import draw_figures, drawn
from inrun_bench.report.markdown import markdown
from inrun_bench.report.page import write_page
from inrun_bench.report.paper import FORMATS, Paper
from inrun_bench.report.paper_figures import print_figures
from inrun_bench.report.table_files import TABLE_FORMATS, write_tables
from inrun_bench.runs.backends import BACKENDS
from inrun_bench.runs.fingerprint import outdated
from inrun_bench.runs.forecast import forecast
from inrun_bench.runs.plan import PROFILES, Plan
from inrun_bench.runs.renew import renew
from inrun_bench.runs.runner import run, to_measure
from inrun_bench.runs.store import Overlay, Store
from inrun_bench.runs.unit import DEFAULT_RECIPE, Unit, title_of
from tasks import CATALOG
from tasks import names as task_names
from tasks.registry import unknown_name

__all__ = ["main"]

UNITS_FAILED, NOT_PROVED, BAD_INPUT = 1, 1, 2
DEFAULT_LIMIT = 120.0  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 where units or proofs failed, 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", InterruptedEstimateWarning)  # Ctrl-C proves nothing by half an estimate
            code: int = options.command(options)
    except (ValueError, OSError) as error:
        print(f"inrun-bench: error: {error}", file=sys.stderr)
        return BAD_INPUT
    return code


def _list(_options: argparse.Namespace) -> int:
    lists = {
        "experiments": {name: experiment.SUMMARY for name, experiment in EXPERIMENTS.items()},
        "tasks": {name: task.summary for name, task in CATALOG.items()},
        "methods": {name: _described(method_of(name)) for name in METHODS},
        "profiles": {name: f"seeds {', '.join(map(str, p.seeds))}" for name, p in PROFILES.items()},
        "what a method may take": OPTIONS,
    }
    for title, lines in lists.items():
        print(f"{title}:")
        width = max(map(len, lines))
        for name, text in lines.items():
            print(f"  {name:{width}}  {text}".rstrip())
    for registry in (CATALOG, METHODS):
        for name, why in registry.broken.items():
            print(f"inrun-bench: plug-in {name!r} cannot be used: {why}", file=sys.stderr)
    return 0


def _described(method: Method) -> str:
    taken = ", ".join(option for option in OPTIONS if option in method.options)
    return f"{method.label} [{taken}]" if taken else method.label


def _seeds(options: argparse.Namespace) -> tuple[int, ...]:
    if any(seed < 0 for seed in options.seed):
        raise ValueError(f"--seed must not be negative, got {min(options.seed)}")
    return tuple(dict.fromkeys(options.seed))


def _run(options: argparse.Namespace) -> int:
    _check_workers(options)
    profile = PROFILES[options.profile]
    plan = Plan(
        profile=options.profile,
        tasks=CATALOG.choose(options.task or profile.tasks or task_names(large=False)),
        methods=METHODS.choose(options.method or profile.methods or method_names()),
        seeds=_seeds(options) or profile.seeds,
        reference_folder=options.reference,
    )
    default = [name for name, experiment in EXPERIMENTS.items() if experiment.DEFAULT]
    chosen = EXPERIMENTS.choose(options.experiment or default)
    if any(name in _alone() for name in chosen):
        return _run_alone(chosen, options)
    if options.budget is not None or options.limit is not None:
        raise ValueError(f"--budget and --limit are for experiments that run alone ({', '.join(_alone())})")
    asked = {
        "tasks_named": bool(options.task),
        "methods_named": bool(options.method),
        "asked_for": bool(options.experiment),
    }
    units = [unit for name in chosen for unit in units_of(name, EXPERIMENTS[name], plan, **asked)]
    if options.dry_run:
        return _dry_run(units, options)
    store = Store(_folder(options))
    outcome = run(
        units,
        store,
        EXPERIMENTS,
        jobs=options.jobs,
        backend=options.backend,
        scheduler=options.scheduler,
        progress=not options.quiet,
        force=options.force,
    )
    for change, count in outcome.outdated.items():
        print(f"out of date, and measured again: {count} units, for {change}")
    if outcome.done or outcome.failed:
        print(f"{outcome.done} units done, {outcome.skipped} were there already, {len(outcome.failed)} failed")
    else:
        print(f"nothing to do: the rows of all {outcome.skipped} units are there already")
    draw_figures(store, drawn(EXPERIMENTS), EXPERIMENTS)
    print(f"\n{write_summary(store, EXPERIMENTS)}")
    print(f"rows, figures and this summary are in {store.root}")
    _note_outdated(store)
    for unit, message in outcome.failed:
        print(f"inrun-bench: failed: {unit}: {message}", file=sys.stderr)
    return UNITS_FAILED if outcome.failed else 0


def _dry_run(units: Sequence[Unit], options: argparse.Namespace) -> int:
    """Say what would be measured, and how long it will take by what took how long before."""
    folder = _folder(options)
    own = Overlay((Store(folder, create=False),) if (folder / "store.json").exists() else ())
    published = (
        Store(marker.parent, create=False) for marker in sorted(reference.PUBLISHED.parent.glob("*/store.json"))
    )
    before = (each for store in (*own.stores, *published) for each in store.units().values())
    missing, there = to_measure(units, own, EXPERIMENTS, force=options.force)
    jobs = os.cpu_count() or 1 if options.jobs == -1 else options.jobs
    told = forecast(missing, before, EXPERIMENTS, jobs)
    counted: dict[tuple[str, str], list[Unit]] = {}
    for unit in missing:
        counted.setdefault((unit.experiment, unit.task), []).append(unit)
    cells = [
        [experiment, task, str(len(own)), _minutes(sum(told.of_unit.get(unit, math.nan) for unit in own))]
        for (experiment, task), own in counted.items()
    ]
    if cells:
        print(markdown(cells, ["experiment", "task", "units", "core minutes"]), end="\n\n")
    print(f"{len(missing)} units to measure, {len(there)} are there already")
    if missing:
        known = f"about {_minutes(told.seconds)} minutes, {options.jobs if options.jobs > 0 else jobs} units at a time"
        lacking = f"; not known for {len(told.unknown)} of them" if told.unknown else ""
        print(f"{known if told.of_unit else 'no time of units like these was noted before'}{lacking}")
    return 0


def _minutes(seconds: float) -> str:
    return "?" if math.isnan(seconds) else f"{seconds / 60:.1f}"


def _run_alone(chosen: Sequence[str], options: argparse.Namespace) -> int:
    """Run an experiment that minds its units itself."""
    if len(chosen) > 1:
        raise ValueError(
            f"{' and '.join(_alone())} runs alone, got {', '.join(chosen)}; run the others in a command of their own"
        )
    others = ("task", "method", "seed", "force", "quiet", "scheduler", "reference", "dry_run")
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(options, name)]
    given += [
        f"--{name}" for name, default in (("jobs", -1), ("backend", "local")) if getattr(options, name) != default
    ]
    if given:
        raise ValueError(f"{chosen[0]} says itself what it measures, and runs it one by one; leave {given[0]} away")
    limit = DEFAULT_LIMIT if options.limit is None else options.limit
    store = Store(options.out or Path("runs", chosen[0]))
    code: int = EXPERIMENTS[chosen[0]].run_alone(store, limit=limit, budget=options.budget)  # type: ignore[attr-defined]
    return code


def _alone() -> list[str]:
    return [name for name, experiment in EXPERIMENTS.items() if hasattr(experiment, "run_alone")]


def _figures(options: argparse.Namespace) -> int:
    names = tuple(dict.fromkeys(options.experiment)) or drawn(EXPERIMENTS)
    for name in names:
        if name not in drawn(EXPERIMENTS):
            raise ValueError(unknown_name("figure", name, list(drawn(EXPERIMENTS))))
    paper, formats = _paper(options)
    store = Store(_folder(options), create=False)
    if paper is None:
        written = draw_figures(store, names, EXPERIMENTS)
    else:
        written = print_figures(store, names, EXPERIMENTS, paper, formats)
    for path in written:
        print(path)
    for name in dict.fromkeys(options.experiment):
        if name not in store.experiments():
            print(f"inrun-bench: note: no rows of {name} in {store.root}, so that there is no figure", file=sys.stderr)
    _note_outdated(store)
    return 0


def _paper(options: argparse.Namespace) -> tuple[Paper | None, Sequence[str]]:
    """Return the page that figures are drawn for, None for a screen, and the formats of their files."""
    given = {name: getattr(options, name) for name in ("width", "height", "font_size", "font")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.style == "screen":
        if asked := [*given, *(["format"] if options.format else [])]:
            raise ValueError(f"--{asked[0].replace('_', '-')} is of figures for print; add --style paper")
        return None, ()
    return Paper(**given), tuple(dict.fromkeys(options.format or ("pdf",)))


def _report(options: argparse.Namespace) -> int:
    store = Store(_folder(options), create=False)
    print(write_summary(store, EXPERIMENTS))
    for path in write_tables(store, EXPERIMENTS, [form for form in TABLE_FORMATS if form in options.format]):
        print(path)
    if options.into:
        update_page(options.into, store, EXPERIMENTS)
    stale = outdated(store.units(), EXPERIMENTS)
    if options.html:
        print(f"\n{write_page(store, EXPERIMENTS, stale)}")
    _note(store, *stale)
    return 0


def _pack(options: argparse.Namespace) -> int:
    store = Store(_folder(options), create=False)
    if options.utilities is not None:
        if options.utilities < 0:
            raise ValueError(f"--utilities must not be negative, got {options.utilities}")
        print(f"utilities of {thin(store, options.utilities)} blocks are left out")
    for experiment, count in store.pack().items():
        print(f"{experiment}: {count} units in one file")
    return 0


def _renew(options: argparse.Namespace) -> int:
    _check_workers(options)
    store = Store(_folder(options), create=False)
    renewal = renew(
        store, EXPERIMENTS, draw=options.draw, seed=options.draw_seed, jobs=options.jobs, progress=not options.quiet
    )
    for unit, what in renewal.differing:
        print(f"inrun-bench: not what it was: {unit}: {what}", file=sys.stderr)
    print(
        f"{len(renewal.drawn)} of {len(renewal.changed)} units whose code has changed were measured again, "
        f"{len(renewal.drawn) - len(renewal.differing)} are equal to the last bit; "
        f"{'nothing was' if renewal.differing else 'all of them were'} noted anew, {renewal.left} others left"
    )
    if renewal.differing:
        return NOT_PROVED
    store.pack()
    return 0


def _reference(options: argparse.Namespace) -> int:
    _check_workers(options)
    if not 0 < options.reliability < 1:
        raise ValueError(f"--reliability must lie between 0 and 1, got {options.reliability}")
    if not 0 <= options.minutes < math.inf:
        raise ValueError(f"--minutes must be a number of at least 0, got {options.minutes}")
    store = Store(options.out)
    published = references(options.reference).stores
    having = [task for task in task_names(large=False) if options.recipe in CATALOG[task].recipes]
    for seed, task in itertools.product(_seeds(options), CATALOG.choose(options.task or having)):
        found = extend(
            store,
            task,
            seed,
            recipe=options.recipe,
            reliability=options.reliability,
            seconds=60 * options.minutes,
            jobs=options.jobs,
            backend=options.backend,
            scheduler=options.scheduler,
            earlier=published,
        )
        reached = "exact" if found.exact else _listed(found.reliability(), ".4f")
        title = _title(task, seed, found.recipe)
        print(f"{title}: {reached}; {found.evaluations:,} trainings, {found.seconds:,.0f} core seconds", flush=True)
    print(f"\n{write_summary(store, EXPERIMENTS)}")
    print(f"rows and this summary are in {store.root}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.coalitions < 1:
        raise ValueError(f"--coalitions must be at least 1, got {options.coalitions}")
    if options.remake is not None and options.remake < 0:
        raise ValueError(f"--remake must not be negative, got {options.remake}")
    if options.note and options.reference is None:
        raise ValueError("--note needs --reference DIR, the folder of references that it writes into")
    own = Store(options.reference, create=False) if options.note else None
    store = references(options.reference) if own is None else Overlay((own,))
    proofs = [
        verify(store, task, seed, recipe=recipe, coalitions=options.coalitions, remake=options.remake)
        for task, seed, recipe in _claimed(store, options)
    ]
    for proof in proofs:
        verdict = "DOES NOT HOLD" if not proof.holds else "holds" if proof.looked else "NOT PROVED"
        bits = "" if proof.same_game else "; data, weights or code differ from those of the reference in some bits"
        if own is not None and proof.holds and proof.looked:
            noted = note_present_task(own, proof.task, proof.seed, proof.recipe)
            bits += f"; noted in {noted} blocks that they are of the task as it is now"
        title = _title(proof.task, proof.seed, proof.recipe)
        remade = f"block {', '.join(map(str, proof.remade))} made anew within {_listed(proof.remade_errors, '.1g')}"
        print(
            f"{title}: {verdict}; values of {proof.replayed} of {proof.blocks} blocks from stored utilities within "
            f"{proof.replay_error:.1g}, {proof.retrained} retrained coalitions within {_listed(proof.errors, '.1g')}, "
            f"{remade if proof.remade else 'no block made anew'}{bits}"
            f"{'' if proof.looked else '; --remake 1 makes a block anew, however long it takes'}"
        )
    return 0 if all(proof.holds and proof.looked for proof in proofs) else NOT_PROVED


def _claimed(store: Overlay, options: argparse.Namespace) -> list[tuple[str, int, str]]:
    """Return task, seed and recipe of what is to be proved; references that are asked for and missing come first."""
    seeds = _seeds(options)
    there = [
        (task, seed, recipe)
        for seed, task in itertools.product(seeds, CATALOG.choose(options.task))
        for recipe in reference.recipes(store, task, seed)
        if options.recipe in (None, recipe)
    ]
    having = {(task, seed) for task, seed, _ in there}
    asked_for = CATALOG.choose(options.task) if options.task or not there else ()
    missing = [
        (task, seed, options.recipe or DEFAULT_RECIPE)
        for seed, task in itertools.product(seeds, asked_for)
        if (task, seed) not in having
    ]
    return missing + there


def _title(task: str, seed: int, recipe: str) -> str:
    return title_of(task, recipe) + (f", seed {seed}" if seed else "")


def _note_outdated(store: Store) -> None:
    """Say on stderr which rows of a folder are not what would be measured now."""
    _note(store, *outdated(store.units(), EXPERIMENTS))


def _note(store: Store, count: int, reasons: Counter[str]) -> None:
    if count:
        listed = "; ".join(f"{why} ({number})" for why, number in reasons.most_common())
        print(
            f"inrun-bench: note: the rows of {count} units in {store.root} are out of date: {listed}. "
            "'inrun-bench run' measures them again",
            file=sys.stderr,
        )


def _listed(numbers: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name} {number:{form}}" for name, number in numbers.items())


def _check_workers(options: argparse.Namespace) -> None:
    if options.jobs == 0 or options.jobs < -1:
        raise ValueError(f"--jobs must be a positive number, or -1 for one a core; got {options.jobs}")
    BACKENDS[options.backend]


def _folder(options: argparse.Namespace) -> Path:
    out: Path | None = options.out
    return out or Path("runs", options.profile)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="inrun-bench", description="In-Run Data Shapley, judged against retraining.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="list | run | figures | report | pack | renew | reference | verify"
    )

    command = commands.add_parser("list", help="name the experiments, tasks, methods and profiles")
    command.set_defaults(command=_list)

    command = commands.add_parser("run", help="run experiments; what was run before is not run again")
    default = ", ".join(name for name, experiment in EXPERIMENTS.items() if experiment.DEFAULT)
    command.add_argument("experiment", nargs="*", help=f"experiments to run (default: {default})")
    command.add_argument("--task", nargs="+", default=[], help="tasks (default: the profile's)")
    command.add_argument("--method", nargs="+", default=[], help="methods (default: the profile's)")
    command.add_argument("--seed", nargs="+", type=int, default=[], help="seeds (default: the profile's)")
    _add_workers(command)
    command.add_argument("--quiet", action="store_true", help="show no progress bar")
    command.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help=f"of {', '.join(_alone())}: begin no unit that is not planned to end by then",
    )
    command.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        help=f"of {', '.join(_alone())}: what one try at a unit may take, or twice what is planned where that is more "
        f"(default: {DEFAULT_LIMIT:.0f})",
    )
    command.add_argument("--force", action="store_true", help="measure anew what is there already, too")
    command.add_argument(
        "--dry-run", action="store_true", help="only say what would be measured, and about how long it will take"
    )
    _add_reference_folder(command)
    _add_place(command)
    command.set_defaults(command=_run)

    command = commands.add_parser("figures", help="draw figures from stored rows, without running anything")
    command.add_argument("experiment", nargs="*", help="figures to draw (default: all)")
    command.add_argument(
        "--style",
        choices=("screen", "paper"),
        default="screen",
        help="screen: PNG and SVG in FOLDER/figures (default); paper: for print, in FOLDER/figures/paper",
    )
    default_paper = Paper()
    for name, what in (("width", "inches"), ("height", "inches at most, a file"), ("font-size", "points")):
        value = getattr(default_paper, name.replace("-", "_"))
        command.add_argument(f"--{name}", type=float, help=f"of figures for print: {what} (default: {value:g})")
    command.add_argument("--font", help=f"of figures for print: a font (default: {default_paper.font})")
    command.add_argument(
        "--format",
        nargs="+",
        type=_one_of("format", FORMATS),
        help=f"of figures for print: {', '.join(FORMATS)} (default: pdf)",
    )
    _add_place(command)
    command.set_defaults(command=_figures)

    command = commands.add_parser("report", help="write the summary tables from stored rows")
    command.add_argument(
        "--into",
        type=Path,
        help="also put the first of them between the 'summary' marks of this Markdown file, and those of experiments "
        "between marks of their names, where it has any; marks that name the folder, too, are for it alone",
    )
    command.add_argument(
        "--format",
        nargs="+",
        type=_one_of("format", ("markdown", *TABLE_FORMATS)),
        default=["markdown"],
        help=f"of the tables: markdown, which is always written, {', '.join(TABLE_FORMATS)}; the others go to "
        "FOLDER/tables (default: markdown)",
    )
    command.add_argument(
        "--html", action="store_true", help="also write report.html, a page of tables and figures, into the folder"
    )
    _add_place(command)
    command.set_defaults(command=_report)

    command = commands.add_parser("pack", help="put the rows of each experiment into one file")
    command.add_argument(
        "--utilities",
        type=int,
        metavar="BLOCKS",
        help="keep the utilities of so many blocks of each reference of seed 0, and no others (default: all)",
    )
    _add_place(command)
    command.set_defaults(command=_pack)

    command = commands.add_parser(
        "renew", help="measure some units again whose code has changed, and note the others where none is another"
    )
    command.add_argument("--draw", type=int, default=60, help="units to measure again, at least (default: 60)")
    command.add_argument("--draw-seed", type=int, default=0, help="of the draw (default: 0)")
    command.add_argument("--quiet", action="store_true", help="show no progress bar")
    _add_workers(command)
    _add_place(command)
    command.set_defaults(command=_renew)

    command = commands.add_parser("reference", help="make reference values, or make those that are there more reliable")
    _add_reference(command)
    command.add_argument(
        "--recipe", default=DEFAULT_RECIPE, help=f"recipe of the trainings (default: {DEFAULT_RECIPE})"
    )
    command.add_argument(
        "--reliability", type=float, default=0.99, help="split-half Spearman correlation to reach (default: 0.99)"
    )
    place = Path("runs", "reference")
    command.add_argument("--out", type=Path, default=place, help=f"where new blocks go (default: {place})")
    command.add_argument("--minutes", type=float, default=60.0, help="when to stop all the same, a task (default: 60)")
    _add_workers(command)
    command.set_defaults(command=_reference)

    command = commands.add_parser("verify", help="prove reference values by retraining random coalitions")
    _add_reference(command)
    command.add_argument("--recipe", help="recipe of the trainings (default: all of which there are references)")
    command.add_argument("--coalitions", type=int, default=64, help="how many to retrain, a task (default: 64)")
    command.add_argument(
        "--remake",
        type=int,
        metavar="BLOCKS",
        help="how many blocks without utilities to make anew, a reference (default: one, where that is quick)",
    )
    command.add_argument(
        "--note",
        action="store_true",
        help="where the proof holds, note in the blocks in --reference that they are of the tasks as they are now",
    )
    command.set_defaults(command=_verify)
    return parser


def _add_reference(command: argparse.ArgumentParser) -> None:
    command.add_argument("--task", nargs="+", default=[], help="tasks (default: all that are not large)")
    command.add_argument("--seed", nargs="+", type=int, default=[0], help="seeds of the tasks (default: 0)")
    _add_reference_folder(command)


def _add_reference_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="a folder of your own references, read beside the published ones",
    )


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--jobs", type=int, default=-1, help="units at a time (default: -1, one a core)")
    command.add_argument("--backend", default="local", help=f"where units run: {', '.join(BACKENDS)} (default: local)")
    command.add_argument(
        "--scheduler",
        help="a cluster that is running, tcp://host:port (dask), or host:port, auto or ray://host:port (ray); "
        "without it one of --jobs workers is started on this machine",
    )


def _add_place(command: argparse.ArgumentParser) -> None:
    profiles = ", ".join(PROFILES)
    command.add_argument(
        "--profile",
        type=_one_of("profile", PROFILES),
        default="quick",
        help=f"how much work: {profiles} (default: quick)",
    )
    command.add_argument("--out", type=Path, help="results folder (default: runs/PROFILE)")


def _one_of(what: str, known: Iterable[str]) -> Callable[[str], str]:
    """Return what reads a name from the command line, or refuses one that is not known."""
    names = list(known)

    def read(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(unknown_name(what, name, names))
        return name

    return read


if __name__ == "__main__":
    sys.exit(main())
