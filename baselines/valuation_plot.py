"""Values drawn from the highest to the lowest; matplotlib is imported when it is needed."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot"]

_MOST_NAMED = 20  # players whose numbers fit below the axis
_INK, _PALE = "0.1", "0.65"  # told apart by lightness


def plot(
    values: NDArray[np.float64],
    stderr: NDArray[np.float64] | None,
    order: NDArray[np.intp],
    method: str,
    ax: "Axes | None",
) -> "Axes":
    """Draw values [n] with their standard errors [n] in an order [n]; see `Valuation.plot`."""
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("plot needs matplotlib: python -m pip install matplotlib") from error
        ax = pyplot.subplots(layout="constrained")[1]
    n = len(values)
    ranks = np.arange(1, n + 1)
    few = n <= _MOST_NAMED
    size = 4 if few else max(1.0, 4 * (_MOST_NAMED / n) ** 0.25)
    if stderr is not None:
        ax.errorbar(
            ranks,
            values[order],
            stderr[order],
            fmt="none",
            ecolor=_PALE,
            elinewidth=size / 3,
            capsize=4 if few else 0,
            zorder=1,
            label="one standard error",
        )
    ax.axhline(0, color=_INK, linestyle="--", linewidth=0.8, zorder=2)
    ax.plot(ranks, values[order], "o", color=_INK, markersize=size, zorder=3, label="value")
    if few:
        ax.set_xticks(ranks, [str(player) for player in order])
        ax.set_xlabel("player, from the highest value to the lowest")
    else:
        ax.set_xlabel("rank of the player")
    ax.set_ylabel("value, in units of the utility")
    ax.set_title(method)
    if stderr is not None:
        ax.legend(frameon=False)
    return ax
