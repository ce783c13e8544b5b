"""Models in which arithmetic, and not Python, takes the time: the cost of a training step with values is told by them.

No layer couples samples (no batch norm) and none draws random numbers (no dropout), so that every sample has a gradient
of its own and every order of In-Run Data Shapley can be computed.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

__all__ = ["GPT", "cnn", "mlp", "small_resnet"]


class GPT(nn.Module):
    """A decoder-only transformer of GPT-2's make: learned positions, layer norm first, GELU, a head of its own.

    Parameters
    ----------
    vocabulary : int
        Number of tokens; 256 for bytes.
    context : int
        Longest sequence.
    width, heads, blocks : int
        Size of a position's vector, attention heads, and transformer blocks.

    Examples
    --------
    >>> tokens = torch.zeros(2, 5, dtype=torch.int64)
    >>> GPT(vocabulary=7, context=5, width=8, heads=2, blocks=1)(tokens).shape
    torch.Size([2, 5, 7])
    """

    def __init__(
        self, vocabulary: int = 256, context: int = 256, width: int = 256, heads: int = 8, blocks: int = 4
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of the next token, [B, T, vocabulary], for tokens int64 [B, T]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.blocks(self.token(tokens) + self.position(positions))
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


class _Block(nn.Module):
    """Attention and a perceptron, each on the normed input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_perceptron = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # x [B, T, width]
        x = x + self._attention(self.norm_attention(x))
        added: torch.Tensor = x + self.perceptron(self.norm_perceptron(x))
        return added

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        split = self.query_key_value(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split  # each [B, heads, T, width / heads]
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: torch.Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return projected


def mlp(n_inputs: int = 784, width: int = 1024, n_classes: int = 10) -> nn.Sequential:
    """Return a perceptron of three hidden layers, for images [B, ...] of `n_inputs` numbers."""
    sizes = (n_inputs, width, width, width)
    hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, n_classes))


def cnn(n_channels: int = 1, width: int = 32, n_classes: int = 10) -> nn.Sequential:
    """Return a residual network with group norm, for images [B, n_channels, height, width].

    A stem, then three stages of one residual block each; the later two halve the image and double the channels.
    """
    stages = [_Residual(width, width, 1), _Residual(width, 2 * width, 2), _Residual(2 * width, 4 * width, 2)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, n_classes))
    return nn.Sequential(*_convolved(n_channels, width, 1), nn.ReLU(), *stages, *head)


def small_resnet(n_channels: int = 1, width: int = 8, n_classes: int = 10) -> nn.Sequential:
    """Return a residual network with group norm that a core trains in seconds, for images [B, n_channels, h, w].

    A stem that halves the image, a residual block, one that halves it again and doubles the channels, and a linear
    head on a mean over 4 x 4 regions. `width` is a multiple of 8.
    """
    stem = (nn.Conv2d(n_channels, width, 3, stride=2, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU())
    blocks = (_Residual(width, width, 1), _Residual(width, 2 * width, 2))
    head = (nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 2 * width, n_classes))
    return nn.Sequential(*stem, *blocks, *head)


class _Residual(nn.Module):
    """Two normed convolutions, added to the input, which is brought to their shape where it must."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolved(n_in, n_out, stride), nn.ReLU(), *_convolved(n_out, n_out, 1))
        same = n_in == n_out and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def _convolved(n_in: int, n_out: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False), nn.GroupNorm(8, n_out)
