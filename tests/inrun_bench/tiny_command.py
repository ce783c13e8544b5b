"""The command line, as a process of its own, with the quick profile made tiny."""

import sys

from inrun_bench.cli import main
from inrun_bench.plan import PROFILES
from tests.inrun_bench.tiny import PROFILE

if __name__ == "__main__":
    PROFILES["quick"] = PROFILE
    sys.exit(main())
