"""What compiled graphs hand over."""

import torch
from torch import nn

from inrun_bench.attribution.capture.batch_axis import DeclaredAxes
from inrun_bench.attribution.capture.capture import Capture
from inrun_bench.attribution.layer_terms import MicroBatch


def test_terms_are_the_receivers_own():
    """A compiled graph writes later numbers over what it has handed out; a term that waits for its probe keeps them."""
    terms = []
    capture = Capture(nn.Sequential(nn.Linear(3, 2)), terms.append, DeclaredAxes("observed"), "project")
    capture.show(MicroBatch(0, 4))
    for axis in (0, 1):
        a, b = torch.ones(4, 4, 3), torch.ones(4, 4, 2)
        capture._layers.receive_compiled(0, axis, a, b)
        for x in (a, b):
            x.zero_()
        assert terms[-1].a.all()
        assert terms[-1].b.all()
