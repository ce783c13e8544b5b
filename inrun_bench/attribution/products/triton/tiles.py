"""What kernels that cut their work into tiles share: the choice of one, and what an ahead-of-time compiler is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["PROGRAMS", "ceil_div", "choose_tile", "divisible", "tile_constants"]

PROGRAMS = 264  # two for each processor of an H100 or H200


def ceil_div(amount: int, share: int) -> int:
    """Return how many shares an amount makes, the last one perhaps not full; ``triton.cdiv`` takes microseconds."""
    return -(-amount // share)


def choose_tile(configs: Sequence[dict[str, int]], rows: int, columns: int) -> dict[str, int]:
    """Return the candidate with the most rows that still makes enough programs; from sizes, never from timing.

    Two runs that timed differently would add in different orders, and differ in their last bits.

    Parameters
    ----------
    configs : sequence of dict
        Candidates, by ascending BLOCK_M.
    rows, columns : int
        Rows to be cut into tiles of BLOCK_M, and programs for each tile.
    """
    enough = [config for config in configs if ceil_div(rows, config["BLOCK_M"]) * columns >= PROGRAMS]
    return enough[-1] if enough else configs[0]


def tile_constants(config: dict[str, int]) -> dict[str, int]:
    """Return a candidate's sizes that are the kernel's constants, without those that are Triton's own options."""
    return {name: size for name, size in config.items() if name.isupper()}


def divisible(kernel: Any, names: Sequence[str]) -> dict[tuple[int], list[list[Any]]]:
    """Return, ahead of time, that these arguments are multiples of 16, as the launcher finds them for common sizes."""
    return {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in names}
