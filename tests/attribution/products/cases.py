"""Random inputs, and the error of scores, for all kernels."""

import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def error(scores, truth):
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    return ((scores.double() - truth).norm() / truth.norm()).item()
