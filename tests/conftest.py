import os

from hypothesis import settings

# Triton's interpreter runs kernels where there is no GPU; it must be asked for before Triton is first imported
os.environ.setdefault("TRITON_INTERPRET", "1")

# the same examples at each run, and no time limit on an example: a slow machine is no defect
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")
