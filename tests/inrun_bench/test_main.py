import subprocess
import sys

import pytest

from inrun_bench.cli import main


@pytest.mark.parametrize("arguments", [["list"], ["run", "--task", "nobody"]])
def test_the_module_is_the_command(arguments, tmp_path, capsys):
    command = [sys.executable, "-m", "inrun_bench", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    code, told = main(arguments), capsys.readouterr()
    assert (done.returncode, done.stdout, done.stderr) == (code, told.out, told.err)
