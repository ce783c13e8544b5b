from inrun_bench.experiments.registry import EXPERIMENTS as EXPERIMENTS
from inrun_bench.experiments.registry import Experiment as Experiment
from inrun_bench.experiments.registry import units_of as units_of
