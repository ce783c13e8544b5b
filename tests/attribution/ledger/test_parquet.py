"""Sealed Parquet files are Parquet files, and no change in them goes unnoticed."""

import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inrun_bench.attribution.ledger.parquet import DamagedFileError, read_footer, read_table, sealed

TABLE = pa.table({"sample": [1, 2, 3], "name": ["a", "b", None], "scores": [[0.5], [], [1.5, 2.5]]})
CONTENT = sealed(TABLE.replace_schema_metadata({"about": "a test"}), compression="zstd")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.parquet"


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text()), max_size=9))
def test_rows_come_back_here_and_in_every_reader_of_parquet(rows):
    columns = zip(*rows, strict=True) if rows else [(), (), ()]
    types = (pa.int64(), pa.float64(), pa.string())
    table = pa.table({f"column {i}": pa.array(c, t) for i, (c, t) in enumerate(zip(columns, types, strict=True))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.parquet")
        path.write_bytes(sealed(table))
        assert read_table(path).equals(table)
        assert read_table(path, ["column 1"]).equals(table.select(["column 1"]))
        assert read_footer(path).num_rows == len(rows)
        assert pq.read_table(path).equals(table)
        pd.testing.assert_frame_equal(pd.read_parquet(path), table.to_pandas())


def test_a_flipped_bit_in_any_byte_is_found_and_named_with_its_file(path):
    for place in range(len(CONTENT)):
        damaged = bytearray(CONTENT)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"rows\.parquet' is damaged"):
            read_table(path)


def test_a_flipped_bit_in_any_byte_of_a_footer_is_found_without_looking_at_the_rows(path):
    footer = CONTENT.index(b"SEAL") + 12
    for place in range(footer, len(CONTENT)):
        damaged = bytearray(CONTENT)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"rows\.parquet' is damaged"):
            read_footer(path)


@pytest.mark.parametrize("read", [read_table, read_footer])
def test_a_file_that_was_cut_off_or_extended_is_found(path, read):
    for length in range(0, len(CONTENT), 7):
        path.write_bytes(CONTENT[:length])
        with pytest.raises(DamagedFileError, match=r"rows\.parquet"):
            read(path)
    path.write_bytes(CONTENT + b"\0")
    with pytest.raises(DamagedFileError, match=r"rows\.parquet"):
        read(path)


@pytest.mark.parametrize("read", [read_table, read_footer])
def test_a_file_without_a_seal_is_refused(path, read):
    pq.write_table(TABLE, path)
    with pytest.raises(DamagedFileError, match="or it has none"):
        read(path)
