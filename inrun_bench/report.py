"""Summary tables in Markdown, made from stored rows alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from inrun_bench import reference
from inrun_bench.figures.cost import with_recipes
from inrun_bench.figures.estimators import efficiencies
from inrun_bench.figures.fidelity import converging_rates
from inrun_bench.figures.overhead import WORKLOADS, of_tasks, of_workloads
from inrun_bench.figures.style import in_order, look
from inrun_bench.intervals import over_seeds
from inrun_bench.store import Store
from inrun_bench.unit import REFERENCE
from tasks import CATALOG

__all__ = ["headline", "update_section", "write_summary"]

BEGIN, END = "<!-- summary: begin (inrun-bench report --into) -->", "<!-- summary: end -->"
SMALLEST = 1e-6  # smaller shares are nothing but rounding
AGREEMENT = ("Spearman [95 % CI]", "Kendall", "Pearson", "top 10 %")  # columns that need a reference


def write_summary(store: Store) -> str:
    """Write ``summary.md`` into the store's folder and return its text."""
    tables = (
        headline,
        _methods_table,
        _groups_table,
        _fidelity_table,
        _scores_table,
        _steps_table,
        _reference_table,
        _estimators_table,
        _efficiency_table,
        _cost_table,
        _diagnostics_table,
        _sweeps_table,
        _rivals_table,
    )
    parts = [table(store) for table in tables]
    text = "\n\n".join(part for part in parts if part)
    (store.root / "summary.md").write_text(text + "\n")
    return text


def headline(store: Store) -> str:
    """Return the one table to look at first: agreement with the reference and its price, by method and task."""
    agreement = store.read_all("agreement")
    if agreement.empty:
        return ""
    spearman = agreement[agreement["metric"] == "spearman"]
    table, cost = over_seeds(agreement), spearman.groupby(["task", "method"])["seconds"].median()
    names, seeds = list(dict.fromkeys(agreement["task"])), agreement["seed"].nunique()
    cells = []
    for method in in_order(m for m in agreement["method"] if m != REFERENCE):
        found = (
            _of_several(table, (task, method, "spearman"))
            or f"{_interval(table, (task, method, 'spearman'), seeds)}, {cost[task, method]:.2g} s"
            if (task, method) in cost.index
            else ""
            for task in names
        )
        cells.append([look(method).label, *found])
    ceilings = (_mean(table, (task, REFERENCE, "spearman_ceiling")) for task in names)
    times = (f"{cost[task, REFERENCE]:,.0f} s" if (task, REFERENCE) in cost.index else "" for task in names)
    cells.append(["*noise ceiling; time of the reference*", *map(", ".join, zip(ceilings, times, strict=True))])
    return (
        "**Spearman correlation with the retraining reference** [95 % confidence interval over "
        f"{seeds} seeds], and wall time for the values of all samples on one core.\n\n"
        f"{_markdown(cells, ['method', *names])}"
    )


def update_section(path: Path, summary: str, begin: str = BEGIN, end: str = END) -> None:
    """Put `summary` between the lines `begin` and `end` of a Markdown file.

    Raises
    ------
    ValueError
        If the file does not hold both marks, in order.
    """
    text = path.read_text()
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{str(path)!r} must hold the lines {begin!r} and {end!r} for the summary to go between")
    path.write_text(f"{head}{begin}\n\n{summary}\n\n{end}{tail}")


def _methods_table(store: Store) -> str:
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
        "method": lambda _task, method: look(method).label,
        "trainings": lambda task, method: (
            _of_several(table, (task, method, "spearman")) or _cell(cost["evaluations"], (task, method), ",.0f")
        ),
        "time (s)": lambda task, method: (
            _of_several(table, (task, method, "spearman")) or _seconds(cost["seconds"], (task, method))
        ),
        "Spearman [95 % CI]": lambda task, method: _interval(table, (task, method, "spearman"), seeds[task]),
        "Kendall": lambda task, method: _mean(table, (task, method, "kendall")),
        "Pearson": lambda task, method: _mean(table, (task, method, "pearson")),
        "top 10 %": lambda task, method: _mean(table, (task, method, "top10_overlap")),
        "removal area (loss)": lambda task, method: _mean(table, (task, method, "area_loss")),
        "flipped labels, AUROC": lambda task, method: _mean(table, (task, method, "auroc")),
        "AP": lambda task, method: _mean(table, (task, method, "average_precision")),
    }
    parts = []
    for task in dict.fromkeys(found["task"]):
        rows = found[found["task"] == task]
        shown = {head: cell for head, cell in columns.items() if task in judged or head not in AGREEMENT}
        cells = [[cell(task, method) for cell in shown.values()] for method in in_order(rows["method"])]
        about = "Not compared with a retraining reference; time is that for the values of all samples, on one core."
        if task in judged:
            about = "The reference's own row is one half of it against the other; noise ceiling of Spearman: "
            about += f"{_mean(table, (task, REFERENCE, 'spearman_ceiling'))}."
        title = f"**{task}**, {_count(rows['seed'].nunique(), 'seed')}"
        parts.append(f"{title}. {about}\n\n{_markdown(cells, list(shown))}")
    return "\n\n".join(parts)


def _groups_table(store: Store) -> str:
    rows = store.read_all("groups")
    errors = rows[rows["metric"] == "error"] if len(rows) else rows
    if errors.empty:
        return ""
    means = rows.groupby(["task", "groups", "method", "metric"])["value"].mean()
    cost = rows[rows["metric"] == "cost"].groupby(["task", "groups", "method"])[["evaluations", "seconds"]].median()
    parts = []
    for (task, kind), own in rows.groupby(["task", "groups"], sort=False):
        cells = [
            [
                "exact, all coalitions" if method == REFERENCE else look(method).label,
                _cell(cost["evaluations"], (task, kind, method), ",.0f"),
                _seconds(cost["seconds"], (task, kind, method)),
                *(_cell(means, (task, kind, method, metric), ".3f") for metric in ("spearman", "pearson", "error")),
            ]
            for method in in_order(own["method"])
        ]
        values = own[own["metric"] == "value"]
        title = f"{task}, {kind}: {values['player'].nunique()} players, {_count(own['seed'].nunique(), 'seed')}"
        parts.append(f"{title}\n\n{_markdown(cells, ['method', 'runs', 'time (s)', 'Spearman', 'Pearson', 'error'])}")
    return (
        "**Groups**: players are groups of samples, judged by their exact Shapley values in the game of retraining. "
        "Error: root mean square, in units of the spread of the exact values; means over seeds, medians of time.\n\n"
        + "\n\n".join(parts)
    )


def _fidelity_table(store: Store) -> str:
    rows = store.read_all("fidelity")
    errors = rows[rows["metric"] == "relative_error"] if len(rows) else rows
    if errors.empty:
        return ""
    residuals = rows[(rows["metric"] == "residual_share") & (rows["method"] == "inrun-integrated")]
    methods, edges = in_order(errors["method"]), converging_rates(rows)
    places = ["task", "recipe", "learning_rate"]
    cells = []
    errors = errors.sort_values(places, ascending=[True, False, True], kind="stable")  # SGD before AdamW
    for place, group in errors.groupby(places, sort=False):
        task, recipe, rate = place
        own = residuals[(residuals[places] == list(place)).all(axis=1)]
        marks = ["recipe"] if (group["rate_factor"] == 1).all() else []
        marks += ["largest that converges"] if recipe == "sgd" and edges.get((task, recipe)) == rate else []
        for steps, first, last in _spans(str(recipe)):
            part, of_part = (r[r["step"].between(first, last)] for r in (group, own))
            medians = part.groupby("method")["value"].median()
            cells.append(
                [
                    str(task),
                    str(recipe),
                    f"{rate:g}" + (f" ({', '.join(marks)})" if marks else ""),
                    steps,
                    *(_percent(medians.get(m)) for m in methods),
                    _percent(part["stderr"].median()),
                    _percent(of_part["value"].median()),
                ]
            )
    heads = ["task", "recipe", "learning rate", "steps", *(look(m).label for m in methods)]
    heads += ["noise of the judge", "residual of integrated"]
    return (
        "**Fidelity**: relative error of the scores of single steps against the step game's Shapley values, median "
        "over seeds and steps; and the residual of the integrated order as a share of the drop of the validation loss. "
        "A learning rate converges if the training loss falls from epoch to epoch in every seed.\n\n"
        f"{_markdown(cells, heads)}"
    )


def _spans(recipe: str) -> list[tuple[str, float, float]]:
    """Return names and first and last steps of the parts of a run: AdamW's first steps are a story of their own."""
    if recipe == "adamw":
        return [("0-9", 0, 9), ("from 10", 10, math.inf)]
    return [("all", 0, math.inf)]


def _steps_table(store: Store) -> str:
    rows = store.read_all("overhead")
    steps = of_tasks(rows) if len(rows) else rows
    if steps.empty:
        return ""
    methods = in_order(m for m in steps["method"] if m != "regular")
    cells = []
    for (task, width), group in steps.groupby(["task", "width"], sort=True):
        found = group.drop_duplicates("method").set_index("method")
        ratios = [
            f"{found['value'][m]:.2f} / {found['peak_bytes'][m] / found['peak_bytes']['regular']:.2f}"
            if m in found.index
            else ""
            for m in methods
        ]
        cells.append(
            [task, f"{width:.0f} wide" if width else "its own", f"{found['seconds']['regular'] * 1e3:.2f}", *ratios]
        )
    heads = ["task", "model", "regular step (ms)", *(look(m).label for m in methods)]
    return (
        "**Overhead**: time / peak memory of one step, in units of a regular training step; the in-run orders include "
        f"their validation passes.\n\n{_markdown(cells, heads)}"
    )


def _scores_table(store: Store) -> str:
    rows = store.read_all("overhead")
    steps = of_workloads(rows) if len(rows) else rows
    if steps.empty:
        return ""
    net = steps[steps["metric"] == "net_ratio"]
    methods = in_order(net["method"])
    cells = []
    for name, group in steps.groupby("task", sort=False):
        found = {metric: own.set_index("method") for metric, own in group.groupby("metric")}
        ratio, peak = (found[metric]["value"] for metric in ("net_ratio", "peak_ratio"))
        cells.append(
            [
                WORKLOADS.get(str(name), str(name)),
                f"{found['step_ratio']['seconds']['regular'] * 1e3:,.0f}",
                f"{found['step_ratio']['value']['validation']:.2f}",
                *(f"{ratio[m]:.2f} / {peak[m]:.2f}" if m in ratio.index else "" for m in methods),
                found["net_ratio"]["rule"].get("inrun-first", ""),
                found["net_ratio"]["fastest_rule"].iloc[0],
            ]
        )
    heads = ["model", "regular step (ms)", "validation pass", *(look(m).label for m in methods)]
    heads += ["rules chosen (layers)", "fastest rule"]
    return (
        "**Cost of scores** in large models: time less that of one validation pass / peak memory of one step, in units "
        "of a regular training step; the validation pass, as large as the training batch, stands apart. In-Run of "
        "first order chooses a rule for each layer; beside it the same with one rule for all layers, and which of "
        f"these was fastest.\n\n{_markdown(cells, heads)}"
    )


def _reference_table(store: Store) -> str:
    cells = []
    stored = [(task, recipe) for task in CATALOG for recipe in reference.recipes(store, task)]
    for task, recipe in stored:
        found = reference.read(store, task, recipe=recipe)
        for utility, valuation in found.valuations.items():
            assert valuation.stderr is not None
            noise = np.sqrt(np.square(valuation.stderr).mean()) / valuation.values.std()
            quality = ["exact", "0"] if found.exact else [f"{valuation.reliability():.4f}", f"{noise:.2g}"]
            size = [str(len(valuation.values)), f"{found.evaluations:,}", f"{found.seconds:,.0f}"]
            cells.append([task, recipe, utility, *size, *quality])
    if not cells:
        return ""
    heads = ["task", "recipe", "utility", "samples", "trainings", "core seconds"]
    heads += ["split-half Spearman", "standard error"]
    return (
        "**Reference values**, seed 0: Shapley values of the trajectory game, by permutations with shifts and reverses "
        "or by enumeration. Both utilities of a task come from the same trainings; standard errors (root mean square) "
        f"are in units of the spread of the values.\n\n{_markdown(cells, heads)}"
    )


def _estimators_table(store: Store) -> str:
    rows = store.read_all("estimators")
    errors = rows[rows["metric"] == "error"] if len(rows) else rows
    if errors.empty:
        return ""
    tasks = list(dict.fromkeys(errors["task"]))
    of_estimators = errors[errors["method"] != REFERENCE]
    last = of_estimators.loc[of_estimators.groupby(["task", "method", "repetition"])["look"].idxmax()]
    medians = last.groupby(["task", "method"])[["value", "evaluations", "seconds"]].median()
    cells = []
    for method in in_order(of_estimators["method"]):
        found = (medians.loc[(task, method)] if (task, method) in medians.index else None for task in tasks)
        texts = ("" if own is None else f"{own['value']:.2g}, {own['seconds']:.2g} s" for own in found)
        cells.append([look(method).label, *texts])
    noise = errors[errors["method"] == REFERENCE].set_index("task")["value"]
    cells.append(
        ["*standard error of the reference*", *(f"{noise[task]:.2g}" if task in noise else "" for task in tasks)]
    )
    heads = [f"{task} ({medians.loc[task, 'evaluations'].max():,.0f})" for task in tasks]
    return (
        "**Estimators**: root mean square error against the reference, in units of the spread of its values, and wall "
        "time on one core, after the number of trainings in brackets; medians over repetitions.\n\n"
        f"{_markdown(cells, ['estimator', *heads])}"
    )


def _efficiency_table(store: Store) -> str:
    rows = store.read_all("estimators")
    found = efficiencies(rows) if len(rows) else rows
    if found.empty:
        return ""
    cells = [
        [look(method).label, *("" if math.isnan(ratio) else f"{ratio:.2g}" for ratio in found.loc[method])]
        for method in in_order(found.index)
    ]
    return (
        "**Efficiency**: how many times fewer trainings than plain permutations take to the same standard error (root "
        "mean square over the samples), at the end of the budget; medians over repetitions. Estimators with a bias, "
        "of which standard errors do not know, are left out.\n\n"
        f"{_markdown(cells, ['estimator', *found.columns])}"
    )


def _cost_table(store: Store) -> str:
    """One table a recipe."""
    rows = store.read_all("cost")
    if rows.empty:
        return ""
    rows = with_recipes(rows)
    return "\n\n".join(_cost_by_recipe(str(recipe), own) for recipe, own in rows.groupby("recipe", sort=False))


def _cost_by_recipe(recipe: str, rows: pd.DataFrame) -> str:
    tasks = list(dict.fromkeys(rows["task"]))
    found = rows[rows["metric"] == "spearman"].set_index(["task", "method"])
    cells = []
    for method in in_order(m for _, m in found.index):
        own = (found.loc[(task, method)] if (task, method) in found.index else None for task in tasks)
        texts = ("" if row is None else f"{row['value']:.3f}, {row['trainings']:,.3g}" for row in own)
        cells.append([look(method).label, *texts])
    ceilings = rows[rows["metric"] == "spearman_ceiling"].set_index("task")["value"]
    cells.append(["*noise ceiling*", *(f"{ceilings[task]:.3f}" if task in ceilings else "" for task in tasks)])
    return (
        f"**Cost**, recipe {recipe}: Spearman correlation with the stored reference values (of the reference: one half "
        "against the other), and wall time in units of one training of one model, on one core; seed 0.\n\n"
        f"{_markdown(cells, ['method', *tasks])}"
    )


def _diagnostics_table(store: Store) -> str:
    """Diagnostics of differentiated runs, beside their agreement with the reference where it was looked at."""
    rows = store.read_all("cost")
    rows = store.read_all("values") if rows.empty else rows
    if rows.empty:
        return ""
    rows = with_recipes(rows[rows["method"] == "few-run-8"])
    found = rows.groupby(["task", "recipe", "metric"])["value"].median().unstack("metric")
    if not {"sum", "gain", "roughness"} <= set(found):
        return ""
    found = found.dropna(subset=["roughness"])
    found = found.assign(**{"sum / gain": found["sum"] / found["gain"]}).rename(columns={"spearman": "Spearman"})
    shown = [name for name in ("sum / gain", "roughness", "Spearman") if name in found]
    cells = [[task, recipe, *(f"{own[name]:.3f}" for name in shown)] for (task, recipe), own in found.iterrows()]
    beside = ", and the Spearman correlation with the stored reference values" if "Spearman" in found else ""
    return (
        f"**Diagnostics** of {look('few-run-8').label}, none of which needs retraining{beside}; medians over seeds.\n\n"
        f"{_markdown(cells, ['task', 'recipe', *shown])}"
    )


def _sweeps_table(store: Store) -> str:
    rows = store.read_all("sweeps")
    if rows.empty:
        return ""
    rows = rows.sort_values(["task", "recipe"], ascending=[True, False], kind="stable")  # SGD before AdamW
    found = rows.pivot_table(index=["task", "recipe", "way"], columns="metric", values="value")
    ways = list(dict.fromkeys(rows["way"]))
    cells = []
    for task, recipe in dict.fromkeys(zip(rows["task"], rows["recipe"], strict=True)):
        of_ways = (found.loc[task, recipe, way] for way in ways)
        texts = (
            f"{own['trainings']:.1f} / {own['peak_ratio']:.1f} / {own['stored_bytes'] / 1e6:.2g} MB" for own in of_ways
        )
        cells.append([task, recipe, *texts])
    return (
        "**Differentiated runs**, 8 at a time: time / peak memory in units of the same runs trained plainly, and what "
        "was stored of their states, by the way to keep these (medians of turns, one core). States on the disk are no "
        f"part of the memory.\n\n{_markdown(cells, ['task', 'recipe', *ways])}"
    )


def _rivals_table(store: Store) -> str:
    rows = store.read_all("rivals")
    if rows.empty:
        return ""
    cells = [
        [
            str(row.method),
            "" if pd.isna(row.players) else f"{row.players:.0f}",
            "" if pd.isna(row.contender) else row.contender,
            row.metric.replace("_", " "),
            f"{row.value:.3g}",
        ]
        for row in rows.sort_values(["method", "players"], kind="stable").itertuples()
    ]
    return (
        "**Rivals** (medians of turns on the same cores): `knn_shapley` of 4000 MNIST digits judged by 1000, k = 5, "
        "against pyDVL 0.10; the same of 60 000 x 784 points judged by 10 000; utilities of logistic regressions on "
        "100 samples of breast cancer against pyDVL; trainings of digits-mlp against a loop over models; and what an "
        "estimator costs itself, in microseconds a coalition and player.\n\n"
        f"{_markdown(cells, ['comparison', 'players', 'contender', 'metric', 'value'])}"
    )


def _markdown(cells: list[list[str]], heads: list[str]) -> str:
    align = ["left"] + ["right"] * (len(heads) - 1)
    return str(tabulate(cells, heads, tablefmt="pipe", colalign=align, disable_numparse=True))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _cell(found: pd.Series, key: tuple[str, ...], form: str) -> str:
    return f"{found[key]:{form}}" if key in found.index else ""


def _seconds(found: pd.Series, key: tuple[str, ...]) -> str:
    return _cell(found, key, ".2g" if found.get(key, 0.0) < 99.5 else ",.0f")


def _of_several(table: pd.DataFrame, key: tuple[str, str, str]) -> str:
    """Return what stands in place of a mean of rows of several definitions, of which there is none."""
    definitions = int(table["definitions"].get(key, 0))
    return f"{definitions} definitions" if definitions > 1 else ""


def _mean(table: pd.DataFrame, key: tuple[str, str, str]) -> str:
    return _of_several(table, key) or (f"{table.loc[key, 'mean']:.3f}" if key in table.index else "")


def _interval(table: pd.DataFrame, key: tuple[str, str, str], seeds: int) -> str:
    """Return a mean and its interval, and of how many seeds it is where these are not all `seeds`."""
    if key not in table.index or _of_several(table, key):
        return _of_several(table, key)
    mean, low, high, n = table.loc[key, ["mean", "low", "high", "n"]]
    text = f"{mean:.3f} [{low:.3f}, {high:.3f}]" if n > 1 else f"{mean:.3f}"
    return text if n in (0, seeds) else f"{text} ({_count(int(n), 'seed')})"


def _percent(share: float | None) -> str:
    if share is None or math.isnan(share):
        return ""
    if 0 < share < SMALLEST:
        return f"< {100 * SMALLEST:g} %"
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:,.0f} %"
