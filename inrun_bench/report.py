"""Summary tables in Markdown, made from stored rows alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from inrun_bench.figures.style import in_order, look
from inrun_bench.intervals import over_seeds
from inrun_bench.store import Store
from inrun_bench.unit import REFERENCE

__all__ = ["headline", "update_section", "write_summary"]

BEGIN, END = "<!-- summary: begin (inrun-bench report --into) -->", "<!-- summary: end -->"


def write_summary(store: Store) -> str:
    """Write ``summary.md`` into the store's folder and return its text."""
    parts = [table(store) for table in (headline, _methods_table, _fidelity_table, _steps_table, _rivals_table)]
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
    names = list(dict.fromkeys(agreement["task"]))
    cells = []
    for method in in_order(m for m in agreement["method"] if m != REFERENCE):
        found = (
            f"{_interval(table, (task, method, 'spearman'))}, {cost[task, method]:.2g} s"
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
        f"{agreement['seed'].nunique()} seeds], and wall time for the values of all samples on one core.\n\n"
        f"{_markdown(cells, ['method', *names])}"
    )


def update_section(path: Path, summary: str) -> None:
    """Put `summary` between the marks of a Markdown file.

    Raises
    ------
    ValueError
        If the file does not hold both marks, in order.
    """
    text = path.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{str(path)!r} must hold the lines {BEGIN!r} and {END!r} for the summary to go between")
    path.write_text(f"{head}{BEGIN}\n\n{summary}\n\n{END}{tail}")


def _methods_table(store: Store) -> str:
    """One table a task: cost, agreement with the reference, removal, detection."""
    agreement, removal, detection = (store.read_all(name) for name in ("agreement", "removal", "detection"))
    if agreement.empty:
        return ""
    table = over_seeds(pd.concat([agreement, removal, detection]))
    cost = agreement[agreement["metric"] == "spearman"].groupby(["task", "method"])[["evaluations", "seconds"]].median()
    columns: dict[str, Callable[[str, str], str]] = {
        "method": lambda _task, method: look(method).label,
        "trainings": lambda task, method: f"{cost.loc[(task, method), 'evaluations']:,.0f}",
        "time (s)": lambda task, method: f"{cost.loc[(task, method), 'seconds']:.2g}",
        "Spearman [95 % CI]": lambda task, method: _interval(table, (task, method, "spearman")),
        "Kendall": lambda task, method: _mean(table, (task, method, "kendall")),
        "Pearson": lambda task, method: _mean(table, (task, method, "pearson")),
        "top 10 %": lambda task, method: _mean(table, (task, method, "top10_overlap")),
        "removal area (loss)": lambda task, method: _mean(table, (task, method, "area_loss")),
        "flipped labels, AUROC": lambda task, method: _mean(table, (task, method, "auroc")),
        "AP": lambda task, method: _mean(table, (task, method, "average_precision")),
    }
    parts = []
    for task in dict.fromkeys(agreement["task"]):
        methods = in_order(agreement[agreement["task"] == task]["method"])
        cells = [[cell(task, method) for cell in columns.values()] for method in methods]
        seeds = agreement[agreement["task"] == task]["seed"].nunique()
        ceiling = _mean(table, (task, REFERENCE, "spearman_ceiling"))
        parts.append(
            f"**{task}**, {seeds} seeds. The reference's own row is one half of it against the other; "
            f"noise ceiling of Spearman: {ceiling}.\n\n{_markdown(cells, list(columns))}"
        )
    return "\n\n".join(parts)


def _fidelity_table(store: Store) -> str:
    rows = store.read_all("fidelity")
    errors = rows[rows["metric"] == "relative_error"] if len(rows) else rows
    if errors.empty:
        return ""
    medians = errors.groupby(["task", "learning_rate", "rate_factor", "method"], sort=True)[
        ["value", "stderr"]
    ].median()
    methods = in_order(errors["method"])
    cells = [
        [
            task,
            f"{rate:g}" + (" (recipe)" if factor == 1 else ""),
            *(_percent(medians["value"].get((task, rate, factor, m))) for m in methods),
            _percent(medians.loc[(task, rate, factor)]["stderr"].median()),
        ]
        for task, rate, factor in medians.index.droplevel("method").unique()
    ]
    heads = ["task", "learning rate", *(look(m).label for m in methods), "noise of the judge"]
    return (
        "**Fidelity**: relative error of the scores of single steps against the step game's Shapley values, median "
        f"over seeds and moments of training.\n\n{_markdown(cells, heads)}"
    )


def _steps_table(store: Store) -> str:
    rows = store.read_all("overhead")
    steps = rows[rows["metric"] == "step_ratio"] if len(rows) else rows
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


def _rivals_table(store: Store) -> str:
    rows = store.read_all("rivals")
    if rows.empty:
        return ""
    cells = [[row.method, row.metric.replace("_", " "), f"{row.value:.3g}"] for row in rows.itertuples()]
    return (
        "**Rivals**: `knn_shapley` of 4000 MNIST digits judged by 1000, k = 5, against pyDVL 0.10 on the same cores, "
        f"taking turns; medians.\n\n{_markdown(cells, ['method', 'metric', 'value'])}"
    )


def _markdown(cells: list[list[str]], heads: list[str]) -> str:
    align = ["left"] + ["right"] * (len(heads) - 1)
    return str(tabulate(cells, heads, tablefmt="pipe", colalign=align, disable_numparse=True))


def _mean(table: pd.DataFrame, key: tuple[str, str, str]) -> str:
    return f"{table.loc[key, 'mean']:.3f}" if key in table.index else ""


def _interval(table: pd.DataFrame, key: tuple[str, str, str]) -> str:
    if key not in table.index:
        return ""
    mean, low, high, n = table.loc[key]
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]" if n > 1 else f"{mean:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2g} %"
