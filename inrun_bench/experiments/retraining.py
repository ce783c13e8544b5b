"""Retraining: how far values agree with retraining, by what retraining is taken to mean.

In-Run values follow one run: its initial weights, its batches, its steps. The game that they approximate step by step
retrains by that run, with the gradients of absent samples set to zero. A reader who removes samples does something
else. So each method is judged by several games, from the run's own to what people do:

==============  ================================================================================================
game            a coalition is worth what this model is worth
==============  ================================================================================================
own             the run's own weights and batches; absent samples contribute zero, steps keep their denominator
renormalised    the same, but that the mean of a batch is over the samples present
other runs      as `own`, by runs of other seeds of weights and batches, one a block of the reference
conventional    trained on the coalition alone, in batches of its own, by runs of other seeds, one a block
==============  ================================================================================================

The reference of a game is the mean of blocks of permutations; that of `own` is the one by which
:mod:`~inrun_bench.experiments.agreement` judges, where the ceiling is explained: what agreement the noise of a
reference leaves to a perfect method, by its halves of even and of odd blocks. Where each block is a run of its own,
that is the noise of runs, too. The row *the reference under another seed* says how far the run's own game agrees with
itself when nothing but the seed of weights and batches is another: more can hardly be asked of what sees one run alone.

Utility: minus the validation loss. Spearman correlations, means over seeds of the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import tasks
from baselines import Game, permutation_shapley
from baselines.permutation import SHIFTS
from inrun_bench import metrics
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.leaderboard import Question
from inrun_bench.report.looks import in_order, legend, look, panels
from inrun_bench.report.markdown import count
from inrun_bench.report.overview import ANOTHER_LABEL, game_table
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.stored_values import read_reference, read_values, reference_blocks, values_unit, warm_up
from inrun_bench.runs.unit import REFERENCE, Row, Setting, Unit

SUMMARY = "agreement with retraining of four kinds, from the run's own game to conventional retraining"
EXCLUSIVE = False
DEFAULT = True
TASKS = {
    "quick": ("breast-cancer-logreg", "digits-mlp"),
    "standard": (
        "breast-cancer-logreg",
        "diabetes-ridge",
        "digits-mlp",
        "digits-sgd-large-lr",
        "iris-logreg",
        "wine-logreg",
    ),
}
NEEDS = "tasks that are not large"

OWN = "own"
GAMES = (OWN, "renormalised", "other runs", "conventional")
ANOTHER = "another seed"  # a game: the run's own, of another run
QUESTIONS = tuple(
    Question(label, "spearman", "Spearman correlation", where={"judge": game}, bound="spearman_ceiling")
    for label, game in (
        ("agreement with the run's own game", OWN),
        ("agreement with conventional retraining", "conventional"),
    )
)
PANELS_A_ROW = 2
TITLES = {
    "conventional": "Conventional retraining: on the coalition alone, in runs of other seeds",
    "other runs": "Runs of other seeds: absent samples contribute zero",
    "renormalised": "The run's own weights and batches: the mean of a batch is over the samples present",
    OWN: "The run's own game: absent samples contribute zero",
}
WIDTH = 0.8  # of what stands side by side for a game


@dataclass(frozen=True)
class Knobs:
    """How much work references are.

    Attributes
    ----------
    permutations : mapping of str to int
        Behind the reference of each game, by task; ``"default"`` is for tasks not named. A multiple of ``10 * blocks``.
    blocks : int
        Independent parts of a reference, an even number; and, where there are several, its runs.
    conventional_blocks : mapping of str to int
        Where conventional retraining takes more of them, by task: so many that its halves agree to about 0.9.
    more_methods : tuple of str
        Judged beside those of the plan.
    """

    permutations: Mapping[str, int]
    blocks: int
    conventional_blocks: Mapping[str, int] = field(default_factory=dict)
    more_methods: tuple[str, ...] = ("inrun-first-seeds-20", "few-run-4-seeds-20")


KNOBS = {
    "quick": Knobs({"breast-cancer-logreg": 120, "default": 40}, blocks=4),
    "standard": Knobs(
        {
            "breast-cancer-logreg": 4000,
            "diabetes-ridge": 4000,
            "iris-logreg": 4000,
            "wine-logreg": 4000,
            "digits-mlp": 800,
            "default": 400,
        },
        blocks=20,
        conventional_blocks={"breast-cancer-logreg": 40, "digits-mlp": 60, "iris-logreg": 80, "wine-logreg": 40},
    ),
}


def units(plan: Plan) -> list[Unit]:
    """One unit a method, one for each game's reference against itself, and one a block of each reference."""
    found = []
    methods = dict.fromkeys((*plan.methods, *plan.of_profile(KNOBS).more_methods))
    for task in plan.tasks_with_reference:
        for seed in plan.seeds:
            blocks = tuple(unit for game in (*GAMES, ANOTHER) for unit in _blocks(plan, task, seed, game))
            found += [Unit("retraining", task, method, seed, needs=blocks) for method in (REFERENCE, ANOTHER)]
            found += [
                Unit("retraining", task, method, seed, needs=(values_unit(task, method, seed), *blocks))
                for method in methods
            ]
    return found


def _blocks(plan: Plan, task: str, seed: int, game: str) -> tuple[Unit, ...]:
    if game == OWN:
        return reference_blocks(plan, task, seed)
    knobs = plan.of_profile(KNOBS)
    permutations = knobs.permutations.get(task, knobs.permutations["default"]) // knobs.blocks
    settings: dict[str, Setting] = {"game": game, "permutations": permutations, "shifts": SHIFTS}
    blocks = knobs.conventional_blocks.get(task, knobs.blocks) if game == "conventional" else knobs.blocks
    return tuple(Unit("retraining", task, REFERENCE, seed, {**settings, "block": block}) for block in range(blocks))


def measure(unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Make one block of a game's reference, or compare values with the references of all games."""
    if "game" in unit.settings:
        return list(_block(unit))
    blocks_of: dict[str, list[pd.DataFrame]] = {game: [] for game in (*GAMES, ANOTHER)}
    for need, rows_of_need in needs.items():
        if need.method == REFERENCE:
            blocks_of[str(need.settings.get("game", OWN))].append(rows_of_need)
    references = {game: read_reference(blocks) for game, blocks in blocks_of.items()}
    rows: list[Row] = []
    for game in GAMES:
        blocks = references[game]
        truth = blocks.mean(axis=0)
        if unit.method == REFERENCE:
            halves = metrics.agreement(blocks[0::2].mean(axis=0), blocks[1::2].mean(axis=0))
            seen = {**halves, "spearman_ceiling": metrics.ceiling(halves["spearman"])}
        elif unit.method == ANOTHER:
            seen = metrics.agreement(references[ANOTHER].mean(axis=0), truth)
        else:
            seen = metrics.agreement(read_values(needs[unit.needs[0]]), truth)
        rows += [{"metric": name, "value": value, "judge": game} for name, value in seen.items()]
    return rows


def _block(unit: Unit) -> Iterable[Row]:
    task = tasks.load(unit.task, unit.seed)
    warm_up(unit.task)
    found = permutation_shapley(
        _game(task, str(unit.settings["game"]), int(unit.settings["block"])),
        n_permutations=int(unit.settings["permutations"]),
        antithetic=True,
        shifts=int(unit.settings["shifts"]),
        rng=unit.random_seed,
    )
    yield {
        "metric": "cost",
        "value": float(found.evaluations),
        "evaluations": found.evaluations,
        "seconds": found.seconds,
    }
    for sample, value in enumerate(found.values):
        yield {"metric": "value", "sample": sample, "value": float(value)}


def _game(task: tasks.Task, game: str, block: int) -> Game:
    """Return the game that a block of a reference plays."""
    seeds = task.run_seeds(block + 2)
    if game == "conventional":
        return task.conventional_game(seeds=seeds[-1:])
    run = {"other runs": task.rerun(seeds[-1]), ANOTHER: task.rerun(seeds[0])}.get(game, task)
    return run.trajectory_game(renormalised=game == "renormalised")


def draw(rows: pd.DataFrame) -> Figure:
    """Draw one panel a task: agreement with each game, from the run's own to conventional retraining.

    Means with 95 % intervals over seeds.
    """
    rows = rows[rows["metric"].isin(["spearman", "spearman_ceiling"])]
    if rows.empty:
        return Figure()
    means = over_seeds(rows, ("task", "method", "judge", "metric"))
    figure, names, axes = panels(rows, 1, height=3.6, most_columns=PANELS_A_ROW, sharey=True)
    figure.set_size_inches(5.3 * min(len(names), PANELS_A_ROW), figure.get_size_inches()[1])
    methods = in_order(m for m in rows["method"] if m not in (REFERENCE, ANOTHER, "random"))
    for number, (ax, task) in enumerate(zip(axes[0], names, strict=True)):
        for place, method in enumerate(methods):
            style = look(method)
            own = [_of(means, (task, method, game, "spearman")) for game in GAMES]
            x = np.arange(len(GAMES)) + WIDTH * ((place + 0.5) / len(methods) - 0.5)
            mean, low, high = np.array(own).T
            ax.errorbar(
                x,
                mean,
                yerr=[mean - low, high - mean],
                color=style.color,
                marker=style.marker,
                linestyle="none",
                elinewidth=0.8,
                markersize=6,
            )
        for method, metric, line in ((REFERENCE, "spearman_ceiling", "--"), (ANOTHER, "spearman", ":")):
            for place, game in enumerate(GAMES):
                level = _of(means, (task, method, game, metric))[0]
                ax.plot(
                    [place - WIDTH / 2, place + WIDTH / 2], [level] * 2, color="black", linestyle=line, linewidth=1.2
                )
        ax.set_xticks(range(len(GAMES)), GAMES)
        if len(names) - number <= PANELS_A_ROW:
            ax.set_xlabel("what a coalition is retrained by")
        shown = means.loc[[key for key in means.index if key[1] != "random"], "mean"]
        ax.set_ylim(min(0.0, shown.min()) - 0.06, 1.05)  # intervals of few seeds may be cut off, points are not
        if number % PANELS_A_ROW == 0:
            ax.set_ylabel("Spearman correlation with values\nby retraining (95 % CI over seeds)")
    extra = [
        Line2D([], [], color="black", linestyle="--", label="noise ceiling"),
        Line2D([], [], color="black", linestyle=":", label=ANOTHER_LABEL),
    ]
    legend(figure, methods, extra)
    return figure


def table(rows: pd.DataFrame) -> str:
    """Return one table a game, from conventional retraining to the run's own: agreement of each method on each task."""
    if "judge" not in rows:  # blocks of a reference, and nothing yet that it judges
        return ""
    judges = rows["judge"].unique()
    told = [
        (f"{what}, {count(rows.loc[rows['judge'] == game, 'seed'].nunique(), 'seed')}", game_table(rows, game))
        for game, what in TITLES.items()
        if game in judges
    ]
    if not told:
        return ""
    return (
        "**Retraining**: Spearman correlation [95 % confidence interval over seeds] with Shapley values of four games "
        "of retraining. The last rows bound it: what the noise of the reference leaves to a perfect method, and how "
        "far the run's own game under another seed agrees.\n\n" + "\n\n".join(map("\n\n".join, told))
    )


def _of(means: pd.DataFrame, key: tuple[str, str, str, str]) -> tuple[float, float, float]:
    """Return mean, low and high; NaN where there is none."""
    if key not in means.index:
        return np.nan, np.nan, np.nan
    mean, low, high = means.loc[key, ["mean", "low", "high"]]
    return float(mean), float(low), float(high)
