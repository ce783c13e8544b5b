"""How many operations a call is made of: as long as that number is the same, it goes the same way.

Autograd numbers the operations that it notes. What lies between two numbers costs nothing to know, and what a model
does more, or less, than before shows in it, whatever made it do so: a number that it drew, a counter, a switch
anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._C import _autograd

__all__ = ["OperationCount"]


class OperationCount:
    """Counts the operations that autograd notes, but for those of layers with rules, which are run in several ways."""

    def __init__(self) -> None:
        self._begun = self._left_out = self._paused_at = 0
        self._depth = 0

    def begin(self) -> None:
        """Count from now on."""
        self._begun, self._left_out, self._depth = _autograd._get_sequence_nr(), 0, 0

    def pause(self) -> None:
        """Leave out what is noted until as many calls of :meth:`go_on`."""
        if not self._depth:
            self._paused_at = _autograd._get_sequence_nr()
        self._depth += 1

    def go_on(self) -> None:
        """End a pause."""
        self._depth -= 1
        if not self._depth:
            self._left_out += _autograd._get_sequence_nr() - self._paused_at

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is noted in this block."""
        self.pause()
        try:
            yield
        finally:
            self.go_on()

    @property
    def counted(self) -> int:
        """How many operations there have been."""
        last = self._paused_at if self._depth else _autograd._get_sequence_nr()
        return last - self._begun - self._left_out
