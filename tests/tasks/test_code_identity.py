"""Digests of code: they follow a change of whatever code an object reaches, and nothing else; or they are refused."""

import functools
import importlib
import os
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
from sklearn.metrics import make_scorer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from tasks import code_identity as code_identity_module
from tasks.code_identity import CodeIdentityError, code_identity

ESTIMATOR = """
import functools
from sklearn.base import BaseEstimator
{imports}
class Mine(BaseEstimator):
    def fit(self, x, y):
        {body}
        return self
def score(y, z):
    return {constant}
def decorating(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper
def closing_over(value):
    return lambda: value
def defaults(value):
    return lambda x=value: x
def keyword_defaults(value):
    return lambda *, x=value: x
def recursive(value):
    def walk(depth):
        return value if depth == 0 else walk(depth - 1)
    return walk
first, second = (lambda y, z: 1.0), (lambda y, z: 2.0)
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that writes modules and imports the first of them anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = set()

    def forget():
        for name in names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    def load(**sources: str) -> ModuleType:
        for name, source in sources.items():
            file = tmp_path / f"{name.replace('__', '/')}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(source)
        names.update(*({name.replace("__", "."), name.split("__")[0]} for name in sources))
        forget()
        return importlib.import_module(next(iter(sources)).replace("__", "."))

    yield load
    forget()


def mine(imports="", body="pass", constant=1.0):
    return ESTIMATOR.format(imports=imports, body=body, constant=constant)


REACHING = {
    "instance": lambda module: module.Mine(),
    "class": lambda module: module.Mine,
    "function": lambda module: module.score,
    "module": lambda module: module,
    "part of a pipeline": lambda module: make_pipeline(FunctionTransformer(), module.Mine()),
    "function of a transformer": lambda module: FunctionTransformer(module.score),
    "scorer": lambda module: make_scorer(module.score),
    "partial": lambda module: functools.partial(module.score, 1),
    "bound method": lambda module: module.Mine().fit,
    "closure": lambda module: module.closing_over(1),
    "closed over": lambda module: functools.wraps(module.score)(lambda y, z: module.score(y, z)),
    "decorator": lambda module: module.decorating(len),
    "in a dict": lambda module: {"a": [module.score]},
}


@pytest.mark.parametrize("reach", REACHING.values(), ids=REACHING.keys())
def test_a_change_of_the_code_that_an_object_reaches_is_seen(load, reach):
    before = code_identity(reach(load(mine_a=mine())))
    assert code_identity(reach(load(mine_a=mine()))) == before
    assert code_identity(reach(load(mine_a=mine(body="self.coef_ = 1")))) != before


@pytest.mark.parametrize(
    ("imports", "body"),
    [
        ("import mine_b", "pass"),
        ("from mine_b import value", "pass"),
        ("from mine_b import *", "pass"),
        ("import mine_c", "pass"),
        ("", "import mine_b"),
        ("", "from mine_c import value"),
        ("try:\n    import mine_b\nexcept ImportError:\n    pass", "pass"),
    ],
)
def test_a_change_of_a_module_that_the_code_imports_is_seen(load, imports, body):
    source = mine(imports, body)

    def identity(value):
        return code_identity(load(mine_a=source, mine_b=f"value = {value}", mine_c="from mine_b import value").Mine())

    before = identity(1)
    assert identity(1) == before
    assert identity(2) != before


def test_a_change_of_a_base_class_is_seen(load):
    source = "import importlib\nclass Sub(importlib.import_module('mine_b').Mine):\n    pass"
    before, after = (code_identity(load(mine_a=source, mine_b=mine(body=body)).Sub()) for body in ("pass", "return 1"))
    assert before != after


def test_packages_and_their_relative_imports_are_followed(load, tmp_path):
    def identity(value, initial):
        head = f"{'from .part import value' if value else ''}\nclass Head:\n    pass"
        sources = {"pack__head": head, "pack__part": f"value = {value}"}
        tmp_path.joinpath("pack").mkdir(exist_ok=True)
        tmp_path.joinpath("pack", "__init__.py").write_text(initial)
        return code_identity(load(**sources).Head())

    assert len({identity(1, ""), identity(2, ""), identity(1, "import sys")}) == 3
    assert identity(0, "") != identity(0, "import sys")


def test_packages_without_an_initial_module_are_followed(load):
    before, after = (
        code_identity(load(space__head=f"value = {value}\nclass Head:\n    pass").Head()) for value in "12"
    )
    assert before != after


def test_functions_without_a_name_are_told_apart_by_their_code_and_by_what_they_close_over(load):
    module = load(mine_a=mine())
    things = [
        module.first,
        module.second,
        module.closing_over(1),
        module.closing_over(2),
        module.closing_over(module.score),
        *(make(value) for make in (module.defaults, module.keyword_defaults, module.recursive) for value in (1, 2)),
        module.Mine(),
        module.Mine,
    ]
    identities = [code_identity(thing) for thing in things]
    assert len(set(identities)) == len(things)
    assert code_identity(module.recursive(2)) == identities[-3]


def test_identity_is_the_same_in_another_process_with_another_order_of_sets(load, tmp_path):
    module = load(mine_a=mine() + "\nlocal = lambda x: x in {'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}\n")
    program = "import mine_a, tasks.code_identity as c; print(c.code_identity([mine_a.local, {'a', 'b'}]))"
    there = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "PYTHONHASHSEED": "1"},
    )
    assert there.stdout.strip() == code_identity([module.local, {"a", "b"}])


def identity_of_what_imports_theirs(load, **how):
    for name in ("theirs", "theirs.part"):
        sys.modules.pop(name, None)
    return code_identity(load(mine_a=mine(imports="def later():\n    import theirs.part")).Mine(), **how)


def test_what_is_installed_counts_by_version_and_what_was_installed_from_a_folder_by_source(load, tmp_path):
    folder = tmp_path / "site-packages"
    info = folder / "theirs-1.dist-info"
    info.mkdir(parents=True)
    folder.joinpath("theirs").mkdir()
    folder.joinpath("theirs", "__init__.py").touch()
    sys.path.insert(0, str(folder))  # the fixture restores it

    def identity(*, value=1, version=1, origin="", installer="pip", **how):
        folder.joinpath("theirs", "part.py").write_text(f"value = {value}")
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: theirs\nVersion: {version}\n")
        info.joinpath("top_level.txt").write_text("theirs")
        info.joinpath("direct_url.json").write_text(origin or "{}")
        info.joinpath("INSTALLER").write_text(installer)
        code_identity_module._owners.cache_clear()
        code_identity_module._installed.cache_clear()
        return identity_of_what_imports_theirs(load, **how)

    released = identity()
    assert identity(value=2) == released
    assert identity(version=2) != released
    commit = '{"url": "u", "vcs_info": {"commit_id": "%s"}}'
    assert len({released, identity(origin=commit % "a"), identity(origin=commit % "b")}) == 3
    from_folder = '{"url": "u", "dir_info": {}}'
    assert identity(origin=from_folder) != identity(origin=from_folder, value=2)
    assert identity(origin=from_folder, installer="conda") == released

    optional = identity(optional=["theirs"])
    assert optional == identity(optional=["theirs"], version=2) != released
    shutil.rmtree(folder)
    assert identity_of_what_imports_theirs(load, optional=["theirs"]) == optional


def test_the_standard_library_counts_by_version_and_the_project_by_source_where_it_is_no_release(load):
    sources, releases = code_identity_module._code_of({"functools", "builtins", "tasks.learners.ridge"})
    assert {"tasks.learners.ridge", "tasks.learners.parameters", "baselines.game"} <= set(sources)
    assert {name.partition(".")[0] for name in sources} <= {"baselines", "tasks"}
    assert f"python {sys.version_info.major}.{sys.version_info.minor}" in releases
    assert {"python", "numpy", "torch"} <= {name.split()[0] for name in releases}
    load(mine_a="try:\n    import absent.part\nexcept ImportError:\n    pass")
    sources, _ = code_identity_module._code_of({"mine_a"})
    assert list(sources) == ["mine_a"]


def test_a_source_is_read_again_once_it_has_changed(load):
    first = code_identity(load(mine_b="VALUE = 1"))
    assert code_identity(load(mine_b="VALUE = 1")) == first
    assert code_identity(load(mine_b="VALUE = 2")) != first


def test_a_source_that_nobody_has_imported_is_read_again_once_it_has_changed(load, tmp_path):
    module = load(mine_a=mine(imports="def later():\n    import mine_b"), mine_b="VALUE = 1")
    sys.modules.pop("mine_b", None)
    first = code_identity(module.Mine())
    tmp_path.joinpath("mine_b.py").write_text("VALUE = 23")
    assert code_identity(module.Mine()) != first


def test_code_whose_source_is_not_to_be_had_is_refused(load):
    def local():
        class Local:
            pass

        return Local()

    with pytest.raises(CodeIdentityError, match=r"can be pickled, and one of class Local fails with .*local"):
        code_identity(local())
    with pytest.raises(CodeIdentityError, match="can be pickled, and one of class generator fails with"):
        code_identity(_ for _ in ())

    interactive = ModuleType("interactive")
    sys.modules["interactive"] = interactive
    try:
        exec(mine(), vars(interactive))  # noqa: S102  # as a notebook does
        for thing in (interactive.Mine(), interactive.score, interactive.first):
            with pytest.raises(CodeIdentityError, match="the source of module interactive is not to be had: it has no"):
                code_identity(thing)
    finally:
        del sys.modules["interactive"]
    with pytest.raises(CodeIdentityError, match=r"function score is not .* this process has no module 'interactive'"):
        code_identity(interactive.score)


@pytest.mark.parametrize("imported", ["mine_a", "mine_b"])
def test_functions_that_are_not_those_of_the_file_any_more_are_refused(load, tmp_path, imported):
    module = load(mine_a="import mine_b\n" + mine(), mine_b=mine())
    code_identity(module.Mine())
    file = tmp_path / f"{imported}.py"
    file.write_text(file.read_text().replace("pass", "return 1"))
    with pytest.raises(CodeIdentityError, match=rf"Mine.fit of module {imported} is not what .* after it was imported"):
        code_identity(module.Mine())


def test_an_extension_module_counts_by_its_bytes(load, tmp_path, monkeypatch):
    def identity(compiled):
        module = load(mine_a=mine(imports="import compiled_a"), compiled_a="")
        file = tmp_path / "elsewhere.so"
        file.write_bytes(compiled)
        monkeypatch.setattr(sys.modules["compiled_a"], "__file__", str(file))
        return code_identity(module.Mine())

    assert identity(b"1") == identity(b"1") != identity(b"2")


EXPERIMENT = """
'''Says what it is{doc}.'''
from __future__ import annotations
from mine_b import used, drawing
import mine_c as third
LIMIT, WIDTH = {limit}, {width}
TABLE = dict(a={entry})
def {decorated}
def helper(x):
    return used(x) + LIMIT + TABLE["a"]
helper.{attribute} = 1
class Kept(dict):
    size = {size}
def measure(x):
    return Kept(x=helper(x))
def draw(rows):
    return drawing(rows, WIDTH, third.colour){drawn}
{statement}
"""
PLAIN = {
    "doc": "",
    "limit": 1,
    "width": 2,
    "entry": 3,
    "decorated": "unused(): pass",
    "attribute": "a",
    "size": 4,
    "drawn": "",
    "statement": "measure.tag = 0",
}


def reached(load, b="def used(x):\n    return x\ndef drawing(*_): ...", c="colour = 1", **changes):
    module = load(mine_a=EXPERIMENT.format(**PLAIN | changes), mine_b=b, mine_c=c)
    return code_identity(module.measure, reached_alone=True)


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 5},
        {"entry": 5},
        {"attribute": "b"},
        {"size": 5},
        {"statement": "measure.tag = 1"},
        {"statement": "import mine_d; print(mine_d)"},
        {"b": "def used(x):\n    return 2 * x\ndef drawing(*_): ..."},
        {"width": 5},  # of one statement with a name that is reached
    ],
    ids=str,
)
def test_what_a_function_reaches_in_its_module_is_seen(load, change):
    before = reached(load)
    load(mine_d="value = 1")
    assert reached(load, **change) != before


@pytest.mark.parametrize(
    "change", [{"doc": " now"}, {"drawn": " or 0"}, {"decorated": "unused(x): return x"}, {"c": "colour = 2"}], ids=str
)
def test_what_it_does_not_reach_is_not(load, change):
    assert reached(load, **change) == reached(load)
    assert code_identity(load(mine_a="def measure(x): ...\ny = 1").measure) != code_identity(
        load(mine_a="def measure(x): ...\ny = 2").measure
    )


def test_of_a_function_inside_of_another_all_of_the_module_counts(load):
    source = "def make():\n    def measure(x): ...\n    return measure\ny = {}"
    one, other = (code_identity(load(mine_a=source.format(y)).make(), reached_alone=True) for y in (1, 2))
    assert one != other


@pytest.mark.parametrize(
    "told",
    [
        '"""What it is."""\n{}',
        "# why\n{}",
        '{}\n"""What y is."""',
        "\n\n{}  # how",
    ],
)
def test_words_and_layout_do_not_count(load, told):
    def identity(told, body='"""Fit it."""\n        pass'):
        return code_identity(load(mine_a=told.format(mine(body=body))).Mine())

    assert identity(told) == identity("{}") == identity("{}", body="pass")
    assert identity("{}", body="'text'[0]") != identity("{}")


PACKAGE = """
from mine_c import value
TABLE = {table}
def unused(): return {unused}
def used(): return {used}
registry = list(map(str, [used()]))
{statement}
"""


def passed(load, tmp_path, importing="from pack.part import value", **changes):
    tmp_path.joinpath("pack").mkdir(exist_ok=True)
    parts = {"table": 1, "unused": 1, "used": 1, "statement": "", "c": 1} | changes
    tmp_path.joinpath("pack", "__init__.py").write_text(PACKAGE.format(**parts))
    of_part = {"pack__part": "value = 1\ndef of_part(): ...", "mine_c": f"value = {parts['c']}"}
    if not importing:
        return code_identity(load(**of_part).of_part)
    return code_identity(load(mine_a=mine(importing), **of_part).Mine())


@pytest.mark.parametrize("importing", ["from pack.part import value", ""])
@pytest.mark.parametrize(
    "change",
    [{"table": 2}, {"used": 2}, {"c": 2}, {"statement": "import sys"}, {"statement": "print()"}],
    ids=str,
)
def test_of_a_package_on_the_way_what_importing_it_executes_counts(load, tmp_path, importing, change):
    assert passed(load, tmp_path, importing, **change) != passed(load, tmp_path, importing)


@pytest.mark.parametrize("importing", ["from pack.part import value", ""])
def test_of_a_package_on_the_way_what_nobody_calls_does_not_count(load, tmp_path, importing):
    assert passed(load, tmp_path, importing, unused=2) == passed(load, tmp_path, importing)


@pytest.mark.parametrize(
    "importing", ["import pack.part", "import pack", "from pack import unused", "import pack as p"]
)
def test_of_a_package_that_is_imported_itself_everything_counts(load, tmp_path, importing):
    importing = f"from pack.part import value\n{importing}"
    assert passed(load, tmp_path, importing, unused=2) != passed(load, tmp_path, importing)


def test_of_a_package_that_another_module_imports_itself_everything_counts(load, tmp_path):
    def identity(unused):
        load(mine_d="def later():\n    import pack")
        return passed(load, tmp_path, "from pack.part import value\nimport mine_d", unused=unused)

    assert identity(1) == identity(1) != identity(2)


@pytest.mark.parametrize("head", ["", "import math\n", "LIMIT = 3\n", "from __future__ import annotations\n"])
def test_a_function_counts_itself_whatever_stands_beside_it(load, head):
    def identity(value):
        return code_identity(load(mine_a=f"{head}def measure(x): return {value}").measure, reached_alone=True)

    assert identity(1) == identity(1) != identity(2)


LAZY = """
import importlib
def __getattr__(name):
    if name == "value":
        return importlib.import_module("pack.part").value
    raise AttributeError(name)
"""


@pytest.mark.parametrize(
    "body",
    ["from pack import value; value()", "import pack; pack.value()", "import pack as p; p.value()"],
)
def test_what_a_package_imports_lazily_is_followed(load, tmp_path, body):
    def identity(constant):
        tmp_path.joinpath("pack").mkdir(exist_ok=True)
        tmp_path.joinpath("pack", "__init__.py").write_text(LAZY)
        load(pack__part=f"def value(): return {constant}")
        return code_identity(load(mine_a=mine(body), pack__part=f"def value(): return {constant}").Mine())

    assert identity(1) == identity(1) != identity(2)


EXECUTING = {
    "a registered function": "from mine_c import register\n@register\ndef f(): return {}",
    "a class": "class Base:\n    value = {}",
    "a default": "def f(x=print({})): ...",
    "a walrus": "def f(x=(later := {})): ...",
}


@pytest.mark.parametrize("initial", EXECUTING.values(), ids=EXECUTING)
def test_definitions_that_importing_executes_count_of_a_package_on_the_way(load, tmp_path, initial):
    def identity(value):
        tmp_path.joinpath("pack").mkdir(exist_ok=True)
        load(mine_c="def register(f): return f")
        tmp_path.joinpath("pack", "__init__.py").write_text(initial.format(value))
        parts = {"pack__part": "value = 1", "mine_c": "def register(f): return f"}
        return code_identity(load(mine_a=mine("from pack.part import value"), **parts).Mine())

    assert identity(1) == identity(1) != identity(2)


@pytest.mark.parametrize(
    "source",
    [
        "import mine_b\ndef measure(x): ...",  # for what importing it does
        "a = (b := {})\ndef measure(x): return b",
        "def make():\n    def measure(x): return {}\n    return measure\ndef measure(x): ...\nmade = make()",
    ],
    ids=["an import for its effect", "a walrus", "another of its name"],
)
def test_what_a_function_reaches_by_other_ways_is_seen(load, source):
    def identity(value):
        module = load(mine_a=source.replace("{}", str(value)), mine_b=f"value = {value}")
        return code_identity(getattr(module, "made", module.measure), reached_alone=True)

    assert identity(1) == identity(1) != identity(2)


def test_docstrings_count_where_a_module_asks_for_any(load):
    source = "def grid():\n    {}\ndef measure(x): return grid.__doc__.split()"
    one, other = (code_identity(load(mine_a=source.format(doc)).measure) for doc in ("'1 2'", "'1 3'"))
    assert one != other
