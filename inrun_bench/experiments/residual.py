"""Residual: how well what the ledger says without any judge warns of wrong scores.

Every step of a run leaves a residual, the part of the drop of the validation loss that its scores do not hand out. A
user has it for nothing; the error of the scores costs a judge. At each step of the map of
:mod:`~inrun_bench.experiments.fidelity` both are known: their rank correlation over the steps, how well a large
residual tells steps whose error is above :data:`WRONG` from the others, and the error that all but a tenth of the steps
stay below whose residual is small.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats
from sklearn.metrics import roc_auc_score

from inrun_bench.experiments import fidelity
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.looks import in_order, legend, look, panels, points
from inrun_bench.report.markdown import interval_cell, markdown, mean_cell
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.unit import Row, Unit

SUMMARY = "how well a step's residual, which needs no judge, warns of the error of its scores"
EXCLUSIVE = False
DEFAULT = True
TASKS = fidelity.TASKS
METHODS = tuple(dict.fromkeys(fidelity.RUNS_WITH.values()))
NEEDS = "methods that score steps: the In-Run ones"

WRONG = 0.1  # relative error of a step's scores
SMALL = 0.01  # residual, as a share of the drop
ALMOST_ALL = 0.9  # of the steps
PAIR = ["relative_error", "residual_share"]


def units(plan: Plan) -> list[Unit]:
    """One unit a method, task and seed; it reads all steps that :mod:`~inrun_bench.experiments.fidelity` looks at."""
    needs: dict[tuple[str, str, int], list[Unit]] = {}
    for unit in fidelity.units(plan):
        needs.setdefault((unit.task, unit.method, unit.seed), []).append(unit)
    return [Unit("residual", *which, needs=tuple(several)) for which, several in needs.items()]


def measure(_unit: Unit, needs: Mapping[Unit, pd.DataFrame]) -> list[Row]:
    """Return residual and error of every step, and by optimiser and order how one goes with the other."""
    found: list[Row] = []
    steps = pd.concat([_steps(rows).assign(optimizer=need.settings["optimizer"]) for need, rows in needs.items()])
    for (optimizer, method), own in steps.groupby(["optimizer", "method"], sort=False):
        error, residual = own["relative_error"].to_numpy(), own["residual_share"].to_numpy()
        wrong, small = error > WRONG, residual <= SMALL
        told = {
            "spearman": stats.spearmanr(residual, error).statistic if np.ptp(residual) and np.ptp(error) else np.nan,
            "auroc": roc_auc_score(wrong, residual) if wrong.any() and not wrong.all() else np.nan,
            "share_wrong": wrong.mean(),
            "share_small": small.mean(),
            "error_where_small": np.quantile(error[small], ALMOST_ALL) if small.any() else np.nan,
        }
        of = {"method": method, "optimizer": optimizer}
        found += [{**of, "metric": name, "value": float(value)} for name, value in told.items()]
        found += [
            {**of, "metric": "relative_error", "value": float(e), "residual_share": float(r)}
            for e, r in zip(error, residual, strict=True)
        ]
    return found


def _steps(rows: pd.DataFrame) -> pd.DataFrame:
    """Return error and residual of the steps of a run, one row each, as far as both are numbers."""
    own = rows[rows["metric"].isin(PAIR)]
    steps = pd.MultiIndex.from_frame(own[["method", "step"]].drop_duplicates())
    wide = (
        own.pivot(index=["method", "step"], columns="metric", values="value").reindex(steps, columns=PAIR).reset_index()
    )
    return wide[np.isfinite(wide["relative_error"]) & np.isfinite(wide["residual_share"])]


LEAST, MOST = 1e-6, 1e2  # smaller and larger residuals and errors are drawn there
KINDS = {"SGD": ("SGD", "momentum"), "AdamW": ("AdamW", "AdamW, warm-up")}


def draw(rows: pd.DataFrame) -> Figure:
    """Draw the relative error of every step over its residual: a column a task; SGD above, AdamW below.

    With and without momentum above, with and without warm-up below; no medians, each mark is a step.
    """
    steps = rows[(rows["metric"] == "relative_error") & ~rows["method"].isin(fidelity.IN_TABLES_ALONE)]
    kinds = {kind: own for kind, names in KINDS.items() if len(own := steps[steps["optimizer"].isin(names)])}
    if not kinds:
        return Figure()
    figure, names, axes = panels(steps, len(kinds), height=2.7, sharex=True, sharey=True)
    methods = in_order(steps["method"])
    for row, (kind, of_kind) in zip(axes, kinds.items(), strict=True):
        row[0].set_ylabel(f"{kind}:\nrelative error of the scores")
        for ax, task in zip(row, names, strict=True):
            _cloud(ax, of_kind[of_kind["task"] == task], methods)
    for ax in axes[-1]:
        ax.set_xlabel("residual / drop of the loss")
    legend(figure, methods, [Line2D([], [], color="0.4", linestyle="--", linewidth=1, label="as large as each other")])
    return figure


def _cloud(ax: Axes, steps: pd.DataFrame, methods: list[str]) -> None:
    for method in methods:
        own = steps[steps["method"] == method]
        x, y = (own[name].clip(LEAST, MOST) for name in ("residual_share", "value"))
        small = {"markersize": 3, "alpha": 0.5, "markeredgewidth": 0, "rasterized": True}
        ax.plot(x, y, **{**points(look(method)), **small})
    ax.plot([LEAST, MOST], [LEAST, MOST], color="0.4", linestyle="--", linewidth=1)
    ax.set(xscale="log", yscale="log", xlim=(LEAST / 2, MOST * 2), ylim=(LEAST / 2, MOST * 2))
    ticks = [LEAST, 1e-3, 1.0]
    ax.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    ax.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    ax.minorticks_off()


def table(rows: pd.DataFrame) -> str:
    """Return, by task, optimiser and order, how the residual goes with the error, and how far a small one is safe."""
    told = rows[rows["metric"].isin(["spearman", "auroc", "share_wrong", "share_small", "error_where_small"])]
    if told.empty:
        return ""
    means, seeds = over_seeds(told, ("task", "optimizer", "method", "metric")), told["seed"].nunique()
    cells = []
    for task, of_task in told.groupby("task", sort=False):
        for optimizer in (name for name in fidelity.OPTIMIZERS if name in set(of_task["optimizer"])):
            for method in in_order(of_task["method"]):
                place = (task, optimizer, method)
                shares = (mean_cell(means, (*place, name)) for name in ("share_wrong", "share_small"))
                cells.append(
                    [
                        task,
                        optimizer,
                        look(method).markdown,
                        interval_cell(means, (*place, "spearman"), seeds),
                        *(cell.replace("nan", "") for cell in (mean_cell(means, (*place, "auroc")), *shares)),
                        mean_cell(means, (*place, "error_where_small")).replace("nan", ""),
                    ]
                )
    heads = [
        "task",
        "optimizer",
        "method",
        "Spearman",
        f"AUROC of errors above {WRONG:.0%}",
        f"share of steps with an error above {WRONG:.0%}",
        f"share with a residual of at most {SMALL:.0%}",
        f"error that {ALMOST_ALL:.0%} of these stay below",
    ]
    return (
        "**The residual as a warning**: over all steps of the map of fidelity, how the residual, as a share of the "
        "drop of the validation loss, goes with the relative error of the step's scores [95 % confidence interval over "
        f"seeds].\n\n{markdown(cells, heads)}"
    )
