"""Tables over several experiments: the one to look at first, and one a task with all that was asked of each method."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.looks import in_order, look
from inrun_bench.report.markdown import cell, count, interval_cell, markdown, mean_cell, of_several, seconds_cell
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import REFERENCE

__all__ = ["ANOTHER_LABEL", "game_table", "headline", "methods_table"]

OWN, CONVENTIONAL, ANOTHER = "own", "conventional", "another seed"  # games of the experiment `retraining`, and a row
ANOTHER_LABEL = "the reference under another seed"
RETRAINED = "by conventional retraining"  # the removal area


def headline(store: Store) -> str:
    """Return the one table to look at first: agreement with retraining and its price, by method and task.

    Retraining is that of the run's own game and, where the folder has it, of the conventional one: of this alone where
    nothing was asked of the other but how it differs.
    """
    agreement, retraining = store.read_all("agreement"), store.read_all("retraining")
    if "judge" not in retraining:  # none, or blocks of a reference and nothing yet that it judges
        retraining = retraining.iloc[:0]
    if agreement.empty:
        return "" if retraining.empty else _conventional(retraining)
    spearman = agreement[agreement["metric"] == "spearman"]
    table, cost = over_seeds(agreement), spearman.groupby(["task", "method"])["seconds"].median()
    names, seeds = list(dict.fromkeys(agreement["task"])), agreement["seed"].nunique()
    judged = {
        game: over_seeds(retraining[retraining["judge"] == game]) if len(retraining) else pd.DataFrame()
        for game in (OWN, CONVENTIONAL)
    }
    other, again = judged[CONVENTIONAL], judged[OWN]
    others_of = {task for task, *_ in other.index} if len(other) else set()
    columns = [(task, own) for task in names for own in ((True, False) if task in others_of else (True,))]

    def found(task: str, method: str, own: bool) -> str:
        if not own:
            return interval_cell(other, (task, method, "spearman"), seeds)
        if (task, method) not in cost.index:  # the other experiment judges more methods, by the same reference
            return interval_cell(again, (task, method, "spearman"), seeds) if len(again) else ""
        several = of_several(table, (task, method, "spearman"))
        return several or f"{interval_cell(table, (task, method, 'spearman'), seeds)}, {cost[task, method]:.2g} s"

    methods = {*agreement["method"], *(retraining["method"] if others_of else ())} - {REFERENCE, ANOTHER}
    cells = [[look(m).markdown, *(found(task, m, own) for task, own in columns)] for m in in_order(methods)]
    if others_of:
        same = (mean_cell(other, (task, ANOTHER, "spearman")) if not own else "" for task, own in columns)
        cells.append([f"*{ANOTHER_LABEL}*", *same])
    ends = []
    for task, own in columns:
        ceiling = mean_cell(table if own else other, (task, REFERENCE, "spearman_ceiling"))
        time = f", {seconds_cell(cost, (task, REFERENCE))} s" if own and (task, REFERENCE) in cost.index else ""
        ends.append(f"{ceiling}{time}")
    cells.append(["*noise ceiling; time of the reference*", *ends])
    heads = [task if own else f"{task}, conventional" for task, own in columns]
    about = (
        " A column of a task's name is of the run's own game, which flatters what follows the run; *conventional* is "
        "of training on the subset alone, in its own batches, by runs of other seeds."
    )
    return (
        "**Spearman correlation with Shapley values by retraining** [95 % confidence interval over "
        f"{count(seeds, 'seed')}], and wall time for the values of all samples on one core."
        f"{about if others_of else ''}\n\n{markdown(cells, ['method', *heads])}"
    )


def _conventional(retraining: pd.DataFrame) -> str:
    seeds = count(retraining["seed"].nunique(), "seed")
    return (
        "**Spearman correlation with Shapley values by conventional retraining** [95 % confidence interval over "
        f"{seeds}]: the subset alone, in its own batches, by runs of other seeds.\n\n"
        f"{game_table(retraining, CONVENTIONAL)}"
    )


def game_table(retraining: pd.DataFrame, game: str) -> str:
    """Return agreement with one game of retraining, by method and task; what bounds it stands in the last rows.

    Parameters
    ----------
    retraining : DataFrame
        Rows of the experiment of that name.
    game : str
        One of its games.
    """
    own = retraining[(retraining["judge"] == game) & retraining["metric"].isin(["spearman", "spearman_ceiling"])]
    means, names, seeds = over_seeds(own), list(dict.fromkeys(own["task"])), own["seed"].nunique()
    cells = [
        [look(method).markdown, *(interval_cell(means, (task, method, "spearman"), seeds) for task in names)]
        for method in in_order(set(own["method"]) - {REFERENCE, ANOTHER})
    ]
    ends = ((f"*{ANOTHER_LABEL}*", ANOTHER, "spearman"), ("*noise ceiling*", REFERENCE, "spearman_ceiling"))
    cells += [[label, *(mean_cell(means, (task, who, metric)) for task in names)] for label, who, metric in ends]
    return markdown(cells, ["method", *names])


def methods_table(store: Store) -> str:
    """One table a task: cost, agreement with the reference where it was looked at, removal, detection."""
    names = ("agreement", "removal", "detection", "values")
    agreement, removal, detection, values = (store.read_all(name) for name in names)
    judged, used = set(agreement["task"]), pd.concat([removal, detection])
    own = values[values["task"].isin(used["task"]) & (values["metric"] == "cost") & (values["method"] != REFERENCE)]
    found = pd.concat([agreement, *(rows[~rows["task"].isin(judged)] for rows in (own, used))])
    if found.empty:
        return ""
    table = over_seeds(pd.concat([agreement, used]))
    spent = found[found["metric"].isin(["spearman", "cost"])]
    cost = spent.groupby(["task", "method"])[["evaluations", "seconds"]].median()
    seeds = found.groupby("task")["seed"].nunique()
    columns: dict[str, Callable[[str, str], str]] = {
        "method": lambda _task, method: look(method).markdown,
        "trainings": lambda task, method: (
            of_several(table, (task, method, "spearman")) or cell(cost["evaluations"], (task, method), ",.0f")
        ),
        "time (s)": lambda task, method: (
            of_several(table, (task, method, "spearman")) or seconds_cell(cost["seconds"], (task, method))
        ),
        "Spearman [95 % CI]": lambda task, method: interval_cell(table, (task, method, "spearman"), seeds[task]),
        "Kendall": lambda task, method: mean_cell(table, (task, method, "kendall")),
        "Pearson": lambda task, method: mean_cell(table, (task, method, "pearson")),
        "top 10 %": lambda task, method: mean_cell(table, (task, method, "top10_overlap")),
        "bottom 10 %": lambda task, method: mean_cell(table, (task, method, "bottom10_overlap")),
        "within classes": lambda task, method: mean_cell(table, (task, method, "spearman_within_classes")),
        "error, best scale": lambda task, method: mean_cell(table, (task, method, "scaled_rmse")),
        "removal area (loss)": lambda task, method: mean_cell(table, (task, method, "area_loss")),
        RETRAINED: lambda task, method: mean_cell(table, (task, method, "conventional_area_loss")),
        "flipped labels, AUROC": lambda task, method: mean_cell(table, (task, method, "auroc")),
        "AP": lambda task, method: mean_cell(table, (task, method, "average_precision")),
    }
    parts = []
    for task in dict.fromkeys(found["task"]):
        rows = found[found["task"] == task]
        cells = {head: [cell(task, method) for method in in_order(rows["method"])] for head, cell in columns.items()}
        shown = {head: column for head, column in cells.items() if any(column)}
        about = "Not compared with a retraining reference; time is that for the values of all samples, on one core."
        if task in judged:
            about = "The reference's own row is one half of it against the other; noise ceiling of Spearman: "
            about += f"{mean_cell(table, (task, REFERENCE, 'spearman_ceiling'))}."
        title = f"**{task}**, {count(rows['seed'].nunique(), 'seed')}"
        lines = [list(line) for line in zip(*shown.values(), strict=True)]
        parts.append(f"{title}. {about}\n\n{markdown(lines, list(shown))}")
    return "\n\n".join(parts)
