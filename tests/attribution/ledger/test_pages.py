import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun_bench.attribution import Entry, Ledger
from inrun_bench.attribution.ledger.pages import SCHEMA, ParquetPages
from inrun_bench.attribution.ledger.parquet import sealed
from tests.attribution.ledger.test_ledger import (
    LABELS,
    N_SAMPLES,
    assert_same,
    assert_same_pages,
    entries,
    record_all,
    through_a_file,
)

SEEDS = st.integers(0, 99)
ROWS_PER_PART = st.integers(1, 40)
NO_STEPS = st.integers(0, 8)


def in_memory(steps):
    return record_all(Ledger(N_SAMPLES, labels=LABELS), steps)


def streaming(folder, rows_per_part=10):
    return Ledger(N_SAMPLES, labels=LABELS, pages=ParquetPages(folder, rows_per_part=rows_per_part))


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# --- what is on disk ---


@settings(max_examples=40)
@given(SEEDS, st.integers(0, 20), ROWS_PER_PART)
def test_streamed_is_in_memory(seed, n_steps, rows_per_part):
    steps = entries(seed, n_steps)
    with tempfile.TemporaryDirectory() as folder:
        ledger = record_all(streaming(folder, rows_per_part), steps)
        assert_same(ledger, in_memory(steps))
        ledger.steps.flush()
        assert_same(ledger, in_memory(steps))
        assert_same_pages(ParquetPages(folder), steps)


@settings(max_examples=40)
@given(SEEDS, ROWS_PER_PART, st.lists(st.booleans(), min_size=20, max_size=20))
def test_memory_holds_no_more_than_a_part_and_flushes_move_no_border(seed, rows_per_part, flushes):
    steps = entries(seed, 20)
    with tempfile.TemporaryDirectory() as folder:
        pages, calm = (ParquetPages(f"{folder}/{name}", rows_per_part=rows_per_part) for name in "ab")
        for entry, flushed in zip(steps, flushes, strict=True):
            calm.append(entry)
            pages.append(entry)
            if flushed:
                pages.flush()
            assert pages.buffered == sum(len(kept.index) for kept in pages._open)
            assert pages.buffered <= max(rows_per_part, len(entry.index))
        pages.flush()
        calm.flush()
        assert contents(f"{folder}/a") == contents(f"{folder}/b")


def test_pages_are_a_sequence(tmp_path):
    steps = entries(3, 12)
    pages = ParquetPages(tmp_path, rows_per_part=9)
    for entry in steps:
        pages.append(entry)
    for number in range(-12, 12):
        assert_same_pages([pages[number]], [steps[number]])
    assert_same_pages(pages[2:-1:3], steps[2:-1:3])
    assert_same_pages(list(reversed(pages)), steps[::-1])
    for number in (12, -13):
        with pytest.raises(IndexError):
            pages[number]


def test_iterating_reads_each_part_once(tmp_path, monkeypatch):
    pages = ParquetPages(tmp_path, rows_per_part=9)
    for entry in entries(3, 30):
        pages.append(entry)
    read, original = [], ParquetPages._read
    monkeypatch.setattr(ParquetPages, "_read", lambda self, part: read.append(part) or original(self, part))
    assert len(list(pages)) == 30
    assert read == list(range(len(list(tmp_path.iterdir()))))


def test_pandas_reads_the_folder(tmp_path):
    steps = entries(5, 15)
    ledger = record_all(streaming(tmp_path), steps)
    ledger.steps.flush()
    by_step = pd.read_parquet(tmp_path)
    assert by_step.columns.tolist() == SCHEMA.names
    assert by_step["step"].tolist() == list(range(15))
    assert by_step["drop"].tolist() == ledger.by_step["drop"].tolist()
    by_score = by_step.explode(["sample", "score"]).dropna()
    np.testing.assert_allclose(
        by_score.groupby("sample")["score"].sum().reindex(range(N_SAMPLES), fill_value=0).astype(float), ledger.values
    )


def test_a_partial_file_is_passed_over_and_replaced(tmp_path):
    steps = entries(7, 10)
    ledger = record_all(streaming(tmp_path), steps[:6])
    checkpoint = ledger.state_dict()
    next_part = f".part-{len(list(tmp_path.iterdir())):06d}.parquet.partial"
    (tmp_path / next_part).write_bytes(b"PAR1 half a par")  # what a run leaves that is killed while it writes
    assert len(pd.read_parquet(tmp_path)) == 6
    resumed = streaming(tmp_path)
    resumed.load_state_dict(checkpoint)
    record_all(resumed, steps[6:])
    resumed.steps.flush()
    assert_same(resumed, in_memory(steps))
    assert not (tmp_path / next_part).exists()


@pytest.mark.parametrize("where", ["write", "replace"])
def test_a_full_disk_leaves_ledger_and_folder_as_they_were(tmp_path, monkeypatch, where):
    def fail(*arguments, **options):
        if where == "write":
            arguments[1].write(b"half a part")
        raise OSError("no space left on device")

    ledger = streaming(tmp_path, rows_per_part=4)
    steps = [Entry(np.array([i, i + 1]), np.array([0.5, i]), 0.0, float(i)) for i in range(5)]
    record_all(ledger, steps[:4])
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(*((pq, "write_table") if where == "write" else (Path, "replace")), fail)
        with pytest.raises(OSError, match="no space"):
            ledger.record(steps[4])
        with pytest.raises(OSError, match="no space"):
            ledger.state_dict()
        assert contents(tmp_path) == before
        assert_same(ledger, in_memory(steps[:4]))
    ledger.record(steps[4])  # somebody made room
    assert_same(ledger, in_memory(steps))


# --- checkpoints ---


@settings(max_examples=60)
@given(SEEDS, NO_STEPS, NO_STEPS, NO_STEPS, ROWS_PER_PART, st.booleans())
def test_a_resumed_run_is_an_uninterrupted_one(seed, n_before, n_lost, n_after, rows_per_part, written):
    steps = entries(seed, n_before + n_lost + n_after)
    with tempfile.TemporaryDirectory() as root:
        first = record_all(streaming(f"{root}/resumed", rows_per_part), steps[:n_before])
        checkpoint = through_a_file(first.state_dict())
        record_all(first, steps[n_before : n_before + n_lost])  # goes on past its checkpoint
        if written:
            first.steps.flush()
        del first  # dies

        resumed = streaming(f"{root}/resumed", rows_per_part)
        resumed.load_state_dict(checkpoint)
        assert_same(resumed, in_memory(steps[:n_before]))
        assert_same_pages(ParquetPages(f"{root}/resumed"), steps[:n_before])
        record_all(resumed, steps[n_before:])
        whole = record_all(streaming(f"{root}/whole", rows_per_part), steps)
        assert_same(resumed, whole)
        assert_same(resumed, in_memory(steps))
        resumed.state_dict()
        whole.state_dict()
        assert contents(f"{root}/resumed") == contents(f"{root}/whole")


@settings(max_examples=20)
@given(SEEDS, st.tuples(ROWS_PER_PART, ROWS_PER_PART), st.integers(0, 16))
def test_parts_may_change_their_size_when_a_run_is_resumed(seed, rows_per_part, n_before):
    steps = entries(seed, 16)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = record_all(streaming(folder, rows_per_part[0]), steps[:n_before]).state_dict()
        resumed = streaming(folder, rows_per_part[1])
        resumed.load_state_dict(checkpoint)
        assert_same(record_all(resumed, steps[n_before:]), in_memory(steps))


@settings(max_examples=20)
@given(SEEDS, ROWS_PER_PART, st.lists(st.integers(0, 16), max_size=4))
def test_truncated_pages_are_the_first_ones(seed, rows_per_part, cuts):
    steps = entries(seed, 16)
    with tempfile.TemporaryDirectory() as folder:
        pages = ParquetPages(folder, rows_per_part=rows_per_part)
        for cut in cuts:
            for entry in steps[len(pages) :]:
                pages.append(entry)
            pages.truncate(cut)
            assert_same_pages(pages, steps[:cut])
            assert_same_pages(ParquetPages(folder), steps[:cut])


# --- refusals ---


def test_an_earlier_run_is_read_but_not_added_to(tmp_path):
    steps = entries(2, 5)
    record_all(streaming(tmp_path), steps).steps.flush()
    before = contents(tmp_path)
    ledger = streaming(tmp_path)
    with pytest.raises(RuntimeError, match=r"holds 5 steps of an earlier run; restore its checkpoint .* truncate\(0\)"):
        ledger.record(steps[0])
    with pytest.raises(RuntimeError, match="5 steps of an earlier run"):
        ledger.state_dict()
    assert_same_pages(ledger.steps, steps)
    assert not ledger.values.any()
    assert contents(tmp_path) == before
    ledger.steps.truncate(0)
    assert_same(record_all(ledger, steps[3:]), in_memory(steps[3:]))


def test_a_folder_that_lacks_steps_is_refused(tmp_path):
    checkpoint = record_all(streaming(tmp_path / "a"), entries(2, 5)).state_dict()
    other = record_all(streaming(tmp_path / "b"), entries(2, 4))
    with pytest.raises(ValueError, match=r"was taken after 5 steps, but folder '.*b' holds 4; resume with the folder"):
        other.load_state_dict(checkpoint)
    assert_same(other, in_memory(entries(2, 4)))
    with pytest.raises(ValueError, match="holds 4 steps, so it cannot be cut to 5"):
        other.steps.truncate(5)


def test_a_folder_of_another_run_is_refused_and_stays(tmp_path):
    checkpoint = record_all(streaming(tmp_path / "a"), entries(2, 5)).state_dict()
    record_all(streaming(tmp_path / "b"), entries(3, 9)).steps.flush()
    before = contents(tmp_path / "b")
    with pytest.raises(ValueError, match="holds another run than the checkpoint's: the loss drops of step 4 differ"):
        streaming(tmp_path / "b").load_state_dict(checkpoint)
    assert contents(tmp_path / "b") == before


def test_pages_of_one_kind_do_not_restore_the_other(tmp_path):
    steps = entries(2, 5)
    with pytest.raises(ValueError, match=r"holds its steps itself, this ledger streams them to '.*'"):
        streaming(tmp_path / "a").load_state_dict(in_memory(steps).state_dict())
    with pytest.raises(ValueError, match="were streamed to disk, this ledger keeps its steps in memory"):
        in_memory([]).load_state_dict(record_all(streaming(tmp_path / "b"), steps).state_dict())


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes.txt' where .* would have 'part-000000.parquet'"):
        ParquetPages(tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path):
    part = tmp_path / "part-000000.parquet"
    part.write_bytes(sealed(pa.table({"step": [0]})))
    with pytest.raises(ValueError, match=r"part-000000.parquet' has columns \['step'\]"):
        ParquetPages(tmp_path)
    part.write_text("mine")
    with pytest.raises(ValueError, match=r"part-000000.parquet' is damaged, or was not written by this version"):
        ParquetPages(tmp_path)


def test_a_score_that_changed_on_disk_is_found_when_it_is_read(tmp_path):
    record_all(streaming(tmp_path), entries(2, 20)).steps.flush()
    part = tmp_path / "part-000000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 4] ^= 1
    part.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-000000.parquet' is damaged"):
        list(ParquetPages(tmp_path))


def test_a_missing_part_is_noticed(tmp_path):
    record_all(streaming(tmp_path), entries(2, 20)).steps.flush()
    (tmp_path / "part-000001.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds 'part-000002.parquet' where .* would have 'part-000001.parquet'"):
        ParquetPages(tmp_path)


def test_parts_hold_at_least_a_row(tmp_path):
    with pytest.raises(ValueError, match="rows_per_part must be at least 1, got 0"):
        ParquetPages(tmp_path / "new", rows_per_part=0)
    assert not (tmp_path / "new").exists()
