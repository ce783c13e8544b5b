"""Plant each fault in a copy of the repository, run the tests that must notice it, and print the share noticed.

    python -m tests.faults                    all faults
    python -m tests.faults adjoint tasks      those of some packages
    python -m tests.faults --only half        those that say so

A fault is noticed where its tests pass without it and fail with it. It is run by hand.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import tests.faults
from tests.faults import Fault

ROOT = Path(__file__).parents[2]
OURS = ("baselines", "inrun_bench", "tasks", "tests")
PRELOADED = ("matplotlib.figure", "pandas", "pyarrow", "pytest", "sklearn.linear_model", "torch")
SECONDS = 300  # tests that hang for so long have noticed


def tables() -> dict[str, list[Fault]]:
    """Return the faults by package."""
    names = [info.name for info in pkgutil.iter_modules(tests.faults.__path__) if info.name != "__main__"]
    return {name: importlib.import_module(f"tests.faults.{name}").FAULTS for name in names}


def copy_of_the_repository(folder: Path) -> Path:
    """Copy what git knows of, changes and new files included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def passes(tree: Path, arguments: str) -> bool:
    """Return whether tests pass in the tree, in a process that has what takes long to import, and nothing of ours."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(tree, arguments))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def _run(tree: Path, arguments: str) -> None:
    import pytest

    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    os.chdir(tree)
    os.environ["PYTHONPATH"] = sys.path[0] = str(tree)
    log = os.open(tree / "last_tests.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os._exit(pytest.main(["-qx", "-p", "no:cacheprovider", *arguments.split()]))


def main() -> int:
    """Return 0 if all faults were noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=f"of {', '.join(tables())}; default: all")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose description holds this text")
    options = parser.parse_args()
    chosen = [
        (package, fault)
        for package, faults in tables().items()
        for fault in faults
        if package in (options.packages or tables()) and options.only in fault.says
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = (
        True  # a fault may be as long as what it takes the place of, and planted in the same second
    )
    for name in PRELOADED:
        importlib.import_module(name)
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_the_repository(Path(folder))
        pass_unchanged = cache(lambda arguments: passes(tree, arguments))
        for package, fault in chosen:
            started = time.perf_counter()
            path = tree / fault.file
            source = path.read_text()
            if not pass_unchanged(fault.tests):
                print((tree / "last_tests.txt").read_text()[-4000:])
                sys.exit(f"these tests fail without a fault: {fault.tests}")
            path.write_text(fault.planted_in(source))
            noticed = not passes(tree, fault.tests)
            path.write_text(source)
            unnoticed += not noticed
            seconds = time.perf_counter() - started
            print(
                f"{'noticed' if noticed else 'NOT NOTICED':<12} {seconds:4.0f} s  {package}: {fault.says}", flush=True
            )
    print(f"{len(chosen) - unnoticed} of {len(chosen)} faults noticed")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
