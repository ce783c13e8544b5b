"""Stacks: many models of one architecture, trained as one batched tensor program.

A stack holds the parameters of m models, each [m, *shape]. Two programs compute with stacks: chains of known layers run
by a few large products (:mod:`tasks.stacks.sequential`, with the layers in :mod:`tasks.stacks.layers`), any other
model by ``torch.func.vmap`` (:mod:`tasks.stacks.vmapped`). :func:`program_of` chooses; tests hold both against a plain
training loop.
"""

from tasks.stacks.batches import own_batches, shared_batches
from tasks.stacks.clipping import clip_factors, clipped
from tasks.stacks.program import Program, program_of
from tasks.stacks.sizing import footprint, optimizer_copies, stack_size
from tasks.stacks.stack import Stack, grouped_by_untrained, stack_of, stack_of_models
from tasks.stacks.training import Descent, judge, train

__all__ = [
    "Descent",
    "Program",
    "Stack",
    "clip_factors",
    "clipped",
    "footprint",
    "grouped_by_untrained",
    "judge",
    "optimizer_copies",
    "own_batches",
    "program_of",
    "shared_batches",
    "stack_of",
    "stack_of_models",
    "stack_size",
    "train",
]
