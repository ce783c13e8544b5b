"""An experiment whose units kill the process that measures them, as the kernel does where memory runs out."""

import os
import signal
import time
from pathlib import Path

from inrun_bench.unit import Unit

EXCLUSIVE = False


def unit(method, *needs, **settings):
    return Unit("hazards", "task", method, 0, settings, needs)


def measure(unit, needs):
    """Add up; but 'poison' dies each time, and a unit with `dies_once` dies if that file is not there, and makes it."""
    time.sleep(unit.settings.get("seconds", 0.05))
    flag = unit.settings.get("dies_once")
    if unit.method == "poison" or (flag and not Path(flag).exists()):
        if flag:
            Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    total = 1.0 + sum(rows["value"].sum() for rows in needs.values())
    return [{"metric": "sum", "value": total, "pid": os.getpid()}]
