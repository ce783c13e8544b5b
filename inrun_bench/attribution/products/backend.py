"""Which of a kernel's two implementations runs: the Triton kernel, or its twin in plain torch."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

__all__ = ["Backend", "choose", "interpreted", "interpreter_obstacle"]

Backend: TypeAlias = Literal["auto", "triton", "torch"]

BACKENDS = get_args(Backend)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MISSING = "Triton is not installed (pip install triton)"

logger = logging.getLogger(__name__)


def choose(kernel: str, backend: Backend, *tensors: Tensor) -> Literal["triton", "torch"]:
    """Return the implementation that serves these tensors.

    Parameters
    ----------
    kernel : str
        Its name, for messages.
    backend : {"auto", "triton", "torch"}
        ``"auto"`` takes Triton on a GPU that it serves, for float32, float16 and bfloat16, and torch elsewhere; the
        others force one.
    *tensors : Tensor
        What the kernel is to read; all on one device.

    Raises
    ------
    ValueError
        If `backend` is unknown, or ``"triton"`` is forced where it cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of 'auto', 'triton', 'torch', got {backend!r}")
    if backend == "torch" or (backend == "auto" and not tensors[0].is_cuda):
        return "torch"
    obstacle = _obstacle(tensors)
    if obstacle is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"{kernel}: backend='triton' cannot run: {obstacle}")
    _say_once(kernel, obstacle)
    return "torch"


def interpreted() -> bool:
    """Return whether Triton's interpreter runs kernels on the CPU (``TRITON_INTERPRET=1``), to check them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def interpreter_obstacle() -> str | None:
    """Return why Triton's interpreter cannot run kernels here; None where it can."""
    if not _installed():
        return MISSING
    import triton  # here: it reads TRITON_INTERPRET when it is first imported

    major, minor, *_ = triton.__version__.split(".")
    if (int(major), int(minor)) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        return (  # it makes numbers of arrays that are not 0-dimensional, which NumPy 2.4 no longer does
            f"the interpreter of Triton {triton.__version__} does not work with NumPy {np.__version__}; "
            "install numpy<2.4, or Triton 3.7 or later"
        )
    return None


def _obstacle(tensors: tuple[Tensor, ...]) -> str | None:
    if not _installed():
        return MISSING
    first = tensors[0]
    if any(tensor.device != first.device for tensor in tensors):
        return f"tensors lie on several devices: {', '.join(sorted({str(t.device) for t in tensors}))}"
    if not first.is_cuda and not (interpreted() and first.device.type == "cpu"):
        return (
            f"tensors lie on {first.device}, and Triton needs a GPU; to check kernels on the CPU, start Python with "
            "TRITON_INTERPRET=1"
        )
    strange = [tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.dtype not in DTYPES]
    if strange:
        return f"dtype {strange[0]} is not one of {', '.join(map(str, DTYPES))}"
    return interpreter_obstacle() if interpreted() else None


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _say_once(kernel: str, obstacle: str) -> None:
    logger.debug("%s: the torch twin runs, since %s", kernel, obstacle)
