"""``python -m inrun_bench.experiments.gpu``: another name of ``inrun-bench run gpu``, which a clone has, too."""

import sys

if __name__ == "__main__":
    from inrun_bench.cli import main  # here: a worker imports this module, and draws nothing

    sys.exit(main(["run", "gpu", "--out", "runs/gpu", *sys.argv[1:]]))
