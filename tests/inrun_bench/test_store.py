import json
import math
import shutil
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from inrun_bench import __version__
from inrun_bench.runs.provenance import Provenance
from inrun_bench.runs.store import SCHEMA, Overlay, Store
from inrun_bench.runs.unit import Unit

UNIT = Unit("values", "task", "method", 3, {"block": 1, "rate": 0.5})
NAMES = st.text("abcdefghij-0123456789", min_size=1, max_size=8)
SETTINGS = st.dictionaries(
    st.sampled_from(["alpha", "beta", "gamma", "delta"]), st.one_of(st.integers(0, 9), st.floats(0, 9), st.text())
)
UNITS = st.builds(Unit, NAMES, NAMES, NAMES, st.integers(0, 99), SETTINGS)
OPTIONAL_COUNT = st.none() | st.integers(0, 2**53)
ROWS = st.fixed_dictionaries(
    {"metric": st.text(max_size=5), "value": st.floats(allow_nan=False)},
    optional={
        "stderr": st.none() | st.floats(0, 1),
        "evaluations": OPTIONAL_COUNT,
        "seconds": st.floats(0, 1e3),
        "peak_bytes": OPTIONAL_COUNT,
        "sample": st.integers(0, 2**53),
        "direction": st.text(max_size=5),
    },
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture
def slow_to_replace(monkeypatch):
    """Make what another process could see of a file that is about to take its place last."""
    replace_at_once = Path.replace

    def replace_slowly(path, target):
        time.sleep(0.05)
        return replace_at_once(path, target)

    monkeypatch.setattr(Path, "replace", replace_slowly)


@contextmanager
def fresh_store():
    """Yield a store of its own for each example of a property."""
    root = Path(tempfile.mkdtemp())
    try:
        yield Store(root / "results")
    finally:
        shutil.rmtree(root)


def listing(store):
    return sorted(path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file())


# --- rows ---


@settings(max_examples=40)
@given(UNITS, st.lists(ROWS, min_size=1, max_size=4))
def test_rows_come_back_as_they_were(unit, rows):
    with fresh_store() as store:
        store.write(unit, rows)
        back = store.read(unit)
    assert len(back) == len(rows)
    for expected, found in zip(rows, back.to_dict("records"), strict=True):
        for name, value in {**unit.columns, "status": "ok", "message": "", **expected}.items():
            assert found[name] == value or (value is None and math.isnan(found[name]))


@settings(max_examples=40)
@given(UNITS, st.lists(ROWS, min_size=1, max_size=3))
def test_every_file_has_all_columns_of_the_schema_first_and_typed(unit, rows):
    with fresh_store() as store:
        store.write(unit, rows)
        columns = list(store.read(unit).columns)
    assert columns[: len(SCHEMA.names)] == SCHEMA.names
    assert set(columns[len(SCHEMA.names) :]) == {n for row in rows for n in (*unit.settings, *row)} - set(SCHEMA.names)


def test_a_row_may_speak_for_another_method_than_its_unit(store):
    store.write(UNIT, [{"metric": "a", "method": "other"}, {"metric": "b"}])
    assert store.read(UNIT)["method"].tolist() == ["other", "method"]


def test_units_with_different_settings_are_read_together(store):
    units = [
        Unit("values", "task", "a", 0, {"block": 1}),
        Unit("values", "task", "b", 0, {"block": 1.5, "kind": "x"}),
        Unit("values", "task", "c", 0),
    ]
    for unit in units:
        store.write(unit, [{"metric": "value", "value": 1.0}])
    rows = store.read_all("values").set_index("method")
    assert rows["block"].dropna().to_dict() == {"a": 1.0, "b": 1.5}
    assert rows["kind"].dropna().to_dict() == {"b": "x"}
    assert rows["value"].to_dict() == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_an_experiment_reads_its_own_rows_and_no_errors(store):
    store.write(UNIT, [{"metric": "m", "value": 1.0}])
    store.write(replace(UNIT, seed=4), [{"metric": "error", "status": "error", "message": "no"}])
    store.write(replace(UNIT, experiment="values2"), [{"metric": "m", "value": 2.0}])
    assert store.read_all("values")["value"].tolist() == [1.0]


def test_an_experiment_that_never_ran_has_no_rows_but_all_columns(store):
    rows = store.read_all("values")
    assert rows.empty
    assert list(rows.columns) == SCHEMA.names


def test_a_unit_is_there_once_written_and_not_with_an_error_among_its_rows(store):
    assert not store.has(UNIT)
    store.write(UNIT, [{"metric": "m"}, {"metric": "error", "status": "error", "message": "no"}])
    assert not store.has(UNIT)
    store.write(UNIT, [{"metric": "m"}])
    assert store.has(UNIT)
    assert not store.has(replace(UNIT, seed=4))


# --- writing is atomic ---


def test_a_reader_sees_nothing_of_rows_that_are_being_written(store, monkeypatch):
    seen, write_bytes = [], Path.write_bytes

    def write_slowly(path, content):
        write_bytes(path, content[: len(content) // 2])
        reader = Store(store.root)
        seen.append((reader.has(UNIT), len(reader.read_all("values"))))
        write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_slowly)
    store.write(UNIT, [{"metric": "m"}])
    assert seen == [(False, 0)]
    assert len(store.read_all("values")) == 1


def half_written(path, _content):
    path.touch()
    raise OSError("disk full")


@pytest.mark.parametrize("earlier", [[], [{"metric": "error", "status": "error", "message": "before"}]])
def test_a_failure_while_writing_leaves_what_was_there(store, monkeypatch, earlier):
    if earlier:
        store.write(UNIT, earlier)
    before = listing(store)
    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(OSError, match="disk full"):
        store.write(UNIT, [{"metric": "m"}])
    assert listing(store) == before
    assert not store.has(UNIT)


def test_a_unit_without_rows_is_refused(store):
    with pytest.raises(ValueError, match="has no rows; a unit returns at least one"):
        store.write(UNIT, [])


def test_rows_that_do_not_fit_the_schema_leave_nothing(store):
    before = listing(store)
    with pytest.raises(ValueError, match="many"):
        store.write(UNIT, [{"metric": "m", "evaluations": "many"}])
    assert listing(store) == before


def test_what_a_killed_writer_left_is_not_read(store):
    store.write(UNIT, [{"metric": "m"}])
    (path,) = (store.root / "rows").iterdir()
    path.with_name(f".{path.name}.12345").write_bytes(b"PAR1 half a")
    assert len(store.read_all("values")) == 1


# --- names ---


@given(UNITS, st.data())
def test_a_key_depends_on_all_that_defines_a_unit(unit, data):
    need = data.draw(UNITS)
    changed = [
        replace(unit, experiment=unit.experiment + "x"),
        replace(unit, task=unit.task + "x"),
        replace(unit, method=unit.method + "x"),
        replace(unit, seed=unit.seed + 1),
        replace(unit, settings={**unit.settings, "epsilon": 1}),
        replace(unit, needs=(need,)),
        replace(unit, needs=(replace(need, seed=need.seed + 1),)),
        replace(unit, needs=(need, need)),
        *(replace(unit, settings={**unit.settings, name: "changed"}) for name in unit.settings),
        *(replace(unit, settings={k: v for k, v in unit.settings.items() if k != name}) for name in unit.settings),
    ]
    keys = [u.key for u in (unit, *changed)]
    assert len(set(keys)) == len(keys)


@given(UNITS, st.randoms())
def test_a_key_does_not_depend_on_the_order_of_settings(unit, random):
    shuffled = list(unit.settings.items())
    random.shuffle(shuffled)
    twin = replace(unit, settings=dict(shuffled))
    assert (twin, twin.key, hash(twin)) == (unit, unit.key, hash(unit))
    assert twin.random_seed.entropy == unit.random_seed.entropy


@given(UNITS, UNITS)
def test_random_streams_are_a_units_own(unit, need):
    assert replace(unit, needs=(need,)).random_seed.entropy == unit.random_seed.entropy
    assert replace(unit, seed=unit.seed + 1).random_seed.entropy != unit.random_seed.entropy
    assert replace(unit, method=unit.method + "x").random_seed.entropy != unit.random_seed.entropy


def test_keys_and_streams_are_the_same_in_every_process_and_release():
    # rows on disk are found by these: where they change, stored results are orphaned and FORMAT must be raised
    block = Unit("values", "breast-cancer-logreg", "reference", 0, {"block": 0, "permutations": 100})
    assert Unit("values", "breast-cancer-logreg", "knn", 0).key == "992f74b7ba73b131"
    assert Unit("agreement", "task", "knn", 0, {"x": 0.5}, needs=(block,)).key == "e1447fe011b05131"
    assert block.random_seed.entropy == 195971376222310426192863087483084905063


def test_the_file_is_named_after_the_unit(store):
    store.write(UNIT, [{"metric": "m"}])
    assert listing(store) == [f"rows/values.task.method.3.{UNIT.key}.parquet", "store.json"]


# --- the folder ---


def test_a_folder_can_be_opened_again(store):
    store.write(UNIT, [{"metric": "m"}])
    assert Store(store.root).has(UNIT)
    assert Store(store.root, create=False).has(UNIT)


def test_a_folder_of_another_format_is_refused_by_both_formats(store):
    stamp = store.root / "store.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "format": 98}))
    for create in (True, False):
        with pytest.raises(ValueError, match=r"\(format 98\).*\(format \d+\)"):
            Store(store.root, create=create)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"inrun_bench": "0.1.0"}', "\udcff"])
def test_a_broken_stamp_is_named_with_what_to_write_into_it(store, content):
    stamp = store.root / "store.json"
    stamp.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"store.json' is broken .*write (.*) into it") as failure:
        Store(store.root)
    stamp.write_text(str(failure.value).partition("write ")[2].removesuffix(" into it"))
    assert Store(store.root)


def test_somebody_elses_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not a results folder, and not empty"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(ValueError, match="not a results folder"):
        Store(path)
    assert path.read_text() == "precious"


def test_an_empty_folder_is_taken(tmp_path):
    Store(tmp_path).write(UNIT, [{"metric": "m"}])
    assert Store(tmp_path).has(UNIT)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_results_is_refused_where_it_should_have_some(tmp_path, exists):
    root = tmp_path if exists else tmp_path / "missing"
    with pytest.raises(ValueError, match="no results in"):
        Store(root, create=False)
    assert root.exists() == exists
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("slow_to_replace")
def test_runs_that_start_at_once_share_a_new_folder(tmp_path):
    together = threading.Barrier(8)

    def start(number):
        together.wait()
        time.sleep(0.01 * number)
        Store(tmp_path / "new" / "results").write(replace(UNIT, seed=number), [{"metric": "m"}])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, range(8)))
    assert sorted(Store(tmp_path / "new" / "results").read_all("values")["seed"]) == list(range(8))


# --- claims and the manifest ---


def test_a_claim_keeps_others_from_the_same_unit_of_the_same_folder_only(store, tmp_path):
    claim = store.claim(UNIT)
    assert Store(store.root).claim(UNIT) is None
    for other in (store.claim(replace(UNIT, seed=9)), Store(tmp_path / "b").claim(UNIT)):
        assert other is not None
        other.release()
    claim.release()
    again = Store(store.root).claim(UNIT)
    assert again is not None
    again.release()


def manifest(store):
    return json.loads((store.root / "manifest.json").read_text())


def test_the_manifest_says_what_each_run_ran_on(store):
    names = [store.begin_run(jobs=2, seeds=[0, 3]), store.begin_run(jobs=1, seeds=[1])]
    first, second = manifest(store)
    assert [first["run"], second["run"]] == names
    assert (first["jobs"], first["seeds"]) == (2, [0, 3])
    assert (second["jobs"], second["seeds"]) == (1, [1])
    assert first["versions"]["inrun-bench"] == __version__
    assert {"torch", "numpy", "scipy", "scikit-learn"} < set(first["versions"])
    assert first["processor"]
    assert first["cores"] >= 1
    assert first["threads_a_unit"] == 1
    assert {"commit", "device", "system", "python", "started"} < set(first)


@pytest.mark.usefixtures("slow_to_replace")
def test_runs_are_counted_by_what_they_did_and_like_runs_together(store):
    one, other = (store.begin_run(jobs=jobs, seeds=[0]) for jobs in (2, 1))  # two runs share the folder
    assert store.begin_run(jobs=2, seeds=[0]) == one
    for name, done, failed in ((one, 2, 0), (other, 5, 1), (one, 3, 0)):
        store.count_units(name, done=done, failed=failed)
    assert [(run["jobs"], run["units"], run["failed"]) for run in manifest(store)] == [(2, 5, 0), (1, 5, 1)]


def test_no_run_is_lost_from_the_manifest_when_several_start_at_once(store):
    together = threading.Barrier(4)

    def start(number):
        together.wait()
        store.count_units(store.begin_run(jobs=1, seeds=[number]), done=1, failed=0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))
    assert sorted(run["seeds"][0] for run in manifest(store)) == [0, 1, 2, 3]
    assert all(run["units"] == 1 for run in manifest(store))


@pytest.mark.parametrize("content", ["", "[{]", "{}", "[1]"])
def test_a_broken_manifest_is_named_with_what_to_do(store, content):
    (store.root / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest.json' is broken .*move it away"):
        store.begin_run(jobs=1, seeds=[0])
    (store.root / "manifest.json").unlink()
    store.begin_run(jobs=1, seeds=[0])


# --- provenance ---


@given(UNITS, UNITS)
def test_units_come_back_from_what_the_rows_say_of_them(unit, need):
    need = replace(need, experiment="need")
    unit = replace(unit, needs=(need,))
    assume(unit.experiment != "need")
    with fresh_store() as store:
        for each in (need, unit):
            store.write(each, [{"metric": "m", "method": "another"}], Provenance.of(each, {"task": each.key}, "run"))
        found = store.units()
    assert {each.key: each for each in found} == {unit.key: unit, need.key: need}
    assert found[unit].fingerprint == {"task": unit.key}
    assert found[unit].run == "run"


# --- packing ---


def contents(store, units):
    return {unit: (store.has(unit), store.read(unit).to_dict("records"), store.provenance(unit)) for unit in units}


@settings(max_examples=20)
@given(
    st.lists(st.tuples(UNITS, st.lists(ROWS, min_size=1, max_size=3)), max_size=4, unique_by=lambda pair: pair[0].key)
)
def test_packing_changes_nothing_that_a_reader_sees(pairs):
    units = [replace(unit, experiment=unit.experiment[:1], settings={"alpha": i}) for i, (unit, _) in enumerate(pairs)]
    with fresh_store() as store:
        for number, (unit, (_, rows)) in enumerate(zip(units, pairs, strict=True)):
            store.write(unit, rows, Provenance.of(unit, {"task": str(number)}))
        before = contents(store, units)
        everything = {unit.experiment: store.read_all(unit.experiment) for unit in units}
        assert store.pack() == Counter(unit.experiment for unit in units)
        assert listing(store) == [*sorted(f"rows/{name}.parquet" for name in everything), "store.json"]
        for reader in (store, Store(store.root)):
            assert repr(contents(reader, units)) == repr(before)  # as text, where nan is nan
            for experiment, rows in everything.items():
                pd.testing.assert_frame_equal(reader.read_all(experiment), rows)


def test_a_unit_measured_again_takes_the_place_of_the_packed_one(store):
    other = replace(UNIT, seed=4)
    for unit in (UNIT, other):
        store.write(unit, [{"metric": "m", "value": 1.0}])
    store.pack()
    store.write(UNIT, [{"metric": "m", "value": 2.0}])
    for _ in range(2):
        assert (store.read(UNIT)["value"].item(), store.read(other)["value"].item()) == (2, 1)
        assert sorted(store.read_all("values")["value"]) == [1, 2]
        assert store.pack() == {"values": 2}


def test_a_packed_unit_that_failed_is_not_there(store):
    store.write(UNIT, [{"metric": "error", "status": "error", "message": "no"}])
    store.pack()
    assert not store.has(UNIT)
    assert store.read_all("values").empty


def test_what_a_run_is_about_to_write_is_not_packed(store):
    store.write(UNIT, [{"metric": "m"}])
    claim = store.claim(UNIT)
    assert store.pack() == {"values": 0}
    claim.release()
    assert store.has(UNIT)
    assert store.pack() == {"values": 1}


def test_a_failure_while_packing_loses_nothing(store, monkeypatch):
    store.write(UNIT, [{"metric": "m", "value": 1.0}])
    before = listing(store)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half_written)
        with pytest.raises(OSError, match="disk full"):
            store.pack()
    assert listing(store) == before
    assert store.pack() == {"values": 1}


def test_columns_of_different_kinds_are_named_when_units_are_read_together(store):
    store.write(UNIT, [{"metric": "m", "extra": "text"}])
    store.write(replace(UNIT, seed=4), [{"metric": "m", "extra": [1.0]}])
    with pytest.raises(ValueError, match="units of 'values' have columns of one name and of different kinds"):
        store.pack()


@pytest.mark.parametrize("packed", [False, True])
def test_a_changed_bit_is_found_and_named_with_its_file(store, packed):
    store.write(UNIT, [{"metric": "m", "value": 1.0}])
    if packed:
        store.pack()
    (path,) = (store.root / "rows").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    for read in (store.has, store.read, store.provenance, lambda unit: store.read_all(unit.experiment)):
        with pytest.raises(ValueError, match=f"{path.name}' is damaged"):
            read(UNIT)


def test_of_folders_that_are_read_as_one_the_first_that_has_a_unit_answers(tmp_path):
    first, second = (Store(tmp_path / name) for name in "ab")
    other, missing = replace(UNIT, seed=4), replace(UNIT, seed=5)
    first.write(UNIT, [{"metric": "m", "value": 1.0}])
    for unit in (UNIT, other):
        second.write(unit, [{"metric": "m", "value": 2.0}])
    both = Overlay((first, second))
    assert [both.read(unit)["value"].item() for unit in (UNIT, other)] == [1, 2]
    assert not both.has(missing)
    with pytest.raises(KeyError, match="seed=5"):
        both.read(missing)
