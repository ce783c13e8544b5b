"""Numbers on their way from the device to the host, which does not wait for them.

A GPU works off a queue. To read a number of its memory the host waits until the queue is empty, and then the GPU waits
for the host. So the numbers of a step stay where they were computed, travel together in one copy, and are looked at
when the next step is in the queue. All that the engine reads of a device passes through :func:`to_host`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Numbers", "Use", "at_hand", "gathered", "to_host"]

Use: TypeAlias = Callable[[NDArray[np.float64]], bool | None]
"""What is done with numbers on the host. It may raise, or return True, to have those expected after them left alone."""


class Numbers:
    """Numbers on a device, and what is to be done with them on the host."""

    def __init__(self) -> None:
        self._expected: list[tuple[Tensor, Use]] = []
        self._shapes: list[tuple[torch.Size, Use]] = []
        self._arrival: Callable[[], NDArray[np.float64]] | None = None

    def expect(self, numbers: Tensor, use: Use) -> None:
        """Have `use` called with the numbers, float64 in their shape, once they are read, in the order of these calls.

        Until then, `use` and all that it holds stay in memory.
        """
        self._expected.append((numbers.detach(), use))

    def join(self, others: Numbers) -> None:
        """Expect what the others expect; they are left empty."""
        self._expected += others._expected
        others._expected = []

    def send(self) -> None:
        """Start the copy of all that is expected."""
        tensors = [numbers for numbers, _ in self._expected]
        device = next((x.device for x in tensors if x.device.type != "cpu"), torch.device("cpu"))
        together = [x.reshape(-1).to(device, torch.float64, non_blocking=True) for x in tensors]
        self._shapes = [(numbers.shape, use) for numbers, use in self._expected]
        self._arrival = to_host(torch.cat(together)) if together else None
        self._expected = []

    def read(self) -> None:
        """Wait for the numbers, after sending them where that has not been done, and use them."""
        if self._arrival is None:
            self.send()
        arrival, self._arrival = self._arrival, None
        shapes, self._shapes = self._shapes, []
        numbers = np.empty(0) if arrival is None else arrival()
        start = 0
        for shape, use in shapes:
            end = start + shape.numel()
            if use(numbers[start:end].reshape(shape)):
                return
            start = end


def to_host(numbers: Tensor) -> Callable[[], NDArray[np.float64]]:
    """Start the copy of a tensor to the host, and return the function that waits for it and gives its numbers."""
    if numbers.device.type != "cuda":
        return lambda: numbers.detach().cpu().numpy()
    pinned = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)  # any other copy would wait
    pinned.copy_(numbers, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(numbers.device))

    def arrival() -> NDArray[np.float64]:
        copied.synchronize()
        return pinned.numpy()

    return arrival


def at_hand(tensors: Sequence[Tensor]) -> list[NDArray[np.float64]] | None:
    """Return the numbers of tensors for which nobody has to wait; None where one of them lies on a device."""
    if any(x.device.type != "cpu" for x in tensors):
        return None
    return [x.detach().numpy() for x in tensors]


def gathered(scalars: Sequence[Tensor]) -> Tensor:
    """Return scalar tensors as one vector, or others of one shape as one with an axis more, of any devices and dtypes.

    It lies on the first one's device.
    """
    if not scalars:
        return torch.zeros(0)
    device = scalars[0].device
    return torch.stack([scalar if scalar.device == device else scalar.to(device) for scalar in scalars])
