"""What an estimator returns: the values, how sure they are, and what they cost."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from baselines.arguments import whole_number
from baselines.real_numbers import real_numbers
from baselines.valuation_file import read, write
from baselines.valuation_plot import plot

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Valuation"]


@dataclass(frozen=True, eq=False, repr=False)
class Valuation:
    """Values of the players of a game.

    Attributes
    ----------
    values : float64 [n]
        One value a player, in units of the utility; positive if the player helps.
    stderr : float64 [n] or None
        Standard error of each value; None where the estimator has none (exact methods, or a single draw).
    evaluations : int
        Number of coalitions evaluated.
    seconds : float
        Wall-clock time.
    method : str
        Name of the estimator.
    parameters : Mapping
        What the estimator was told, and what it has to report; ``interrupted`` says of a Monte Carlo estimate that
        Ctrl-C has ended it.
    halves : float64 [2, n] or None
        What a Monte Carlo estimator makes of the even and of the odd draws: two independent estimates. None where half
        of the draws are too few for one.

    Raises
    ------
    TypeError, ValueError
        If values, standard errors or halves are no real numbers that float64 holds, in these shapes; they become
        float64.

    Examples
    --------
    >>> import tempfile
    >>> valuation = Valuation(np.array([0.5, -1.0, 2.0]), stderr=None, evaluations=8, seconds=0.1, method="mine")
    >>> valuation.top(2).tolist(), valuation.bottom(1).tolist()
    ([2, 0], [1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     valuation.save(folder + "/mine.json")
    ...     Valuation.load(folder + "/mine.json")
    Valuation(mine: 3 players in [-1, 2], 8 evaluations, 0.1 s)
    """

    values: NDArray[np.float64]
    stderr: NDArray[np.float64] | None
    evaluations: int
    seconds: float
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    halves: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        for name in ("values", "stderr", "halves"):
            given = getattr(self, name)
            if given is not None:
                numbers = real_numbers(name, given).astype(np.float64, copy=False)
                object.__setattr__(self, name, numbers)  # unsigned integers have no negatives to sort by
        if self.values.ndim != 1:
            raise ValueError(f"values must have shape (n,), got {self.values.shape}")
        n = len(self.values)
        if self.stderr is not None and self.stderr.shape != (n,):
            raise ValueError(f"stderr must have the shape of values, ({n},), got {self.stderr.shape}")
        if self.halves is not None and self.halves.shape != (2, n):
            raise ValueError(f"halves must have shape (2, {n}), got {self.halves.shape}")

    def __repr__(self) -> str:
        return (
            f"Valuation({self.method}: {len(self.values)} players in [{self.values.min():.3g}, "
            f"{self.values.max():.3g}], {self.evaluations} evaluations, {self.seconds:.3g} s)"
        )

    def reliability(self) -> float:
        """Spearman correlation between the two halves of the draws.

        It is the noise ceiling of half the draws: no method can be expected to agree better than this with an estimate
        of half the size, however right it is. The estimate from all draws is more reliable than that.

        Returns
        -------
        float
            Rank correlation, between -1 and 1; equal values share their mean rank.

        Raises
        ------
        ValueError
            If there are no halves, one of them is constant, so that it ranks nobody, or a value of one is NaN.
        """
        if self.halves is None:
            raise ValueError(
                f"{self.method} has no halves to correlate: they come from a Monte Carlo estimator with draws enough "
                "for two estimates"
            )
        if np.isnan(self.halves).any():
            raise ValueError("the values of some players are NaN in one half, which has no rank")
        if not np.ptp(self.halves, axis=1).all():
            raise ValueError(f"the values of all {len(self.values)} players are equal in one half: there is no ranking")
        return rank_correlation(*self.halves)

    def top(self, k: int) -> NDArray[np.intp]:
        """Players of the `k` highest values.

        Parameters
        ----------
        k : int
            How many, 1 to n.

        Returns
        -------
        intp [k]
            The highest value first; of equal values the player with the lower number.

        Raises
        ------
        TypeError
            If `k` is no integer.
        ValueError
            If `k` is out of range, or a value is NaN, which has no rank.
        """
        return self._ranked(-self.values, k)

    def bottom(self, k: int) -> NDArray[np.intp]:
        """Players of the `k` lowest values.

        Parameters
        ----------
        k : int
            How many, 1 to n.

        Returns
        -------
        intp [k]
            The lowest value first; of equal values the player with the lower number.

        Raises
        ------
        TypeError, ValueError
            As :meth:`top`.
        """
        return self._ranked(self.values, k)

    def _ranked(self, keys: NDArray[np.float64], k: int) -> NDArray[np.intp]:
        """Players of the `k` lowest of the `keys` [n], in order."""
        n = len(keys)
        if whole_number("k", k) > n:
            raise ValueError(f"k must be at most the number of players, {n}, got {k}")
        missing = np.flatnonzero(np.isnan(keys))
        if missing.size:
            raise ValueError(f"the value of player {missing[0]} is NaN, which has no rank; NaN in all: {missing.size}")
        return np.argsort(keys, kind="stable")[:k]

    def to_frame(self) -> "pd.DataFrame":
        """Return the values as a table, one row a player.

        Returns
        -------
        pandas.DataFrame
            Its index is `player`, 0 to n - 1; columns are `value`, `stderr` (NaN where there is none) and, where there
            are halves, `even` and `odd`.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: python -m pip install pandas") from error
        columns = {"value": self.values, "stderr": np.nan if self.stderr is None else self.stderr}
        if self.halves is not None:
            columns["even"], columns["odd"] = self.halves
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self.values), name="player"))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the values from the highest to the lowest, with error bars of one standard error where there are any.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            What to draw on; by default that of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            What was drawn on. Up to 20 players are named by number below their values.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If a value is NaN.
        """
        return plot(self.values, self.stderr, self.top(len(self.values)), self.method, ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the valuation in a JSON file, all of it and to the last bit; see `baselines.valuation_file`.

        Parameters
        ----------
        path : path
            Must end in ``.json``. A file of that name is replaced, when the new one is whole.

        Raises
        ------
        TypeError
            If `parameters` hold something else than None, numbers, strings, NumPy arrays of these, and lists, tuples
            and mappings of all of these; it is named.
        ValueError
            If the path does not end in ``.json``.
        OSError
            If the file cannot be written.
        """
        write(Path(path), {one.name: getattr(self, one.name) for one in fields(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Valuation":
        """Load a valuation from a file that :meth:`save` has written.

        Parameters
        ----------
        path : path
            The file. Nothing in it is executed.

        Returns
        -------
        Valuation
            Equal to what was saved, types of NumPy arrays and scalars included; mappings come back as dicts.

        Raises
        ------
        ValueError
            If the file is something else, of another version, or damaged; it is named.
        OSError
            If it cannot be read.
        """
        return read(Path(path), cls)


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman correlation of two rankings (float64 [n] each, neither constant); equal values share their mean rank."""
    ranks = rankdata([a, b], axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    spread = np.linalg.norm(ranks, axis=1)
    return float(ranks[0] @ ranks[1] / (spread[0] * spread[1]))
