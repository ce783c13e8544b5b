import importlib
import sys
import textwrap

import pytest

import tasks
from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.methods import METHODS
from tasks.registry import Registry, unknown_name


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Write files into a folder on the path; forget their modules afterwards."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, source=""):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.fixture
def shelf(install):
    """Return a registry over a package of two modules, one of which sorts before the other."""
    install("shelf/__init__.py")
    install("shelf/long_name.py", "THINGS = {'': 1}")
    install("shelf/early.py", "THINGS = {'-a': 2, '-b': 3}")
    import shelf

    return Registry("thing", shelf, lambda name, module: {name + end: v for end, v in module.THINGS.items()}, "shelves")


def add_distribution(folder, name, group, entries):
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{key} = {where}\n" for key, where in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")


def test_modules_are_found_in_alphabetical_order_by_their_names_with_dashes(shelf):
    assert dict(shelf) == {"early-a": 2, "early-b": 3, "long-name": 1}
    assert list(shelf) == ["early-a", "early-b", "long-name"]
    assert len(shelf) == 3


def test_nothing_is_imported_before_it_is_looked_up(shelf):
    assert "shelf.early" not in sys.modules
    assert "early-a" in shelf
    assert "shelf.early" in sys.modules


def test_entry_points_of_other_distributions_come_after_ours(shelf, install, tmp_path):
    install("acme.py", "THING = 7")
    add_distribution(tmp_path, "acme", "shelves", {"their-thing": "acme:THING"})
    add_distribution(tmp_path, "elsewhere", "other.group", {"not-ours": "acme:THING"})
    assert list(shelf) == ["early-a", "early-b", "long-name", "their-thing"]
    assert shelf["their-thing"] == 7


def test_a_module_that_fails_does_not_leave_half_a_registry(shelf, install):
    install("shelf/m.py", "raise OSError('unreadable')")
    for _ in range(2):
        with pytest.raises(OSError, match="unreadable"):
            shelf["early-a"]
    install("shelf/m.py", "THINGS = {}")
    assert list(shelf) == ["early-a", "early-b", "long-name"]


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known_ones(shelf):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        shelf["long-nane"]
    assert str(error.value) == (
        "unknown thing 'long-nane'; did you mean 'long-name'? (known: early-a, early-b, long-name)"
    )
    assert "long-nane" not in shelf


def test_a_name_that_resembles_none_gets_no_suggestion():
    assert unknown_name("thing", "xyz", ["abc", "def"]) == "unknown thing 'xyz' (known: abc, def)"


def test_choosing_keeps_the_order_given_each_once_and_takes_all_where_none_is_given(shelf):
    assert shelf.choose(["long-name", "early-a", "long-name"]) == ("long-name", "early-a")
    assert shelf.choose([]) == ("early-a", "early-b", "long-name")
    with pytest.raises(ValueError, match="unknown thing 'x'"):
        shelf.choose(["early-a", "x"])


@pytest.mark.parametrize("registry", [tasks.CATALOG, METHODS, EXPERIMENTS], ids=lambda r: r._kind)
def test_the_names_of_the_house_fit_file_names_and_command_lines(registry):
    assert len(registry) >= 3
    for name in registry:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert not name.startswith("-")


def test_a_task_of_another_package_is_loaded_like_our_own(install, tmp_path, monkeypatch):
    install(
        "acme.py",
        """
        import numpy as np
        from torch import nn
        from tasks import Recipe, TaskSpec

        def dataset():
            x = np.random.default_rng(0).normal(size=(40, 3))
            return x, (x[:, 0] > 0).astype(np.int64)

        TASK = TaskSpec(
            dataset, lambda: nn.Linear(3, 2), {"sgd": Recipe("sgd", 0.1, 5, 1)},
            n_classes=2, n_train=10, n_validation=10, n_test=20, scaling="feature", summary="blobs",
        )
        """,
    )
    add_distribution(tmp_path, "acme", "inrun_bench.tasks", {"acme-blobs": "acme:TASK"})
    monkeypatch.setattr(tasks.CATALOG, "_found", None)
    assert "acme-blobs" in tasks.names()
    task = tasks.load("acme-blobs", seed=1)
    assert (task.name, task.n_train, len(task.test)) == ("acme-blobs", 10, 20)


@pytest.mark.parametrize("name", ["early-a", "reference", "a/b", "a.b"])
def test_entry_points_take_no_name_that_is_in_use_reserved_or_no_part_of_a_file_name(install, tmp_path, name):
    install("shelf/__init__.py")
    install("shelf/early.py", "THINGS = {'-a': 2}")
    add_distribution(tmp_path, "acme", "shelves", {name: "json:dumps"})
    import shelf

    registry = Registry(
        "thing", shelf, lambda stem, m: {stem + end: v for end, v in m.THINGS.items()}, "shelves", ("reference",)
    )
    with pytest.warns(RuntimeWarning, match=rf"entry point {name!r} of group 'shelves' cannot name a thing"):
        assert dict(registry) == {"early-a": 2}
    assert set(registry.broken) == {name}


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("missing_module:THING", "ModuleNotFoundError"),
        ("breaks:THING", "ZeroDivisionError"),
        ("fine:NOT_THERE", "AttributeError"),
        ("fine:TEXT", "TypeError: entry point 'theirs' loads a str, which is no thing"),
    ],
)
def test_a_broken_entry_point_is_told_of_and_skipped_and_says_why_when_it_is_asked_for(install, tmp_path, where, why):
    install("shelf/__init__.py")
    install("breaks.py", "1 / 0")
    install("fine.py", "NUMBER, TEXT = 1, 'text'")
    add_distribution(tmp_path, "acme", "shelves", {"theirs": where, "others": "fine:NUMBER"})
    import shelf

    registry = Registry("thing", shelf, lambda *_: {}, "shelves", accepts=lambda thing: isinstance(thing, int))
    with pytest.warns(RuntimeWarning, match=f"thing 'theirs' .* is skipped: {why}"):
        assert dict(registry) == {"others": 1}
    with pytest.raises(ValueError, match=f"thing 'theirs' cannot be used: {why}"):
        registry["theirs"]


@pytest.mark.parametrize(("registry", "kind"), [(tasks.CATALOG, "task"), (METHODS, "method")])
def test_a_plug_in_of_another_kind_is_skipped(install, tmp_path, monkeypatch, registry, kind):
    install("acme.py", "THING = 7")
    add_distribution(tmp_path, "acme", f"inrun_bench.{kind}s", {"acme": "acme:THING"})
    monkeypatch.setattr(registry, "_found", None)
    monkeypatch.setattr(registry, "_broken", {})
    with pytest.warns(RuntimeWarning, match=f"loads a int, which is no {kind}"):
        assert "acme" not in registry
