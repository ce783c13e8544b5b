"""Random numbers drawn again: the state of the generators at one moment, to go back to for the time of a block."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["GENERATORS", "RandomState"]

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


@dataclass(frozen=True)
class RandomState:
    """State of torch's generators of the CPU and of one GPU, if there is one; of Python's and NumPy's, where asked."""

    cpu: Tensor
    device: torch.device | None = None
    of_device: Tensor | None = None
    others: tuple[Any, Any] | None = None
    generators: tuple[tuple[Any, Any], ...] = ()

    @classmethod
    def now(
        cls, tensors: Sequence[Tensor] = (), *, others: bool = False, generators: Sequence[Any] = ()
    ) -> RandomState:
        """Return the present state, that of the GPU on which the tensors lie, and of `others` than torch's.

        `generators` are of :data:`GENERATORS`; their states are taken as well.
        """
        device = next((tensor.device for tensor in tensors if tensor.device.type == "cuda"), None)
        of_device = None if device is None else torch.cuda.get_rng_state(device)
        own = tuple((each, _state_of(each)) for each in generators)
        return cls(torch.get_rng_state(), device, of_device, _others() if others else None, own)

    def drawn_from(self) -> bool:
        """Whether random numbers were drawn since."""
        if not torch.equal(self.cpu, torch.get_rng_state()):
            return True
        if self.device is None or self.of_device is None:
            return False
        return not torch.equal(self.of_device, torch.cuda.get_rng_state(self.device))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Go back to this state in the block, and leave everyone else's random numbers as they were."""
        present = None if self.others is None else _others()
        states = [_state_of(each) for each, _ in self.generators]
        try:
            with torch.random.fork_rng(devices=[] if self.device is None else [self.device]):
                torch.set_rng_state(self.cpu)
                if self.device is not None and self.of_device is not None:
                    torch.cuda.set_rng_state(self.of_device, self.device)
                _set_others(self.others)
                for each, state in self.generators:
                    _set_state(each, state)
                yield
        finally:
            _set_others(present)
            for (each, _), state in zip(self.generators, states, strict=True):
                _set_state(each, state)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _others() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()  # noqa: NPY002 - the state of others


def _set_others(states: tuple[Any, Any] | None) -> None:
    if states is not None:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
