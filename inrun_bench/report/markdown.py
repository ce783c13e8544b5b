"""Cells and tables in Markdown."""

from __future__ import annotations

import math

import pandas as pd

__all__ = ["cell", "count", "interval_cell", "markdown", "mean_cell", "of_several", "percent", "seconds_cell"]

SMALLEST = 1e-6  # smaller shares are nothing but rounding


def markdown(cells: list[list[str]], heads: list[str]) -> str:
    """Return a table, its first column to the left and the others to the right."""
    from tabulate import tabulate  # here: a clone that is not installed measures without it

    align = ["left"] + ["right"] * (len(heads) - 1)
    return str(tabulate(cells, heads, tablefmt="pipe", colalign=align, disable_numparse=True))


def count(number: int, what: str) -> str:
    """Return a number and what it counts, in the plural unless it is one."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def cell(found: pd.Series, key: tuple[str | float, ...], form: str) -> str:
    """Return a number of a series in a form; nothing where it has none."""
    return f"{found[key]:{form}}" if key in found.index else ""


def seconds_cell(found: pd.Series, key: tuple[str | float, ...]) -> str:
    """Return seconds, in whole ones from a hundred on."""
    return cell(found, key, ".2g" if found.get(key, 0.0) < 99.5 else ",.0f")


def of_several(table: pd.DataFrame, key: tuple[str | float, ...]) -> str:
    """Return what stands in place of a mean of rows of several definitions, of which there is none."""
    definitions = int(table["definitions"].get(key, 0))
    return f"{definitions} definitions" if definitions > 1 else ""


def mean_cell(table: pd.DataFrame, key: tuple[str | float, ...]) -> str:
    """Return a mean over seeds."""
    return of_several(table, key) or (f"{table.loc[key, 'mean']:.3f}" if key in table.index else "")


def interval_cell(table: pd.DataFrame, key: tuple[str | float, ...], seeds: int) -> str:
    """Return a mean and its interval, and of how many seeds it is where these are not all `seeds`."""
    if key not in table.index or of_several(table, key):
        return of_several(table, key)
    mean, low, high, n = table.loc[key, ["mean", "low", "high", "n"]]
    text = f"{mean:.3f} [{low:.3f}, {high:.3f}]" if n > 1 else f"{mean:.3f}"
    return text if n in (0, seeds) else f"{text} ({count(int(n), 'seed')})"


def percent(share: float | None) -> str:
    """Return a share in per cent; nothing where there is none."""
    if share is None or math.isnan(share):
        return ""
    if 0 < share < SMALLEST:
        return f"< {100 * SMALLEST:g} %"
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:,.0f} %"
