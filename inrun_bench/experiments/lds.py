"""Linear datamodelling score: how well sums of values foretell what models trained on random halves will do.

Random halves of the training set are retrained, and the rank correlation is taken between the utility of each and the
sum of the values of its samples (TRAK, Park et al., ICML 2023, arXiv 2303.14186). It needs no Shapley values of a
reference, some hundred trainings whatever the number of samples, and judges any method that says what samples are
worth; its best is not 1, since values are a sum and utilities are not.

- ``lds``: of the mean validation loss, the utility that the values are of;
- ``lds_each``: of single validation samples, as in TRAK: every method values the training samples for one of them
  alone, and is judged by the loss of that one; the mean over several of them.

Each in the run's own game, and by conventional retraining: the half alone, in its own batches, by runs of other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import tasks
from inrun_bench import metrics
from inrun_bench.methods import valued
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.looks import dot, in_order, look, panels
from inrun_bench.report.markdown import count, interval_cell, markdown
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import read_values, values_unit, warm_up
from inrun_bench.runs.unit import REFERENCE, Row, Unit

SUMMARY = "sums of values against the loss of training on random halves, in the mean and by validation sample"
NEEDS = "tasks that are not large"
EXCLUSIVE = False
DEFAULT = False


@dataclass(frozen=True)
class Knobs:
    """How much is retrained.

    Attributes
    ----------
    subsets : int
        Random halves.
    runs : int
        Of other seeds, over which conventional retraining is averaged.
    queries : int
        Validation samples that are looked at alone.
    """

    subsets: int
    runs: int
    queries: int


KNOBS = {"quick": Knobs(subsets=100, runs=1, queries=3), "standard": Knobs(subsets=200, runs=4, queries=10)}

OWN, CONVENTIONAL = "own", "conventional"
SHARE = 0.5
MEAN, EACH = "lds", "lds_each"
MEASURES = {
    (MEAN, OWN): "mean loss, own game",
    (MEAN, CONVENTIONAL): "mean loss, conventional",
    (EACH, OWN): "single samples, own game",
    (EACH, CONVENTIONAL): "single samples, conventional",
}


def units(plan: Plan) -> list[Unit]:
    """One unit a method, and one of what was retrained."""
    knobs, found = plan.of_profile(KNOBS), []
    work = {"subsets": knobs.subsets, "runs": knobs.runs, "queries": knobs.queries}
    for task in plan.tasks_with_reference:
        for seed in plan.seeds:
            truth = Unit("lds", task, REFERENCE, seed, work)
            found.append(truth)
            found += [
                Unit("lds", task, method, seed, needs=(truth, values_unit(task, method, seed)))
                for method in plan.methods
            ]
    return found


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Judge a method's values of the mean loss, and its values of single validation samples."""
    task = tasks.load(unit.task, unit.seed)
    truth, own = unit.needs
    utilities, chosen = needs[truth], halves(truth, task.n_train)
    warm_up(unit.task)
    values = {-1: read_values(needs[own])}
    for query in chosen_queries(truth, task):
        values[query] = valued(unit.method, with_query(task, query), unit.random_seed).values
    rows: list[Row] = []
    for judge in (OWN, CONVENTIONAL):
        found = {query: _score(utilities, judge, query, values[query], chosen) for query in values}
        single = [score for query, score in found.items() if query >= 0]
        rows.append({"metric": MEAN, "judge": judge, "value": found[-1]})
        rows.append({"metric": EACH, "judge": judge, "value": float(np.mean(single)) if single else float("nan")})
    return rows


def measure_reference(unit: Unit, _needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Retrain random halves, and judge each by the validation set (query -1) and by single samples of it."""
    task = tasks.load(unit.task, unit.seed)
    chosen, rows = halves(unit, task.n_train), []
    for query in (-1, *chosen_queries(unit, task)):
        judged = task if query < 0 else with_query(task, query)
        games = {
            OWN: judged.trajectory_game(),
            CONVENTIONAL: judged.conventional_game(seeds=int(unit.settings["runs"])),
        }
        for judge, game in games.items():
            rows += [
                {"metric": "utility", "judge": judge, "query": query, "subset": subset, "value": float(utility)}
                for subset, utility in enumerate(game(chosen))
            ]
    return rows


def halves(truth: Unit, n: int) -> np.ndarray:
    """Return the random halves of n samples that are retrained, bool [subsets, n]."""
    return metrics.random_subsets(n, int(truth.settings["subsets"]), SHARE, truth.random_seed.spawn(2)[0])


def chosen_queries(truth: Unit, task: tasks.Task) -> list[int]:
    """Return which validation samples are looked at alone."""
    rng = np.random.default_rng(truth.random_seed.spawn(2)[1])
    return sorted(rng.permutation(len(task.validation))[: int(truth.settings["queries"])].tolist())


def with_query(task: tasks.Task, query: int) -> tasks.Task:
    """Return the task, judged by one of its validation samples alone."""
    one = slice(query, query + 1)
    return replace(task, validation=tasks.Split(task.validation.x[one], task.validation.y[one]))


def _score(utilities: pd.DataFrame, judge: str, query: int, values: np.ndarray, chosen: np.ndarray) -> float:
    own = utilities[(utilities["judge"] == judge) & (utilities["query"] == query)].sort_values("subset")
    return metrics.foretelling(values, chosen, own["value"].to_numpy())


BY = ("task", "method", "metric", "judge")


def draw(rows: pd.DataFrame) -> Figure:
    """Draw the scores of every method, a row a measure, a column a task; means with 95 % intervals over seeds."""
    rows = rows[rows["metric"].isin([MEAN, EACH])] if len(rows) else rows
    if rows.empty:
        return Figure()
    means, methods = over_seeds(rows, BY), in_order(rows["method"])[::-1]
    figure, names, axes = panels(rows, 2, height=0.19 * len(methods) + 0.9, sharex=True, sharey=True)
    for axes_row, metric in zip(axes, (MEAN, EACH), strict=True):
        for ax, task in zip(axes_row, names, strict=True):
            ax.axvline(0, color="0.4", linestyle=":", linewidth=1)
            for position, method in enumerate(methods):
                for judge, shift in ((OWN, 0.16), (CONVENTIONAL, -0.16)):
                    if (task, method, metric, judge) in means.index:
                        own = means.loc[(task, method, metric, judge)]
                        dot(ax, own, position + shift, look(method), size=5, filled=judge == OWN)
            ax.set_xlim(min(0.0, means["mean"].min()) - 0.1, 1.05)  # intervals of few seeds may be cut off
            ax.set_xlabel("of the mean loss" if metric == MEAN else "of single samples")
            ax.xaxis.set_tick_params(labelbottom=True)
        axes_row[0].set_yticks(range(len(methods)), [look(m).label for m in methods], fontsize=7)
    figure.suptitle(
        "linear datamodelling score (mean, 95 % interval over seeds)\nfilled: the run's own game; hollow: conventional "
        "retraining; dotted: chance",
        fontsize=9,
    )
    return figure


def table(rows: pd.DataFrame) -> str:
    """Return one table a task: a row a method, a column a measure."""
    rows = rows[rows["metric"].isin([MEAN, EACH])] if len(rows) else rows
    if rows.empty:
        return ""
    means, parts = over_seeds(rows, BY), []
    for task, own in rows.groupby("task", sort=False):
        seeds = own["seed"].nunique()
        cells = [
            [look(m).markdown, *(interval_cell(means, (task, m, *measure), seeds) for measure in MEASURES)]
            for m in in_order(own["method"])
        ]
        parts.append(f"{task}, {count(seeds, 'seed')}\n\n{markdown(cells, ['method', *MEASURES.values()])}")
    return (
        "**Linear datamodelling score**: rank correlation between the sum of a random half's values and what training "
        "on it gives [95 % confidence interval over seeds].\n\n" + "\n\n".join(parts)
    )
