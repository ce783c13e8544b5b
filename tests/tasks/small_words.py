"""A small language model."""

from torch import nn

from tasks.architectures import GPT


class Words(nn.Module):
    """A transformer, which no chain of layers can serve; it takes its tokens as numbers, as tasks hold them."""

    def __init__(self):
        super().__init__()
        self.gpt = GPT(vocabulary=7, context=4, width=8, heads=2, blocks=1)

    def forward(self, x):
        return self.gpt(x.long())
