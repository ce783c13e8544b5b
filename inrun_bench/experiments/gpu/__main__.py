"""``python -m inrun_bench.experiments.gpu``: another name of ``inrun-bench run gpu``, which a clone has, too."""

import sys

from inrun_bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "gpu", "--out", "runs/gpu", *sys.argv[1:]]))
