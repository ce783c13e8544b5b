import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from baselines import Valuation, exact_shapley, kernel_shapley, knn_shapley, tmc_shapley
from tests.baselines.known_games import Airport, Saturating
from tests.baselines.neighbour_games import dataset


def valuation(**changes):
    fields = {"values": np.arange(3.0), "stderr": None, "evaluations": 8, "seconds": 0.25, "method": "some_method"}
    return Valuation(**(fields | changes))


def assert_identical(one, other):
    """Equal, of the same types, and floats to the bit."""
    if isinstance(one, np.ndarray | np.generic):
        assert type(one) is type(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)
        if one.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(one[~np.isnan(one)]), np.signbit(other[~np.isnan(other)]))
    elif isinstance(one, dict):
        assert type(other) is dict
        assert list(one) == list(other)
        assert [type(key) for key in one] == [type(key) for key in other]
        for key, value in one.items():
            assert_identical(value, other[key])
    elif isinstance(one, list | tuple):
        assert type(one) is type(other)
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_identical(*pair)
    else:
        assert type(one) is type(other)
        assert repr(one) == repr(other)  # NaN as well


def assert_same(one, other):
    for field in dataclasses.fields(Valuation):
        assert_identical(getattr(one, field.name), getattr(other, field.name))


def saved_and_loaded(one, path):
    one.save(path)
    return Valuation.load(path)


@pytest.mark.parametrize(
    "run",
    [
        lambda: exact_shapley(Airport([1, 2, 4])),
        lambda: tmc_shapley(Saturating(np.linspace(0.1, 1, 9)), 11, tolerance=0.3, rng=0),
        lambda: kernel_shapley(Saturating(np.linspace(0.1, 1, 9)), budget=300, stop=lambda _: False, rng=0),
        lambda: knn_shapley(*dataset()),
    ],
)
def test_what_estimators_return_comes_back_to_the_bit(run, tmp_path):
    one = run()
    assert_same(one, saved_and_loaded(one, tmp_path / "one.json"))


real = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
dtypes = st.sampled_from(["?", "i1", "<i8", ">i4", "u8", "f2", "f4", "<f8", ">f8", "<U3"])
scalars = st.none() | st.booleans() | st.integers() | real | st.text()
of_numpy = dtypes.flatmap(
    lambda dtype: (
        arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=3)) | arrays(dtype, ()).map(lambda array: array[()])
    )
)
keys = st.text(max_size=4) | st.sampled_from(["$array", "$tuple", "$", "é"]) | st.integers() | st.none()
anything = st.recursive(
    scalars | of_numpy,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100)
@given(data=st.data(), n=st.integers(1, 4), parameters=st.dictionaries(st.text(max_size=4), anything, max_size=4))
def test_whatever_it_holds_comes_back_to_the_bit(data, n, parameters, tmp_path_factory):
    one = valuation(
        values=data.draw(arrays(np.float64, n, elements=real)),
        stderr=data.draw(st.none() | arrays(np.float64, n, elements=real)),
        halves=data.draw(st.none() | arrays(np.float64, (2, n), elements=real)),
        evaluations=data.draw(st.integers(0)),
        seconds=data.draw(real),
        method=data.draw(st.text()),
        parameters=parameters,
    )
    assert_same(one, saved_and_loaded(one, tmp_path_factory.getbasetemp() / "any.json"))


@pytest.mark.parametrize(
    "parameters",
    [
        {"$tuple": [1]},
        {"p": {"$float": "1"}},
        {"$mapping": [[1, 2]]},
        {"$array": ["<f8", [1], [1.0]]},
        {"$": 1, "q": 2},
    ],
)
def test_what_looks_like_the_files_own_forms_comes_back_as_it_was(parameters, tmp_path):
    one = valuation(parameters=parameters)
    assert_same(one, saved_and_loaded(one, tmp_path / "one.json"))


def test_mappings_of_other_types_come_back_as_dicts(tmp_path):
    one = valuation(parameters=MappingProxyType({"inner": MappingProxyType({1: "a"})}))
    assert saved_and_loaded(one, tmp_path / "one.json").parameters == {"inner": {1: "a"}}


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (print, r"parameters\['p'\] is of type builtin_function_or_method, which is not saved; None, numbers"),
        ({"q": [0, object]}, r"parameters\['p'\]\['q'\]\[1\] is of type type, which"),
        ({(1, print): 0}, r"a key of parameters\['p'\]\[1\] is of type builtin"),
        (Text("subclass"), r"parameters\['p'\] is of type Text, which is not saved"),
        (1j, r"parameters\['p'\] is of type complex"),
        (np.array([None]), r"parameters\['p'\] must be of bools, .*, got object"),
        (np.datetime64("2020"), r"parameters\['p'\] must be of bools, .*, got datetime64"),
        (np.ones(1, np.longdouble), r"parameters\['p'\] must be of bools, .*, got (float128|longdouble)"),
        (np.ma.masked_array([1.0], [True]), r"parameters\['p'\] is of type MaskedArray"),
    ],
)
def test_what_would_not_come_back_is_refused_and_the_old_file_stays(value, message, tmp_path):
    path = tmp_path / "one.json"
    valuation().save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=message):
        valuation(parameters={"p": value}).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_path_is_json_and_its_folder_exists(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in '.json', got '.*one.parquet'; .* to_frame\(\).to_parquet"):
        valuation().save(tmp_path / "one.parquet")
    with pytest.raises(FileNotFoundError, match=r"the folder of '.*one.json' does not exist"):
        valuation().save(tmp_path / "none" / "one.json")
    with pytest.raises(FileNotFoundError, match=r"one\.json"):
        Valuation.load(tmp_path / "one.json")
    valuation().save(str(tmp_path / "one.json"))
    assert_same(Valuation.load(str(tmp_path / "one.json")), valuation())


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_a_file_is_there_whole_or_as_it_was(failure, tmp_path, monkeypatch):
    path = tmp_path / "one.json"
    valuation(method="old").save(path)
    write_text = Path.write_text

    def fails(self, text, **options):
        write_text(self, text[: len(text) // 2], **options)
        raise failure

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(type(failure)):
        valuation(method="new").save(path)
    assert Valuation.load(path).method == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    path, one = tmp_path / "one.json", valuation(values=np.array([0.1, -2e-9, np.inf]), parameters={"é": (1, "ü")})
    one.save(path)
    content = path.read_bytes()
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << 5 * position % 8
        path.write_bytes(damaged)
        try:
            found = Valuation.load(path)
        except ValueError as error:
            refused += str(path) in str(error)
        else:
            assert_same(found, one)
    assert refused > 0.95 * len(content)


def rewritten(file, **changes):
    return json.dumps(json.loads(file) | changes).encode()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"", "is no file of a valuation, or is damaged"),
        (lambda content: content[:-9], "is no file of a valuation, or is damaged"),
        (lambda content: b"PAR1\xff\xfe", "is no file of a valuation, or is damaged"),
        (lambda content: b"[" * 100_000, "is no file of a valuation, or is damaged"),
        (lambda content: b"[1, 2]", "is no file of a valuation; give one that Valuation.save has written"),
        (lambda content: b'{"values": [1, 2]}', "is no file of a valuation; give one"),
        (lambda content: rewritten(content, version=2), "is of version 2 of the format, this reads version 1"),
        (lambda content: rewritten(content, content=[]), "is damaged: its content does not have its checksum"),
        (lambda content: content.replace(b"0.25", b"0.26"), "is damaged: its content does not have its checksum"),
    ],
)
def test_other_files_are_refused_by_name(spoil, message, tmp_path):
    path = tmp_path / "ïñ.json"
    valuation().save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"ïñ.json' {message}"):
        Valuation.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": ["a"]},
        {"values": {"$array": ["<f8", [2], [1.0]]}},
        {"values": {"$array": ["|O", [1], [1.0]]}},
        {"stderr": {"$array": ["<f8", [2], [1.0, 1.0]]}},
        {"surprise": 1},
    ],
)
def test_a_checksum_alone_makes_no_valuation(changes, tmp_path, monkeypatch):
    monkeypatch.setattr("baselines.valuation_file._digest", lambda body: "right")
    path = tmp_path / "one.json"
    valuation().save(path)
    file = json.loads(path.read_bytes())
    file["content"] |= changes
    path.write_text(json.dumps(file))
    with pytest.raises(ValueError, match=r"one.json' is no file of a valuation: "):
        Valuation.load(path)


def test_names_of_any_alphabet_in_the_plainest_locale(tmp_path):
    script = (
        "import sys; from baselines import *; from tests.baselines.known_games import Airport\n"
        "v = exact_shapley(Airport([1, 2])); v.parameters['Größe'] = 'größer'; v.save(sys.argv[1])"
    )
    path = tmp_path / "größe.json"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, path], check=True, env=environment)
    assert Valuation.load(path).parameters == {"Größe": "größer"}
