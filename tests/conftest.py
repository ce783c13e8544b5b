from hypothesis import settings

# the same examples at each run, and no time limit on an example: a slow machine is no defect
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")
