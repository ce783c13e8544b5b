"""Run the examples and draw their figures anew, as the site shows them: ``tox run -e examples``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from inrun_bench.report.figures import with_a_palette

EXAMPLES = Path(__file__).parent / "examples"


def main(names: list[str]) -> None:
    """Draw the figures of the examples that are named; of all where none is."""
    for script in sorted(EXAMPLES.glob("*.py")):
        if names and script.stem not in names:
            continue
        picture = EXAMPLES / "figures" / f"{script.stem}.png"
        print(f"--- {script.name}", flush=True)
        subprocess.run([sys.executable, script, picture], check=True)  # noqa: S603
        picture.write_bytes(with_a_palette(picture.read_bytes()))


if __name__ == "__main__":
    main(sys.argv[1:])
