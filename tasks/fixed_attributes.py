"""Attributes that are set once: what an identity follows from does not change under it."""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = ["FixedAttributes"]


class FixedAttributes:
    """An object with attributes that cannot be set again; their names are those in `fixed`."""

    fixed: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; AttributeError if it is fixed and has been set."""
        if name in self.fixed and name in vars(self):
            raise AttributeError(
                f"{name} of a {type(self).__name__} cannot be changed, since stored utilities are known by it, got "
                f"{value!r} in place of {getattr(self, name)!r}; make another game"
            )
        super().__setattr__(name, value)
