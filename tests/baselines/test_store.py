import multiprocessing
import os
import pickle
import resource
import signal
import sqlite3
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import baselines.store
from baselines.store import StoredGame, StoreError, UtilityStore

ALL_OF_4 = (np.arange(16)[:, None] >> np.arange(4) & 1).astype(bool)


@pytest.fixture
def store(tmp_path):
    return UtilityStore(tmp_path / "utilities.db")


class Asked:
    """Utilities by table, [2^n, k], noting what is asked for."""

    def __init__(self, table):
        self.table = np.asarray(table, dtype=float)
        self.numbers = []

    def __call__(self, coalitions):
        numbers = coalitions @ (1 << np.arange(coalitions.shape[1]))
        self.numbers += numbers.tolist()
        return self.table[numbers]


def never(coalitions):
    raise AssertionError(f"asked for {len(coalitions)} coalitions")


def random_coalitions(m, n, seed=0):
    return np.random.default_rng(seed).random((m, n)) < 0.5


def sizes(coalitions):
    return coalitions.sum(axis=1, keepdims=True).astype(float)


def in_sqlite(store, *statements):
    with closing(sqlite3.connect(store.path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


@settings(max_examples=40)
@given(
    st.integers(1, 3).flatmap(
        lambda k: arrays(np.float64, (16, k), elements=st.floats(allow_nan=False, allow_infinity=False))
    ),
    st.lists(arrays(np.int64, st.integers(0, 20), elements=st.integers(0, 15)), max_size=5),
)
def test_answers_are_those_of_the_game_to_the_bit_and_each_coalition_is_computed_once(table, batches):
    with TemporaryDirectory() as folder:
        asked, measures = Asked(table), "abc"[: table.shape[1]]
        for numbers in batches:
            store = UtilityStore(f"{folder}/utilities.db")  # as another run would
            answer = store.evaluate("game", ALL_OF_4[numbers], asked, tuple(measures))
            assert answer.tobytes() == table[numbers].tobytes()
        in_order_of_need = list(dict.fromkeys(int(number) for numbers in batches for number in numbers))
        assert asked.numbers == in_order_of_need
        if batches:
            assert store.verify() == len(store) == len(in_order_of_need)


def test_nothing_asked_nothing_computed(store):
    assert store.evaluate("game", ALL_OF_4[:0], never, ("a", "b")).shape == (0, 2)
    assert store.games() == []


def test_games_are_told_apart_by_identity(store):
    for factor, identity in enumerate(["game", "game ", "Game", "spiel 🎲"]):
        store.evaluate(identity, ALL_OF_4, lambda missing, factor=factor: factor * sizes(missing))
    for factor, identity in enumerate(["game", "game ", "Game", "spiel 🎲"]):
        np.testing.assert_array_equal(store.evaluate(identity, ALL_OF_4, never), factor * sizes(ALL_OF_4))
    store.evaluate("two", ALL_OF_4[:3, :2], lambda missing: np.zeros((3, 2)), ("loss", "accuracy"))
    assert store.games()[0] == StoredGame("game", 4, ("utility",), 16)
    assert store.games()[-1] == StoredGame("two", 2, ("loss", "accuracy"), 3)
    assert len(store) == 4 * 16 + 3


@pytest.mark.parametrize(
    ("n_players", "measures", "got"),
    [
        (3, ("loss", "accuracy"), "got 3 players with the measures loss, accuracy"),
        (4, ("loss",), "got 4 players with the measures loss;"),
        (4, ("accuracy", "loss"), "with the measures accuracy, loss;"),
    ],
)
def test_the_same_game_has_the_same_players_and_measures(store, n_players, measures, got):
    store.evaluate("game", ALL_OF_4, lambda missing: np.zeros((16, 2)), ("loss", "accuracy"))
    with pytest.raises(ValueError, match=rf"'game' of 4 players with the measures loss, accuracy, .*{got}"):
        store.evaluate("game", ALL_OF_4[:, :n_players], never, measures)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 255, 256, 257, 264, 60_000])
def test_coalitions_that_differ_in_one_player_are_told_apart(store, n):
    players = np.unique([0, 1, n // 2, n - 2, n - 1][-min(n, 5) :])
    coalitions = np.repeat(random_coalitions(1, n), len(players) + 1, axis=0)
    coalitions[np.arange(len(players)), players] ^= True
    utilities = np.arange(len(coalitions), dtype=float)[:, None]
    store.evaluate("game", coalitions, lambda missing: utilities)
    np.testing.assert_array_equal(store.evaluate("game", coalitions[::-1], never), utilities[::-1])


@pytest.mark.parametrize(("n", "k"), [(16, 1), (200, 2), (256, 1), (5000, 3)])
def test_size_on_disk(store, n, k):
    for seed in range(3):
        coalitions = random_coalitions(4000, n, seed)
        store.evaluate("game", coalitions, lambda missing: np.zeros((len(missing), k)), tuple("abc"[:k]))
    assert store.path.stat().st_size <= len(store) * (min(n / 8, 32) + 8 * k + 25) + 32 * 1024
    assert sorted(path.name for path in store.path.parent.iterdir()) == [store.path.name]


def test_what_is_not_finite_is_returned_and_not_kept(store):
    utilities = np.zeros((16, 2))
    utilities[[2, 5, 9], [0, 1, 1]] = np.nan, np.inf, -np.inf
    measures = ("a", "b")
    np.testing.assert_array_equal(store.evaluate("game", ALL_OF_4, Asked(utilities), measures), utilities)
    again = Asked(utilities)
    np.testing.assert_array_equal(store.evaluate("game", ALL_OF_4, again, measures), utilities)
    assert again.numbers == [2, 5, 9]
    assert len(store) == 13


class StoppedError(Exception):
    pass


def raising(**attributes):
    def compute(missing):
        error = StoppedError("worker died")
        for name, value in attributes.items():
            setattr(error, name, value)
        raise error

    return compute


def test_work_finished_before_an_error_is_kept(store):
    store.evaluate("game", ALL_OF_4[:4], sizes)
    finished = sizes(ALL_OF_4[4:])
    finished[[3, 7]] = np.nan
    for utilities in (finished, finished[:, 0]):
        with pytest.raises(StoppedError, match="worker died"):
            store.evaluate("game", ALL_OF_4, raising(utilities=utilities))
    rest = Asked(sizes(ALL_OF_4))
    np.testing.assert_array_equal(store.evaluate("game", ALL_OF_4, rest), sizes(ALL_OF_4))
    assert rest.numbers == [7, 11]


@pytest.mark.parametrize("attributes", [{}, {"utilities": None}, {"utilities": np.zeros(3)}, {"utilities": "none"}])
def test_an_error_without_finished_work_loses_nothing_of_earlier_batches(store, attributes):
    store.evaluate("game", ALL_OF_4[:4], sizes)
    with pytest.raises(StoppedError):
        store.evaluate("game", ALL_OF_4, raising(**attributes))
    assert len(store) == 4
    store.evaluate("game", ALL_OF_4[:4], never)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros(16), r"16 coalitions with its 1 measures \(utility\), shape \(16, 1\), got shape \(16,\)"),
        (np.zeros((15, 1)), r"got shape \(15, 1\)"),
        (np.zeros((16, 2)), r"got shape \(16, 2\)"),
        (1.0, r"got shape \(\)"),
        (np.zeros((16, 1), dtype=complex), "real numbers, got an array of complex128"),
        ([["a"]] * 16, "real numbers, got an array of <U1"),
    ],
)
def test_answers_of_compute_are_checked(store, answer, message):
    with pytest.raises(ValueError, match=message):
        store.evaluate("game", ALL_OF_4, lambda missing: answer)
    assert len(store) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"identity": None}, TypeError, r"identity must be a string that names the game, got None \(NoneType\)"),
        ({"identity": ""}, TypeError, "got ''"),
        ({"measures": "loss"}, TypeError, "measures must be a sequence of at least one string, got 'loss'"),
        ({"measures": ()}, TypeError, r"got \(\)"),
        ({"measures": (1,)}, TypeError, r"got \(1,\)"),
        ({"coalitions": ALL_OF_4.astype(int)}, ValueError, r"coalitions must be a bool array .* got int64"),
        ({"coalitions": ALL_OF_4[0]}, ValueError, r"bool of shape \(4,\)"),
        ({"coalitions": ALL_OF_4[:, :0]}, ValueError, r"shape \(16, 0\)"),
    ],
)
def test_arguments_are_checked(store, arguments, error, message):
    with pytest.raises(error, match=message):
        store.evaluate(**{"identity": "game", "coalitions": ALL_OF_4, "compute": never, **arguments})


# --- files that are no store, or cannot be written


def test_what_is_no_store_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "file"
    for content in (b"", b"SQLite format 3\0", b"a table of results\n" * 1000):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"file' (is not a store|cannot be read \(file is not a database)"):
            UtilityStore(path)
        assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE games (id INTEGER)")
    content = path.read_bytes()
    with pytest.raises(StoreError, match=r"other.db' is not a store of utilities; give the path of one"):
        UtilityStore(path)
    assert path.read_bytes() == content


def test_another_format_is_refused(store):
    in_sqlite(store, "PRAGMA user_version = 2")
    with pytest.raises(StoreError, match="is of format 2, this is format 1; give another path"):
        UtilityStore(store.path)
    with pytest.raises(StoreError, match="is of format 2"):
        store.evaluate("game", ALL_OF_4, never)


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of the store .*missing/utilities.db' does not exist"):
        UtilityStore(tmp_path / "missing" / "utilities.db")
    with pytest.raises(StoreError, match="cannot be read"):
        UtilityStore(tmp_path)


def test_odd_names(tmp_path):
    for name in ("a b?c#d%20&mode=ro", "é🎲.db"):
        UtilityStore(tmp_path / name).evaluate("game", ALL_OF_4, sizes)
        UtilityStore(str(tmp_path / name)).evaluate("game", ALL_OF_4, never)


def test_a_full_disk_loses_no_utilities(store):
    """The system's own refusal: no file may grow beyond a limit."""
    store.evaluate("game", ALL_OF_4, sizes)
    coalitions = random_coalitions(5000, 60)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.warns(RuntimeWarning, match=r"'large' are computed but not kept, because the store .*db'"):
            utilities = store.evaluate("large", coalitions, sizes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    np.testing.assert_array_equal(utilities, sizes(coalitions))
    assert store.verify() == 16
    store.evaluate("large", coalitions, sizes)
    assert store.verify() == 16 + 5000
    np.testing.assert_array_equal(store.evaluate("large", coalitions[::-1], never), sizes(coalitions[::-1]))


@pytest.mark.parametrize("another_is_writing", [False, True])
def test_a_store_that_may_only_be_read_answers_and_keeps_nothing(store, monkeypatch, another_is_writing):
    with closing(sqlite3.connect(store.path)) as other:
        if another_is_writing:
            other.execute("SELECT * FROM games").fetchall()  # what follows stays in the log for as long as this is open
        store.evaluate("game", ALL_OF_4[:8], sizes)
        before = {path.name for path in store.path.parent.iterdir()}
        # permissions do not bind the superuser, who may be running this
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        readable = UtilityStore(store.path)
        readable.evaluate("game", ALL_OF_4[:8], never)
        with pytest.warns(RuntimeWarning, match="cannot be written: attempt to write a readonly database"):
            np.testing.assert_array_equal(readable.evaluate("game", ALL_OF_4, sizes), sizes(ALL_OF_4))
        assert readable.verify() == 8
        assert {path.name for path in store.path.parent.iterdir()} == before


def test_the_warning_comes_once(store, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # what Python does unless told otherwise
        for row in range(5):
            store.evaluate("game", ALL_OF_4[row : row + 1], sizes)
    assert [Path(warning.filename).name for warning in caught] == ["test_store.py"]


def test_a_store_that_is_busy_for_too_long_answers_and_loses_no_utilities(store, monkeypatch):
    monkeypatch.setattr(baselines.store, "_SECONDS_TO_WAIT", 0.01)
    store.evaluate("game", ALL_OF_4[:8], sizes)
    with closing(sqlite3.connect(store.path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        store.evaluate("game", ALL_OF_4[:8], never)
        with pytest.warns(RuntimeWarning, match="cannot be written: database is locked"):
            np.testing.assert_array_equal(store.evaluate("game", ALL_OF_4, sizes), sizes(ALL_OF_4))


def test_a_store_that_vanishes_loses_no_utilities(store):
    def compute(missing):
        store.path.unlink()
        return sizes(missing)

    with pytest.warns(RuntimeWarning, match="cannot be written: unable to open database file"):
        np.testing.assert_array_equal(store.evaluate("game", ALL_OF_4, compute), sizes(ALL_OF_4))
    with pytest.raises(StoreError, match=r"cannot be read \(unable to open database file\)"):
        store.evaluate("game", ALL_OF_4, never)


# --- damage


def test_a_changed_byte_anywhere_is_an_error_or_a_miss_but_never_another_utility(store):
    """Of the file's head and of some rows every byte, others here and there; all of its bits, and a single one."""
    table = np.random.default_rng(0).normal(size=(16, 2))
    measures = ("a", "b")
    store.evaluate("game", ALL_OF_4, Asked(table), measures)
    whole = store.path.read_bytes()
    rows = sorted(whole.index(utilities.tobytes()) for utilities in table)
    offsets = {*range(112), *range(rows[0] - 20, rows[0] + 100), *range(0, len(whole), 61)}
    outcomes = {"error": 0, "miss": 0, "right": 0}
    for offset in sorted(offsets):
        for change in (0xFF, 1 << offset % 8):
            damaged = bytearray(whole)
            damaged[offset] ^= change
            store.path.write_bytes(damaged)
            asked = Asked(table)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # it may well be that it cannot be written
                    answer = store.evaluate("game", ALL_OF_4, asked, measures)
            except StoreError:
                outcomes["error"] += 1
            else:
                np.testing.assert_array_equal(answer, table)
                outcomes["miss" if asked.numbers else "right"] += 1
            for leftover in store.path.parent.glob("*-*"):
                leftover.unlink()
    assert all(outcomes.values())


def test_damaged_utilities_are_reported_by_file_game_and_number(store):
    store.evaluate("other", ALL_OF_4, sizes)
    utilities = np.array([[1234.5], [6789.25], [1e-3]])
    store.evaluate("game", ALL_OF_4[:3], lambda missing: utilities)
    content = store.path.read_bytes()
    for utility in utilities[:2, 0]:
        content = content.replace(utility.tobytes(), (utility + 1).tobytes())
    store.path.write_bytes(content)
    match = r"utilities.db' is damaged: of 3 coalitions of the game 'game', the rows of 2 fail .*; move the file away"
    with pytest.raises(StoreError, match=match):
        store.evaluate("game", ALL_OF_4[:3], never)
    with pytest.raises(StoreError, match="damaged: of 19 rows, 2 of the game 'game' fail their checksum; move"):
        store.verify()
    np.testing.assert_array_equal(store.evaluate("game", ALL_OF_4[2:3], never), utilities[2:])  # what is intact, is
    store.evaluate("other", ALL_OF_4, never)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE utilities SET coalition = x'f1' WHERE coalition = x'80' AND game = 1",  # a coalition that is none
        "UPDATE utilities SET game = 2 WHERE coalition = x'80' AND game = 1",
        "UPDATE utilities SET game = 7 WHERE coalition = x'80' AND game = 1",
        "UPDATE utilities SET utilities = 'text of 1' WHERE coalition = x'80' AND game = 1",
        "UPDATE utilities SET utilities = NULL WHERE coalition = x'80' AND game = 1",
        "UPDATE utilities SET checksum = NULL WHERE coalition = x'80' AND game = 1",
        "UPDATE utilities SET coalition = 'text' WHERE coalition = x'80' AND game = 1",
    ],
)
def test_rows_belong_to_their_coalition_and_game(store, statement):
    store.evaluate("game", ALL_OF_4, sizes)
    store.evaluate("other", ALL_OF_4[:1], sizes)
    in_sqlite(store, statement)
    with pytest.raises(StoreError, match=r"of 17 rows, 1 of (the game '(game|other)'|an unknown game) fail"):
        store.verify()


def test_exchanged_utilities_are_found(store):
    store.evaluate("game", ALL_OF_4, sizes)
    in_sqlite(
        store,
        "UPDATE utilities SET (utilities, checksum) = "
        "(SELECT utilities, checksum FROM utilities AS u WHERE u.coalition = x'00') WHERE coalition = x'f0'",
    )
    with pytest.raises(StoreError, match="the rows of 1 fail their checksum"):
        store.evaluate("game", ALL_OF_4, never)


@pytest.mark.parametrize(
    "change",
    ["n_players = 5", "measures = '[\"loss\"]'", "measures = 3", "measures = NULL", "identity = x'00'", "checksum = 0"],
)
def test_damaged_games_are_reported(store, change):
    store.evaluate("game", ALL_OF_4, sizes)
    in_sqlite(store, f"UPDATE games SET {change}")  # noqa: S608
    for look in (store.verify, store.games):
        with pytest.raises(StoreError, match=r"damaged: what it says of the game .* fails its checksum; move the file"):
            look()


def test_a_damaged_schema_is_an_error(store):
    """With which the games have no numbers any more."""
    store.evaluate("game", ALL_OF_4, sizes)
    content = store.path.read_bytes()
    assert content.count(b"id INTEGER PRIMARY KEY") == 1
    store.path.write_bytes(content.replace(b"id INTEGER PRIMARY KEY", b"id INTEGER PRIMARZ KEY"))
    with pytest.raises(StoreError, match="damaged: what it says of the game 'game' fails its checksum"):
        store.evaluate("game", ALL_OF_4, never)


def test_a_broken_index_is_found(store):
    """Rows alone may all be intact."""
    store.evaluate("game", ALL_OF_4, sizes)
    content = store.path.read_bytes()
    entry = b"\x03\x15\x09game"  # an index record of a text of 4 bytes and the number 1 (SQLite, Record Format)
    assert content.count(entry) == 1
    store.path.write_bytes(content.replace(entry, b"\x03\x15\x09gone"))
    with pytest.raises(StoreError, match=r"utilities.db' is damaged: row 1 missing from index .*; move the file away"):
        store.verify()


# --- many threads and processes


def write_overlapping(path, worker, ready):
    """Each worker its own order; all coalitions of 10 players but a few, in batches."""
    ready.wait()
    store = UtilityStore(path)  # made by whoever comes first
    numbers = np.random.default_rng(worker).permutation(2**10)[:1000]
    for batch in np.array_split(numbers, 20):
        coalitions = (batch[:, None] >> np.arange(10) & 1).astype(bool)
        answer = store.evaluate("game", coalitions, lambda missing: np.sqrt(sizes(missing)))
        np.testing.assert_array_equal(answer, np.sqrt(sizes(coalitions)))


def test_a_store_that_another_process_makes_meanwhile_is_kept(tmp_path, monkeypatch):
    link = Path.hardlink_to

    def slower(path, target):
        monkeypatch.setattr(Path, "hardlink_to", link)
        UtilityStore(path).evaluate("game", ALL_OF_4, sizes)
        link(path, target)

    monkeypatch.setattr(Path, "hardlink_to", slower)
    UtilityStore(tmp_path / "utilities.db").evaluate("game", ALL_OF_4, never)


def test_many_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(3)
    path = tmp_path / "utilities.db"
    workers = [
        context.Process(target=write_overlapping, args=(path, worker, ready), daemon=True) for worker in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 3
    numbers = {int(number) for worker in range(3) for number in np.random.default_rng(worker).permutation(2**10)[:1000]}
    assert UtilityStore(path).verify() == len(numbers)
    assert [file.name for file in tmp_path.iterdir()] == ["utilities.db"]


def write_until_killed(path):
    """Die while the rows of the second batch are being written."""
    store = UtilityStore(path)
    store.evaluate("game", random_coalitions(3000, 200, seed=0), sizes)
    written = 0

    def crc32(*arguments):
        nonlocal written
        written += 1
        if written == 20_000:
            os.kill(os.getpid(), signal.SIGKILL)
        return zlib_crc32(*arguments)

    zlib_crc32 = zlib.crc32
    zlib.crc32 = crc32
    store.evaluate("game", random_coalitions(30_000, 200, seed=1), sizes)


def test_a_writer_that_is_killed_loses_its_batch_and_nothing_else(tmp_path):
    path = tmp_path / "utilities.db"
    process = multiprocessing.get_context("spawn").Process(target=write_until_killed, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert {file.name for file in tmp_path.iterdir()} > {"utilities.db"}  # what was being written lies about
    store = UtilityStore(path)
    store.evaluate("game", random_coalitions(3000, 200, seed=0), never)
    assert store.verify() == 3000
    store.evaluate("game", random_coalitions(3000, 200, seed=1), sizes)
    assert store.verify() == 6000


def test_forked_processes_and_threads_share_a_store(store):
    def write(seed):
        for number in range(10):
            store.evaluate("game", random_coalitions(50, 30, seed=10 * seed + number), sizes)

    write(0)
    children = []
    for seed in range(1, 3):
        child = os.fork()
        if child == 0:
            try:
                write(seed)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(2, 6)))
    assert store.verify() == 6 * 10 * 50


def test_a_pickled_store_opens_the_same_file(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = UtilityStore("utilities.db")
    relative.evaluate("game", ALL_OF_4, sizes)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    pickle.loads(pickle.dumps(relative)).evaluate("game", ALL_OF_4, never)  # noqa: S301
    assert not list(elsewhere.iterdir())
