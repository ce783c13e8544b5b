"""Faults that the tests must notice: single changes that make the code silently wrong.

One file a package, each with a table ``FAULTS``. ``python -m tests.faults`` plants each in a copy of the repository and
runs the tests that must notice it; ``tests/test_faults.py``, which is part of the suite, checks that each can still be
planted. A fault that nothing notices is a mechanism without a test: write the law that it breaks, or take it out.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Fault"]


@dataclass(frozen=True)
class Fault:
    """A change of one place of a file.

    Attributes
    ----------
    says : str
        What is wrong then.
    file : str
        Where, from the root of the repository.
    before, after : str
        The text there, which occurs once, and what takes its place.
    tests : str
        What must notice: arguments of pytest.
    """

    says: str
    file: str
    before: str
    after: str
    tests: str

    def planted_in(self, source: str) -> str:
        """Return the source with the fault; ValueError if the place is not to be found, or not the only one."""
        if source.count(self.before) != 1:
            raise ValueError(f"{self.before!r} occurs {source.count(self.before)} times in {self.file}, and not once")
        return source.replace(self.before, self.after)
