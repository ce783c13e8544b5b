"""``python -m inrun_bench`` is ``inrun-bench``."""

from inrun_bench.cli import main

raise SystemExit(main())
