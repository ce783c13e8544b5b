r"""Utilities of coalitions, kept on disk and shared between estimators, runs and processes.

In data valuation a utility is a training, while everything that an estimator does with it is arithmetic. So utilities
are kept, by game and coalition, and no coalition is ever evaluated twice: an estimator is replayed at no cost, another
one starts from the coalitions that both need, and a run that was cut off goes on where it was.

**File**: one SQLite database, marked by an application id and a format version. A game is known by its identity, a
string that must tell apart whatever changes a utility (data, model, recipe, seed, version of the code); it has a number
of players and one or more named measures, such as loss and accuracy of the same trained model. Utilities are stored as
the bits of their float64, so that a replay equals the run to the bit.

**Keys**: the packed bits of a coalition, up to 256 players; beyond that, the SHA-256 digest of the packed bits, for
which the probability that any two of :math:`N` coalitions share it is below :math:`N^2 / 2^{257}`.

**Size**: a row of :math:`n` players and :math:`k` measures takes about :math:`\min(n / 8, 32) + 8 k + 20` bytes.

**Cost**: about 2 microseconds a coalition that is found and 5 for one that is stored (200 players, batches of 4096),
half a millisecond a call, and the disk's time to make sure of what a call has stored.

**Processes**: any number may use a store at the same time; they must share a machine, as SQLite's write-ahead log has
it. Two that ask for the same missing coalition both compute it, and the first one stores it. A process that dies
loses the batch it was storing and nothing else. The file is opened in each call and closed at its end, because an open
SQLite database must not be carried across a fork (SQLite: *How To Corrupt An SQLite Database File*, section 2.6). So
there is nothing to close, and a store may be pickled or used from any thread or worker.

**Damage**: each row carries a checksum (CRC-32) over its game, coalition and utilities. It finds every change within
32 adjacent bits, and misses any other with a probability of :math:`2^{-32}`. A row that fails it is an error, never
a utility.
"""

import hashlib
import json
import os
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from baselines.real_numbers import check_unmasked, float64_utilities

__all__ = ["StoreError", "StoredGame", "UtilityStore"]

Compute: TypeAlias = Callable[[NDArray[np.bool_]], NDArray[np.float64]]

_APPLICATION = 0x55544C53  # "UTLS"
_FORMAT = 1
_SCHEMA = f"""
    PRAGMA journal_mode = WAL;
    PRAGMA application_id = {_APPLICATION};
    PRAGMA user_version = {_FORMAT};
    CREATE TABLE games (
        id INTEGER PRIMARY KEY, identity TEXT UNIQUE, n_players INTEGER, measures TEXT, checksum INTEGER
    );
    CREATE TABLE utilities (
        game INTEGER, coalition BLOB, utilities BLOB, checksum INTEGER, PRIMARY KEY (game, coalition)
    ) WITHOUT ROWID;
"""
_LONGEST_KEY = 32  # bytes; of packed bits, or of a digest
_KEYS_PER_QUERY = 512
_SECONDS_TO_WAIT = 60.0  # for another process that is writing
_COMPLAINTS = (sqlite3.Error, UnicodeDecodeError)  # its messages quote what is damaged, which may not be text any more
_REMEDY = "move the file away, so that a new store is made and its utilities are computed anew"


class StoreError(RuntimeError):
    """A file that cannot be used as a store of utilities: damaged, of another format, or something else altogether."""


@dataclass(frozen=True)
class StoredGame:
    """A game of which a store has utilities.

    Attributes
    ----------
    identity : str
        What the game is known by.
    n_players : int
        Number of players.
    measures : tuple of str
        Names of the utilities that are stored for each coalition.
    rows : int
        Number of coalitions stored.
    """

    identity: str
    n_players: int
    measures: tuple[str, ...]
    rows: int


class UtilityStore:
    """Utilities of coalitions in a file; see the module's docstring. Its length is the number of coalitions stored.

    Parameters
    ----------
    path : str or Path
        The file; made where it does not exist. Its folder must exist. A file that may only be read is a store that
        answers and keeps nothing.

    Attributes
    ----------
    path : Path
        The file, as an absolute path.

    Raises
    ------
    FileNotFoundError
        If the folder of the file does not exist.
    StoreError
        If the file is not a store of utilities, is one of another format, or can be neither read nor made.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = UtilityStore(folder.name + "/utilities.db")
    >>> coalitions = np.array([[True, False], [True, True]])
    >>> store.evaluate("sizes", coalitions, lambda missing: missing.sum(axis=1, keepdims=True))
    array([[1.],
           [2.]])
    >>> store.evaluate("sizes", coalitions, compute=None)[:, 0].tolist()  # all are known: nothing to compute
    [1.0, 2.0]
    >>> store.games()
    [StoredGame(identity='sizes', n_players=2, measures=('utility',), rows=2)]
    >>> folder.cleanup()
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        if not self.path.exists():
            _create(self.path)
        with self._reading():
            pass

    def evaluate(
        self,
        identity: str,
        coalitions: NDArray[np.bool_],
        compute: Compute,
        measures: Sequence[str] = ("utility",),
    ) -> NDArray[np.float64]:
        """Utilities of a batch of coalitions, from the store where it has them, else computed and stored.

        Parameters
        ----------
        identity : str
            What the game is known by; whatever changes a utility must change it.
        coalitions : bool [m, n_players]
            One coalition a row.
        compute : callable
            Called at most once, with the distinct coalitions that are missing (bool [m', n_players], in the order of
            the batch); returns their utilities (float64 [m', k]). If it raises, the finite rows of the exception's
            attribute `utilities` (float64 [m', k]), where it has one, are stored before the exception goes on.
        measures : sequence of str
            Names of the k utilities of a coalition.

        Returns
        -------
        float64 [m, k]
            Utilities. A row that is not finite is returned as it was computed, and not stored.

        Raises
        ------
        TypeError
            If `identity` or a measure is not a string.
        ValueError
            If `coalitions` is not a bool matrix, the store knows the game with another number of players or other
            measures, or `compute` returns something that is not k real numbers for each coalition.
        StoreError
            If the file cannot be read, or rows that are asked for fail their checksum.

        Warns
        -----
        RuntimeWarning
            If the utilities that were computed cannot be stored (disk full, file read-only); they are returned.
        """
        game = _signature(identity, coalitions, measures)
        keys = _keys(coalitions)
        first: dict[bytes, int] = {}  # row in which a coalition comes first
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        known = self._look_up(game, list(first))
        missing = [key for key in first if key not in known]

        utilities = np.empty((len(keys), len(game.measures)))
        if known:
            stored = np.frombuffer(b"".join(known.values()), dtype="<f8")
            utilities[[first[key] for key in known]] = stored.reshape(len(known), -1)
        if missing:
            rows = [first[key] for key in missing]
            utilities[rows] = self._compute(game, missing, coalitions[rows], compute)
        return utilities[[first[key] for key in keys]]

    def games(self) -> list[StoredGame]:
        """Return what games the store has utilities of, in the order in which they came.

        Raises
        ------
        StoreError
            If the file cannot be read, or what it says of a game fails its checksum.
        """
        with self._reading() as connection:
            games = self._signatures(connection)
            rows = dict(connection.execute("SELECT game, count(*) FROM utilities GROUP BY game").fetchall())
        return [
            StoredGame(game.identity, game.n_players, game.measures, rows.get(number, 0))
            for number, game in games.items()
        ]

    def verify(self) -> int:
        """Check the structure of the file and the checksums of all games and rows.

        Returns
        -------
        int
            Number of rows, all of them intact.

        Raises
        ------
        StoreError
            If the file cannot be read, its structure is damaged, or rows fail their checksum; says how many of which
            game.
        """
        with self._reading() as connection:
            structure = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if structure != "ok":
                raise StoreError(f"the store {str(self.path)!r} is damaged: {structure}; {_REMEDY}")
            games = self._signatures(connection)
            damaged: dict[str, int] = {}
            rows = connection.execute("SELECT game, coalition, utilities, checksum FROM utilities")
            for count, (number, key, utilities, checksum) in enumerate(rows, start=1):  # noqa: B007
                game = games.get(number)
                if game is None or not game.vouches_for(key, utilities, checksum):
                    name = "an unknown game" if game is None else f"the game {game.identity!r}"
                    damaged[name] = damaged.get(name, 0) + 1
        if damaged:
            found = ", ".join(f"{number} of {name}" for name, number in damaged.items())
            raise StoreError(
                f"the store {str(self.path)!r} is damaged: of {count} rows, {found} fail their checksum; {_REMEDY}"
            )
        return len(self)

    def __len__(self) -> int:
        with self._reading() as connection:
            return int(connection.execute("SELECT count(*) FROM utilities").fetchone()[0])

    def _look_up(self, game: "_Signature", keys: list[bytes]) -> dict[bytes, bytes]:
        """Return the packed utilities of those coalitions that are stored."""
        known: dict[bytes, bytes] = {}
        damaged = 0
        with self._reading() as connection:
            number = self._find(connection, game)
            for first in range(0, len(keys) if number is not None else 0, _KEYS_PER_QUERY):
                asked = keys[first : first + _KEYS_PER_QUERY]
                rows = connection.execute(
                    "SELECT coalition, utilities, checksum FROM utilities "  # noqa: S608 - question marks alone
                    f"WHERE game = ? AND coalition IN ({', '.join('?' * len(asked))})",
                    (number, *asked),
                )
                for key, utilities, checksum in rows:
                    if game.vouches_for(key, utilities, checksum):
                        known[key] = utilities
                    else:
                        damaged += 1
        if damaged:
            raise StoreError(
                f"the store {str(self.path)!r} is damaged: of {len(keys)} coalitions of the game {game.identity!r}, "
                f"the rows of {damaged} fail their checksum; {_REMEDY}"
            )
        return known

    def _compute(
        self, game: "_Signature", keys: list[bytes], coalitions: NDArray[np.bool_], compute: Compute
    ) -> NDArray[np.float64]:
        """Compute and store; returns the utilities (float64 [m', k]) whether they could be stored or not."""
        shape = (len(keys), len(game.measures))
        try:
            answer: Any = compute(coalitions)
        except Exception as error:
            finished = getattr(error, "utilities", None)
            if isinstance(finished, np.ndarray) and finished.dtype.kind == "f" and finished.size == np.prod(shape):
                self._keep(game, keys, finished.reshape(shape).astype(np.float64))
            raise
        utilities = float64_utilities(answer, "compute")
        if utilities.shape != shape:
            raise ValueError(
                f"compute must return a row for each of {shape[0]} coalitions with its {shape[1]} measures "
                f"({', '.join(game.measures)}), shape {shape}, got shape {utilities.shape}"
            )
        self._keep(game, keys, utilities)
        return utilities

    def _keep(self, game: "_Signature", keys: list[bytes], utilities: NDArray[np.float64]) -> None:
        """Store the finite rows in one transaction, or warn that they could not be stored."""
        finite = np.flatnonzero(np.isfinite(utilities).all(axis=1))
        if finite.size == 0:
            return
        packed = [row.tobytes() for row in utilities[finite].astype("<f8")]
        try:
            with closing(self._open()) as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(
                    "INSERT OR IGNORE INTO games (identity, n_players, measures, checksum) VALUES (?, ?, ?, ?)",
                    (game.identity, game.n_players, json.dumps(game.measures), game.checksum),
                )
                number = self._find(connection, game)
                connection.executemany(
                    "INSERT OR IGNORE INTO utilities VALUES (?, ?, ?, ?)",
                    (
                        (number, keys[row], values, zlib.crc32(keys[row] + values, game.checksum))
                        for row, values in zip(finite, packed, strict=True)
                    ),
                )
        except (*_COMPLAINTS, StoreError) as error:
            warnings.warn(
                f"utilities of the game {game.identity!r} are computed but not kept, because the store "
                f"{str(self.path)!r} cannot be written: {error}",
                RuntimeWarning,
                stacklevel=4,  # whoever called evaluate
            )

    def _find(self, connection: sqlite3.Connection, game: "_Signature") -> int | None:
        """Return the number of the game in this file, or None if it is not there."""
        for number, known in self._signatures(connection, game.identity).items():
            if known != game:
                raise ValueError(
                    f"the store {str(self.path)!r} has a game {game.identity!r} of {known.n_players} players with the "
                    f"measures {', '.join(known.measures)}, got {game.n_players} players with the measures "
                    f"{', '.join(game.measures)}; another game needs another identity"
                )
            return number
        return None

    def _signatures(self, connection: sqlite3.Connection, identity: str | None = None) -> dict[int, "_Signature"]:
        """Return the games of the file, or the one of that identity, by number; anything at all may be read."""
        games: dict[int, _Signature] = {}
        for number, name, n_players, measures, checksum in connection.execute(
            "SELECT id, identity, n_players, measures, checksum FROM games "
            "WHERE identity = :identity OR :identity IS NULL ORDER BY id",
            {"identity": identity},
        ):
            try:
                game = _Signature(name, n_players, tuple(json.loads(measures)))
                intact = isinstance(number, int) and checksum == game.checksum
            except (TypeError, ValueError):  # not what JSON is made of
                intact = False
            if not intact:
                raise StoreError(
                    f"the store {str(self.path)!r} is damaged: what it says of the game {name!r} fails its checksum; "
                    f"{_REMEDY}"
                )
            games[number] = game
        return games

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Open the file, and say which file it is that SQLite complains about."""
        try:
            with closing(self._open()) as connection:
                yield connection
        except _COMPLAINTS as error:
            raise StoreError(
                f"the store {str(self.path)!r} cannot be read ({error}); give another path, or {_REMEDY}"
            ) from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?{self._mode()}", uri=True, timeout=_SECONDS_TO_WAIT, isolation_level=None
        )
        try:
            connection.execute("PRAGMA synchronous = NORMAL")  # a crash of the system may lose batches, never the file
            connection.execute("PRAGMA cell_size_check = ON")
            application, version = (
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            if application != _APPLICATION:
                raise StoreError(f"{str(self.path)!r} is not a store of utilities; give the path of one, or a new one")
            if version != _FORMAT:
                raise StoreError(
                    f"the store {str(self.path)!r} is of format {version}, this is format {_FORMAT}; give another "
                    f"path, or {_REMEDY}"
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def _mode(self) -> str:
        if os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK):
            return "mode=rw"
        # without a log beside it nobody is writing; SQLite would want to make one, unless told so
        log = self.path.with_name(f"{self.path.name}-wal")
        return "mode=ro" if log.exists() else "mode=ro&immutable=1"


@dataclass(frozen=True)
class _Signature:
    """What must agree for utilities to be those of the same game."""

    identity: str
    n_players: int
    measures: tuple[str, ...]

    @cached_property
    def checksum(self) -> int:
        """Checksum of the game, from which those of its rows go on."""
        return zlib.crc32(json.dumps([self.identity, self.n_players, self.measures]).encode())

    def vouches_for(self, key: Any, utilities: Any, checksum: Any) -> bool:
        """Return whether a row is what was once stored for this game; anything at all may have been read."""
        return (
            isinstance(key, bytes)
            and isinstance(utilities, bytes)
            and len(utilities) == 8 * len(self.measures)
            and bool(zlib.crc32(key + utilities, self.checksum) == checksum)
        )


def _signature(identity: object, coalitions: NDArray[np.bool_], measures: Sequence[str]) -> _Signature:
    if not isinstance(identity, str) or not identity:
        raise TypeError(f"identity must be a string that names the game, got {identity!r} ({type(identity).__name__})")
    if isinstance(measures, str) or not measures or not all(isinstance(measure, str) for measure in measures):
        raise TypeError(f"measures must be a sequence of at least one string, got {measures!r}")
    check_unmasked("coalitions", coalitions)
    if coalitions.dtype != np.bool_ or coalitions.ndim != 2 or coalitions.shape[1] == 0:
        raise ValueError(
            f"coalitions must be a bool array of shape (m, n_players), got {coalitions.dtype} of shape "
            f"{coalitions.shape}"
        )
    return _Signature(identity, coalitions.shape[1], tuple(measures))


def _keys(coalitions: NDArray[np.bool_]) -> list[bytes]:
    packed = [row.tobytes() for row in np.packbits(coalitions, axis=1)]
    if coalitions.shape[1] <= 8 * _LONGEST_KEY:
        return packed
    return [hashlib.sha256(bits).digest() for bits in packed]


def _create(path: Path) -> None:
    """Make an empty store. The file appears whole, so that no other process finds it half made."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of the store {str(path)!r} does not exist; make it first")
    try:
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            partial = Path(folder) / path.name
            with closing(sqlite3.connect(partial)) as connection:
                connection.executescript(_SCHEMA)
            path.hardlink_to(partial)
    except FileExistsError:  # another process was faster
        pass
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"the store {str(path)!r} cannot be made: {error}") from error
