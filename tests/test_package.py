"""Wheel and source archive hold what they need and nothing else, and work from another folder: tox run -e package."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from inrun_bench.experiments import EXPERIMENTS

pytest.importorskip("build", reason="tox run -e package installs what builds packages")

ROOT = Path(__file__).parents[1]
PACKAGES = ("baselines", "inrun_bench", "tasks")


def run(*command, cwd, **more):
    return subprocess.run(list(map(str, command)), cwd=cwd, check=True, capture_output=True, text=True, **more).stdout


def run_installed(*command, cwd):
    return run(*command, cwd=cwd, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source archive, made of what a clone has, and the wheel, made of the source archive."""
    folder = tmp_path_factory.mktemp("package")
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    tracked = run(git, "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(lambda name: name and (ROOT / name).is_file(), tracked):
        (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "clone" / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "clone", cwd=folder)
    (source,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return source, wheel


def expected():
    """Files of the packages: modules, stubs and that they have types, templates of the report, and the references."""
    wanted = [f"{package}/**/*.{suffix}" for package in PACKAGES for suffix in ("py", "pyi")]
    wanted += [*(f"{package}/py.typed" for package in PACKAGES), "inrun_bench/report/templates/*"]
    wanted += [f"results/reference/**/*.{suffix}" for suffix in ("py", "json", "md", "parquet")]
    return {path.relative_to(ROOT).as_posix() for pattern in wanted for path in ROOT.glob(pattern)}


def test_the_wheel_holds_the_packages_and_nothing_else(archives):
    names = {name for name in zipfile.ZipFile(archives[1]).namelist() if ".dist-info/" not in name}
    assert names == expected()


def test_the_source_archive_holds_no_more_than_it_needs(archives):
    with tarfile.open(archives[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in names if re.match(r"PKG-INFO|setup\.cfg|\w+\.egg-info/", name)}
    assert names - made == expected() | {"README.md", "LICENSE", "MANIFEST.in", "pyproject.toml"}


def test_an_index_would_take_them(archives):
    pytest.importorskip("twine")
    assert "FAILED" not in run(sys.executable, "-m", "twine", "check", "--strict", *archives, cwd=ROOT)


@pytest.fixture(scope="module")
def environment(archives, tmp_path_factory):
    """A fresh environment with the wheel, which borrows the libraries of this one; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", archives[1])
    run(sys.executable, *install, cwd=folder)
    # as a plain entry of the path, after the own ones: editable installs over there do not count here
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder, python


def test_the_installed_command_lists_the_experiments_from_another_folder(environment, tmp_path):
    _, python = environment
    listed = run_installed(python.with_name("inrun-bench"), "list", cwd=tmp_path)
    assert listed == run_installed(python, "-m", "inrun_bench", "list", cwd=tmp_path)
    assert set(EXPERIMENTS) <= set(re.findall(r"^  (\S+)", listed.partition("tasks:")[0], re.MULTILINE))
    assert not list(tmp_path.iterdir())


def test_the_installed_package_finds_its_references(environment, tmp_path):
    folder, python = environment
    program = """
import inrun_bench
from inrun_bench.reference.blocks import read, references
print(inrun_bench.__file__, len(read(references(), "iris-logreg").valuations["loss"].values))
"""
    where, number = run_installed(python, "-c", program, cwd=tmp_path).split()
    assert Path(where).is_relative_to(folder)
    assert number == "16"
