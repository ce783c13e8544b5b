"""Parquet files in which any change is found.

Parquet's own checksums cover pages of data and neither their headers nor the footer, so that a single flipped bit may
still change numbers, types or names without a word. These files carry a seal of 12 bytes between the data and the
footer, where readers of Parquet, who go by the offsets in the footer, pass over it; so anything that reads Parquet
reads them:

=====================  =======================================================
bytes                  content
=====================  =======================================================
from the start on      pages, as any writer of Parquet lays them out
4                      the letters ``SEAL``
4                      CRC-32 of the pages, little-endian
4                      CRC-32 of all that follows, little-endian
to the end             footer, its length, and the letters ``PAR1``
=====================  =======================================================

A CRC-32 finds every change within 32 adjacent bits, and misses any other with a probability of 2^-32. Where the length
of the footer is changed, there is no seal at the place to which it points.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["DamagedFileError", "read_footer", "read_table", "sealed"]

MARK = b"SEAL"
SEAL_BYTES = len(MARK) + 2 * 4
TAIL_BYTES = 8  # the length of the footer, and PAR1


class DamagedFileError(ValueError):
    """A Parquet file that is not what was written: damaged, cut off, or written without a seal."""


def sealed(table: pa.Table, **options: Any) -> bytes:
    """Return the content of a Parquet file with the rows of `table`, and its seal.

    Parameters
    ----------
    table : pyarrow.Table
        The rows.
    **options
        For :func:`pyarrow.parquet.write_table`.
    """
    plain = io.BytesIO()
    pq.write_table(table, plain, **options)
    content = plain.getvalue()
    cut = len(content) - TAIL_BYTES - _footer_length(content[-TAIL_BYTES:])
    pages, rest = content[:cut], content[cut:]
    return b"".join((pages, MARK, _checksum(pages), _checksum(rest), rest))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a file that :func:`sealed` made, or some columns of them.

    Raises
    ------
    DamagedFileError
        If a bit has changed; the message names the file.
    """
    content = path.read_bytes()
    place = len(content) - TAIL_BYTES - _footer_length(content[-TAIL_BYTES:]) - SEAL_BYTES
    seal, rest = _parts(path, content[place:] if place >= 0 else b"")
    if seal != MARK + _checksum(content[:place]) + _checksum(rest):
        raise _damaged(path)
    return pq.read_table(pa.BufferReader(content), columns=None if columns is None else list(columns))


def read_footer(path: Path) -> pq.FileMetaData:
    """Return what the footer of such a file says: columns and the number of rows. The rows are not looked at.

    Raises
    ------
    DamagedFileError
        If a bit of the footer has changed; the message names the file.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        file.seek(max(0, size - TAIL_BYTES - _footer_length(file.read()) - SEAL_BYTES))
        seal, rest = _parts(path, file.read())
    if seal[-4:] != _checksum(rest):
        raise _damaged(path)
    return pq.read_metadata(path)


def _parts(path: Path, end: bytes) -> tuple[bytes, bytes]:
    """Take the end of a file, from its seal on, apart."""
    if not end.startswith(MARK) or len(end) < SEAL_BYTES + TAIL_BYTES:
        raise _damaged(path)
    return end[:SEAL_BYTES], end[SEAL_BYTES:]


def _footer_length(tail: bytes) -> int:
    return int.from_bytes(tail[:4], "little")


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")


def _damaged(path: Path) -> DamagedFileError:
    return DamagedFileError(
        f"{str(path)!r} is damaged, or was not written by this version: its checksum does not match its content, or it "
        "has none; restore it from a copy, or move it away"
    )
