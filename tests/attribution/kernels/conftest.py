import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned():
    """Fill torch.empty with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
