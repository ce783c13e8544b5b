"""Units that do to the process that measures them what a GPU may do to it."""

import os
import signal
import time
from pathlib import Path

import psutil

from inrun_bench.experiments.gpu.rounds import DeviceLostError
from inrun_bench.experiments.gpu.worker import Worker
from inrun_bench.runs.unit import Unit


def measure(unit, needs, attempt):
    """Run three methods; the second does what the setting ``breaks`` says."""
    breaks, rows = unit.settings.get("breaks"), []
    for method in attempt.wanted(("good", "bad", "late")):
        attempt.begin(method)
        if method == "bad" and breaks == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if method == "bad" and breaks == "hangs":
            if "pid" in unit.settings:
                Path(unit.settings["pid"]).write_text(f"{os.getpid()}\n")
            time.sleep(1000)
        if method == "bad" and breaks == "loses the device":
            raise DeviceLostError("AcceleratorError: an illegal memory access was encountered")
        if method == "bad" and breaks == "raises":
            raise ZeroDivisionError("by zero")
        rows.append({"method": method, "metric": "m", "value": 1.0, "pid": os.getpid()})
    return rows


def hang(pid):
    """Have a worker measure what never ends, and leaves its process id in the file `pid`."""
    Worker(measure).try_unit(Unit("gpu", "task", "hanging", 0, {"breaks": "hangs", "pid": str(pid)}), {}, {}, 1000.0)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
