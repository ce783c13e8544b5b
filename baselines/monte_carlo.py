"""The life of a Monte Carlo estimate: draws are made until they are enough, and become a valuation.

An estimator is two things: how to make a number of further draws, and what values the draws so far add up to. All else
is the same for all of them, and here: how many draws a budget pays for, when stopping rules are asked, the progress
bar, and what is left of an estimate that is interrupted.

**Ctrl-C** (any KeyboardInterrupt) ends an estimate early: the valuation returned is that of the draws made so far, to
the last bit that of a run which was asked for so many. It comes with an :class:`InterruptedEstimateWarning`, and with
``parameters["interrupted"]`` set. Where these draws make no estimate yet, or that warning is made an error,
KeyboardInterrupt is raised. This rests on estimators that add a draw to what they know by one assignment: wherever an
interrupt comes, it comes before or after it.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from baselines.arguments import whole_number
from baselines.convergence import Estimate, StoppingRule, allowance, name_of
from baselines.draws import Moments
from baselines.game import Game, evaluate, evaluate_in_batches
from baselines.valuation import Valuation

__all__ = [
    "Estimator",
    "Formula",
    "InterruptedEstimateWarning",
    "Limits",
    "SampledCoalitions",
    "UndeterminedError",
    "draw_limits",
    "ends",
    "estimate_by_draws",
    "from_moments",
]

_SMALLEST = 1e-140  # value that can be squared
_GROWTH = 1.25  # of the draws, from one look to the next


class UndeterminedError(ValueError):
    """The draws so far do not determine the values; more of them will."""


class InterruptedEstimateWarning(RuntimeWarning):
    """An estimator was interrupted, and returns what it has. Made an error, it raises KeyboardInterrupt instead."""


class Estimator(Protocol):
    """A Monte Carlo estimator in the making."""

    least_draws: int
    """Draws without which there is no estimate."""

    def extend(self, n_draws: int) -> Iterator[int]:
        """Make at most so many further draws; yield, for each, the number of coalitions evaluated for it.

        A draw is added to what the estimator knows by one assignment (or one `append`), before the yield: a
        KeyboardInterrupt may come between any two instructions, and must find whole draws.
        """

    def estimate(self) -> Estimate:
        """Return what the draws so far say, or raise :class:`UndeterminedError`."""


@dataclass(frozen=True)
class Limits:
    """How far an estimate may grow.

    Attributes
    ----------
    fixed_cost : int
        Coalitions evaluated before the first draw.
    draws : float
        Most draws: a whole number, or infinity, which leaves the end to a stopping rule.
    evaluations : float
        Most coalitions evaluated, `fixed_cost` included: a whole number, or infinity.
    """

    fixed_cost: int
    draws: float
    evaluations: float


def draw_limits(
    budget: object,
    stop: StoppingRule | None,
    *,
    n_draws: float = math.inf,
    fixed_cost: int = 0,
    draw_cost: int,
    least_draws: int = 1,
) -> Limits:
    """Return how far an estimate may grow by its budget, its stopping rule and the number of draws asked for.

    Parameters
    ----------
    budget : int or None
        Most coalitions to evaluate.
    stop : StoppingRule or None
        May carry a budget of its own.
    n_draws : float
        Most draws, where their number is given.
    fixed_cost, draw_cost : int
        Coalitions evaluated before the first draw, and for each.
    least_draws : int
        Draws without which there is no estimate.

    Returns
    -------
    Limits

    Raises
    ------
    TypeError
        If `budget` is no integer, or `stop` cannot be called.
    ValueError
        If nothing limits the estimate, or the budget is too small for the estimator.
    """
    if stop is not None and not callable(stop):
        raise TypeError(f"stop must be a rule such as baselines.stderr_below(1e-3), got {stop!r}")
    if budget is None and stop is None and math.isinf(n_draws):
        raise ValueError("give a budget (in evaluated coalitions) or a stopping rule (stop=), got neither")
    most = min(math.inf if budget is None else whole_number("budget", budget), allowance(stop))
    least = fixed_cost + least_draws * draw_cost
    if most < least:
        raise ValueError(
            f"budget must be at least {least} evaluated coalitions for this game ({fixed_cost}, and {least_draws} x "
            f"{draw_cost} for the smallest estimate), got {most}"
        )
    if draw_cost == 0:  # a single player has but one permutation, which costs nothing
        return Limits(fixed_cost, least_draws if math.isinf(n_draws) else n_draws, fixed_cost)
    affordable = most if math.isinf(most) else (most - fixed_cost) // draw_cost
    return Limits(fixed_cost, min(n_draws, affordable), min(most, fixed_cost + n_draws * draw_cost))


def estimate_by_draws(
    method: str,
    estimator: Estimator,
    *,
    started: float,
    limits: Limits,
    stop: StoppingRule | None,
    progress: bool,
    parameters: Callable[[int], Mapping[str, Any]],
) -> Valuation:
    """Let an estimator grow until its draws are made, its budget is spent, or the stopping rule says so.

    Parameters
    ----------
    method : str
        For the valuation and the progress bar.
    estimator : Estimator
        Without draws yet.
    started : float
        What `time.perf_counter` said when work began.
    limits : Limits
        How far it may grow.
    stop : StoppingRule, optional
        Asked at numbers of draws that depend on nothing but these numbers.
    progress : bool
        Whether to show a bar on stderr, in evaluated coalitions.
    parameters : callable
        From the number of draws made to the parameters of the valuation; the rule is added.

    Returns
    -------
    Valuation
    """
    interrupted = False
    try:
        found = _grown(method, estimator, limits, stop, progress)
    except KeyboardInterrupt as interrupt:
        found, interrupted = _whole_draws(method, estimator, interrupt), True
    _check_range(found)
    return Valuation(
        values=found.values,
        stderr=found.stderr,
        evaluations=found.evaluations,
        seconds=perf_counter() - started,
        method=method,
        parameters={
            **parameters(found.draws),
            "stop": None if stop is None else name_of(stop),
            "interrupted": interrupted,
        },
        halves=found.halves,
    )


def _check_range(found: Estimate) -> None:
    """Refuse values of which the squares, and so standard errors, are beyond the numbers that there are."""
    largest = float(np.abs(found.values).max())
    finite = np.isfinite(largest) and (found.stderr is None or bool(np.isfinite(found.stderr).all()))
    if not finite or 0 < largest < _SMALLEST:
        size, direction = ("small", "up") if finite else ("large", "down")
        raise ValueError(
            f"utilities are too {size} for standard errors, which are made of squares: values up to {largest:.3g}; "
            f"scale the game {direction}"
        )


def _grown(method: str, estimator: Estimator, limits: Limits, stop: StoppingRule | None, progress: bool) -> Estimate:
    """Make draws until they are enough, and return what they say."""
    found: Estimate | None = None
    done = 0
    total = None if math.isinf(limits.evaluations) else limits.evaluations
    with tqdm(total=total, initial=limits.fixed_cost, desc=method, unit="coalition", disable=not progress) as bar:
        for target in _looks(limits.draws, estimator.least_draws, stop):
            before = done
            for cost in estimator.extend(target - done):
                done += 1
                bar.update(cost)
            if done == before:  # the budget was spent to the last coalition
                break
            try:
                found = estimator.estimate()
            except UndeterminedError:
                if done == target < limits.draws:
                    continue
                raise
            if (stop is not None and stop(found)) or done < target:
                break
    return found or estimator.estimate()


def _whole_draws(method: str, estimator: Estimator, interrupt: KeyboardInterrupt) -> Estimate:
    """Return what the whole draws say and warn that these are all, or raise the interrupt."""
    try:
        found = estimator.estimate()
    except UndeterminedError as error:
        interrupt.add_note(f"{method} was interrupted before there was an estimate: {error}")
        raise interrupt from None
    text = (
        f"{method} was interrupted: it returns the estimate of the draws made so far, {found.draws}, from "
        f"{found.evaluations} evaluated coalitions"
    )
    try:
        warnings.warn(text, InterruptedEstimateWarning, stacklevel=4)  # whoever called the estimator
    except InterruptedEstimateWarning:
        raise interrupt from None
    return found


def _looks(n_draws: float, least_draws: int, stop: StoppingRule | None) -> Iterator[int]:
    """Numbers of draws at which the stopping rule is asked, ascending; the last is `n_draws`."""
    look = least_draws
    while stop is not None and look < n_draws:
        yield look
        look = math.ceil(_GROWTH * look)
    yield int(n_draws)


def ends(game: Game) -> tuple[float, float]:
    """Return the utilities of the empty and of the grand coalition."""
    empty, grand = evaluate(game, np.array([[False] * game.n_players, [True] * game.n_players])).tolist()
    return empty, grand


def from_moments(moments: Moments, evaluations: int) -> Estimate:
    """Return the estimate that is the mean of draws; without any, raise :class:`UndeterminedError`."""
    if moments.count == 0:
        raise UndeterminedError("no draw was finished")
    return Estimate(
        draws=moments.count,
        evaluations=evaluations,
        values=moments.mean.copy(),
        stderr=moments.stderr(),
        halves=moments.halves(),
        gelman_rubin=moments.gelman_rubin(),
    )


Formula: TypeAlias = Callable[
    [NDArray[np.bool_], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64] | None]
]
"""From coalitions, bool [draws, n], and utilities, float64 [draws, c], to values and standard errors, [n] each.

Where a draw has several coalitions, the formula sees the first: the others follow from it.
"""


class SampledCoalitions:
    """An estimator that draws coalitions, keeps them with their utilities, and computes values from all of them.

    The first coalition of a draw is kept as packed bits: a million of 200 players take 25 MB, and 8 more for each
    utility. They are unpacked for an estimate, which takes 200 MB for that time.

    Parameters
    ----------
    game : Game
        The game.
    blocks : iterator of bool [draws, c, n]
        Coalitions, `c` a draw, any number of draws a block, without end.
    formula : Formula
        From coalitions and utilities to values and standard errors; a pure function. It may raise `UndeterminedError`.
    fixed_cost : int
        Coalitions evaluated besides the draws.
    least_draws : int
        Draws without which the formula has no answer.
    batch_size : int
        Most coalitions that the game is asked for at a time.
    """

    def __init__(
        self,
        game: Game,
        blocks: Iterator[NDArray[np.bool_]],
        formula: Formula,
        *,
        fixed_cost: int,
        least_draws: int,
        batch_size: int,
    ) -> None:
        self.least_draws = least_draws
        self._fixed_cost = fixed_cost
        self._game = game
        self._blocks = blocks
        self._formula = formula
        self._batch_size = batch_size
        self._left = next(blocks)  # drawn, not yet evaluated
        self._evaluated: list[tuple[NDArray[np.uint8], NDArray[np.float64]]] = []  # packed coalitions, utilities

    def extend(self, n_draws: int) -> Iterator[int]:
        """Draw and evaluate so many times."""
        coalitions_a_draw = self._left.shape[1]
        while n_draws > 0:
            drawn = self._take(min(n_draws, max(1, self._batch_size // coalitions_a_draw)))
            flat = drawn.reshape(-1, self._game.n_players)
            utilities = evaluate_in_batches(self._game, len(flat), flat.__getitem__, self._batch_size)
            self._evaluated.append((np.packbits(drawn[:, 0], axis=1), utilities.reshape(drawn.shape[:2])))
            n_draws -= len(drawn)
            yield from [coalitions_a_draw] * len(drawn)

    def estimate(self) -> Estimate:
        """Return the formula's answer for all draws and, where they are enough and determine it, for either half."""
        draws = sum(len(utilities) for _, utilities in self._evaluated)
        if draws < self.least_draws:
            raise UndeterminedError(f"{draws} draws were finished, {self.least_draws} are the fewest for an estimate")
        parts, utilities_of_parts = zip(*self._evaluated, strict=True)
        coalitions = np.unpackbits(np.concatenate(parts), axis=1, count=self._game.n_players).view(np.bool_)
        utilities = np.concatenate(utilities_of_parts)
        values, stderr = self._formula(coalitions, utilities)
        halves = None
        if len(utilities) // 2 >= self.least_draws:
            with suppress(UndeterminedError):
                halves = np.array([self._formula(coalitions[half::2], utilities[half::2])[0] for half in (0, 1)])
        evaluations = self._fixed_cost + utilities.size
        return Estimate(len(utilities), evaluations, values, stderr, halves, gelman_rubin=None)

    def _take(self, n_draws: int) -> NDArray[np.bool_]:
        """The next `n_draws` draws."""
        parts, wanted = [], n_draws
        while wanted > 0:
            if len(self._left) == 0:
                self._left = next(self._blocks)
            parts.append(self._left[:wanted])
            self._left = self._left[wanted:]
            wanted -= len(parts[-1])
        return np.concatenate(parts)
