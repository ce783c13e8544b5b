import runpy
import sys

import pytest

from inrun_bench.cli import main


@pytest.mark.parametrize("arguments", [["list"], ["run", "--task", "nobody"]])
def test_the_module_is_the_command(arguments, monkeypatch, capsys):
    expected = main(arguments), *capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["inrun_bench", *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("inrun_bench", run_name="__main__")
    assert (left.value.code, *capsys.readouterr()) == expected
