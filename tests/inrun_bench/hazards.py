"""What a worker does in place of measuring, in a file that imports little: of ours, a worker takes seconds to start."""

import os
import signal
import time
from pathlib import Path


def do(call, *arguments):
    return call(*arguments)


def strike(dies, flag, seconds):
    """Return the process id after a while; but die if `dies`, or if `flag` names a file that is not there yet."""
    time.sleep(seconds)
    unlucky = flag and not Path(flag).exists()
    if unlucky:
        Path(flag).touch()
    if dies or unlucky:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()
