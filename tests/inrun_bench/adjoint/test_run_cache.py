"""Finished runs are kept: a run that was interrupted goes on, and no run is taken for another."""

import dataclasses
import errno
import itertools

import numpy as np
import pytest
import torch

import tasks
from inrun_bench.adjoint import (
    DivergedRunError,
    Storage,
    coalition_gradient_shapley,
    control_variate_shapley,
    differentiate,
    few_run_shapley,
    sweep,
)
from inrun_bench.adjoint.relaxed_game import relaxed_game
from tasks import TrajectoryGame
from tests.inrun_bench.adjoint.small import small_task, some_weights


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Two runs at a time, on record as lists of rows."""
    made, original = [], sweep._sweep

    def recorded(run, weights, rows, *rest):
        found = original(run, weights, rows, *rest)
        made.append(list(rows))
        return found

    monkeypatch.setattr("tasks.stacks.sizing.MODELS_AT_A_TIME", 2)
    monkeypatch.setattr(sweep, "_sweep", recorded)
    return made


@pytest.fixture
def interrupted(monkeypatch):
    """Run a function, and interrupt it where a method is called so many times."""

    def run(function, owner, method, calls):
        count, original = itertools.count(1), getattr(owner, method)

        def counted(*args):
            if next(count) > calls:
                raise KeyboardInterrupt
            return original(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, method, counted)
            function()

    return run


def kept_in(folder):
    return len(list(folder.glob("*.run")))


GROUPS = np.array([0, 2, 1, 1, 0, 2, 2, 2])
ESTIMATORS = {
    "few-run": (lambda storage: few_run_shapley(small_task(), 8, storage=storage), 8),
    "groups": (lambda storage: few_run_shapley(small_task(), 8, groups=GROUPS, storage=storage), 8),
    "coalitions": (lambda storage: coalition_gradient_shapley(small_task(), 16, rng=0, storage=storage), 16),
    "control-variate": (lambda storage: control_variate_shapley(small_task(), budget=100, rng=0, storage=storage), 8),
}


@pytest.mark.parametrize(("estimate", "runs"), ESTIMATORS.values(), ids=ESTIMATORS)
def test_an_interrupted_estimate_goes_on_where_it_was(estimate, runs, tmp_path, chunks, interrupted):
    expected = estimate(Storage()).values
    steps = len(small_task().batches())
    interrupted(lambda: estimate(Storage(runs=tmp_path)), sweep._Run, "step", 2 * steps + 1)  # in the third chunk
    assert kept_in(tmp_path) == 4
    chunks.clear()
    resumed = estimate(Storage(runs=tmp_path))
    assert sum(map(len, chunks)) == runs - 4
    np.testing.assert_allclose(resumed.values, expected, rtol=1e-10, atol=1e-14)
    chunks.clear()
    np.testing.assert_array_equal(estimate(Storage(runs=tmp_path)).values, resumed.values)
    assert chunks == []


def test_an_interrupted_estimate_keeps_its_trainings_too(tmp_path, interrupted, monkeypatch):
    estimate, _ = ESTIMATORS["control-variate"]
    interrupted(lambda: estimate(Storage(runs=tmp_path)), TrajectoryGame, "__call__", 1)  # all and nobody
    trained, original = [], TrajectoryGame.__call__

    def counted(game, coalitions):
        trained.extend(map(tuple, coalitions))
        return original(game, coalitions)

    monkeypatch.setattr(TrajectoryGame, "__call__", counted)
    resumed = estimate(Storage(runs=tmp_path))
    n_resumed = len(set(trained))
    trained.clear()
    np.testing.assert_allclose(resumed.values, estimate(Storage()).values, rtol=1e-10)
    assert 0 < n_resumed < len(set(trained))


def test_more_coalitions_cost_what_is_new(tmp_path, chunks):
    storage = Storage(runs=tmp_path)
    coalition_gradient_shapley(small_task(), 8, rng=0, storage=storage)
    chunks.clear()
    found = coalition_gradient_shapley(small_task(), 24, rng=0, storage=storage)
    assert sum(map(len, chunks)) == 16
    np.testing.assert_allclose(found.values, coalition_gradient_shapley(small_task(), 24, rng=0).values, rtol=1e-10)


def test_a_kept_run_comes_back_to_the_last_bit_whatever_it_is_asked_for_with(tmp_path, chunks):
    task, weights = small_task(), some_weights(4, 8)
    first = differentiate(task, weights, storage=Storage(runs=tmp_path))
    chunks.clear()
    order = [2, 0, 3]
    again = differentiate(task, weights[order], storage=Storage("recomputed", runs=tmp_path))
    assert (chunks, again.stored_bytes) == ([], 0)
    np.testing.assert_array_equal(again.gradients, first.gradients[order])
    np.testing.assert_array_equal(again.utilities, first.utilities[order])


def with_seed(seed):
    return dataclasses.replace(small_task(), seed=seed)


def in_single_precision():
    task = tasks.load("digits-mlp", seed=3, n_train=8, dtype=torch.float32)
    return dataclasses.replace(task, recipe=small_task().recipe)


OTHERS = {
    "seed": (with_seed(4), {}),  # of weights and batches
    "data": (small_task(n=9), {}),
    "recipe": (small_task(recipe="adamw"), {}),
    "rate": (small_task(learning_rate=0.01), {}),
    "utility": (small_task(), {"utility": "expected-accuracy"}),
    "split": (small_task(), {"split": "test"}),
    "dtype": (in_single_precision(), {}),
    "task": (small_task("mnist-mlp"), {}),
}


@pytest.mark.parametrize(("other", "options"), OTHERS.values(), ids=OTHERS)
def test_no_run_is_taken_for_another(other, options, tmp_path, chunks):
    storage = Storage(runs=tmp_path)
    differentiate(small_task(), some_weights(2, 8), storage=storage)
    weights = some_weights(2, other.n_train)
    found = differentiate(other, weights, storage=storage, **options)
    assert len(chunks) == 2
    expected = differentiate(other, weights, **options)
    np.testing.assert_array_equal(found.gradients, expected.gradients)
    np.testing.assert_array_equal(found.utilities, expected.utilities)


def test_runs_of_other_code_are_not_taken_for_those_of_the_present_one(tmp_path, chunks, monkeypatch):
    storage = Storage(runs=tmp_path)
    few_run_shapley(small_task(), 4, storage=storage)
    chunks.clear()
    few_run_shapley(small_task(), 4, storage=storage)
    assert chunks == []
    monkeypatch.setattr("inrun_bench.adjoint.run_cache.code_identity", lambda _: "of another version")
    few_run_shapley(small_task(), 4, storage=storage)
    assert sum(map(len, chunks)) == 4


def test_trainings_of_one_utility_are_not_taken_for_those_of_another(tmp_path):
    coalitions = some_weights(4, 8) < 0.5
    for utility, split in itertools.product(("loss", "expected-accuracy"), ("validation", "test")):
        kept, plain = (
            relaxed_game(small_task(), utility, split, None, Storage(runs=runs), 0.0) for runs in (tmp_path, None)
        )
        for _ in range(2):
            np.testing.assert_allclose(kept(coalitions), plain(coalitions), rtol=1e-10)


DAMAGE = {
    "empty": lambda content, _: b"",
    "short": lambda content, _: content[:-8],
    "long": lambda content, _: content + bytes(8),
    "digest": lambda content, _: bytes([content[0] ^ 1]) + content[1:],
    "number": lambda content, _: content[:-1] + bytes([content[-1] ^ 1]),
    "another": lambda _, other: other,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_not_believed(damage, tmp_path, chunks):
    weights, storage = some_weights(2, 8), Storage(runs=tmp_path)
    expected = differentiate(small_task(), weights, storage=storage)
    whole = {path: path.read_bytes() for path in tmp_path.glob("*.run")}
    one, other = whole
    one.write_bytes(damage(whole[one], whole[other]))
    found = differentiate(small_task(), weights, storage=storage)
    assert [len(rows) for rows in chunks] == [2, 1]
    np.testing.assert_allclose(found.gradients, expected.gradients, rtol=1e-10, atol=1e-14)
    chunks.clear()
    differentiate(small_task(), weights, storage=storage)
    assert chunks == []


def wild_task():
    """Runs diverge where any sample counts."""
    return small_task("diabetes-ridge", learning_rate=1e200, weight_decay=0.0)


def test_runs_that_diverge_cost_the_others_nothing(tmp_path, chunks):
    weights = np.full((7, 8), 1e-250) * np.arange(7)[:, None]
    weights[[1, 4, 5]] = 1.0
    with pytest.raises(
        DivergedRunError, match=r"in step 1 .* weights\[1\]; .*; 4 of the 7 runs are kept in '.*'"
    ) as info:
        differentiate(wild_task(), weights, storage=Storage(runs=tmp_path))
    assert (info.value.step, info.value.weighting) == (1, 1)
    assert str(tmp_path) in str(info.value)
    assert sorted(itertools.chain(*chunks)) == [0, 2, 3, 6]
    chunks.clear()
    found = differentiate(wild_task(), weights[[0, 2, 3, 6]], storage=Storage(runs=tmp_path))
    assert chunks == []
    assert np.isfinite(found.utilities).all()


def test_the_error_of_a_run_that_diverged_is_the_same_without_the_others():
    with pytest.raises(DivergedRunError) as info:
        differentiate(wild_task(), np.array([[0.0] * 8, [1.0] * 8]))
    assert info.value.others == ""
    assert str(info.value).endswith("float64 may help")


def disk_of(n_runs, monkeypatch):
    """A disk that is full when it has the states of so many runs."""
    original = sweep.run_then_reverse
    size = sum(parameter.numel() for parameter in small_task().model().parameters())

    def stored(first, *rest):
        if len(first[0]) > n_runs * size:
            raise OSError(errno.ENOSPC, "the states do not fit")
        return original(first, *rest)

    monkeypatch.setattr(sweep, "run_then_reverse", stored)


def test_a_disk_too_small_for_a_chunk_holds_its_halves(tmp_path, chunks, monkeypatch):
    weights = some_weights(3, 8)
    expected = differentiate(small_task(), weights)
    disk_of(1, monkeypatch)
    chunks.clear()
    found = differentiate(small_task(), weights, storage=Storage("disk", runs=tmp_path))
    assert chunks == [[0], [1], [2]]
    np.testing.assert_allclose(found.gradients, expected.gradients, rtol=1e-10, atol=1e-14)
    assert found.stored_bytes == expected.stored_bytes // 2
    with pytest.raises(OSError, match="the states do not fit"):  # nothing is kept, and nothing tried
        differentiate(small_task(), weights, storage=Storage("disk"))


def test_a_disk_too_small_for_a_chunk_is_asked_for_half_as_much_and_no_less(tmp_path, chunks, monkeypatch):
    monkeypatch.setattr("tasks.stacks.sizing.MODELS_AT_A_TIME", 4)
    disk_of(2, monkeypatch)
    differentiate(small_task(), some_weights(5, 8), storage=Storage("disk", runs=tmp_path))
    assert chunks == [[0, 1], [2, 3], [4]]


def test_a_disk_too_small_for_a_run_says_what_is_kept(tmp_path, monkeypatch):
    weights, storage = some_weights(3, 8), Storage("disk", runs=tmp_path)
    differentiate(small_task(), weights[:2], storage=storage)
    disk_of(0, monkeypatch)
    with pytest.raises(OSError, match="do not fit; 2 of the 3 runs are kept in ") as info:
        differentiate(small_task(), weights, storage=storage)
    assert info.value.errno == errno.ENOSPC


def test_a_folder_that_cannot_be_made_or_written_is_named(tmp_path, monkeypatch, chunks):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match=r"runs cannot be kept in .*file"):
        differentiate(small_task(), some_weights(1, 8), storage=Storage(runs=file))
    assert chunks == []

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match=r"runs cannot be kept in .*runs': No space left on device"):
        differentiate(small_task(), some_weights(1, 8), storage=Storage(runs=tmp_path / "runs"))
    assert list((tmp_path / "runs").iterdir()) == []


def test_whether_runs_can_be_kept_is_found_out_before_they_are_made(tmp_path, monkeypatch, chunks):
    def full(**_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match=r"runs cannot be kept in .*: No space left on device"):
        differentiate(small_task(), some_weights(1, 8), storage=Storage("memory", runs=tmp_path))
    assert chunks == []


def test_runs_of_a_function_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match=r"utility must be a name where runs are kept .* got a function"):
        differentiate(small_task(), np.ones((1, 8)), utility=lambda o, y: o.mean(), storage=Storage(runs=tmp_path))


def estimated(folder, meeting, values):
    meeting.wait(300)
    storage = Storage(memory_bytes=2_000_000, runs=folder)
    values.put(few_run_shapley(small_task(), 8, storage=storage).values)


def test_two_processes_share_a_folder(tmp_path, forking, chunks):
    meeting, values = forking.Barrier(2), forking.Queue()
    both = [forking.Process(target=estimated, args=(tmp_path, meeting, values)) for _ in range(2)]
    for process in both:
        process.start()
    answers = [values.get(timeout=300) for _ in both]
    for process in both:
        process.join()
    found = few_run_shapley(small_task(), 8, storage=Storage(runs=tmp_path))
    assert (chunks, kept_in(tmp_path)) == ([], 8)
    for answer in answers:
        np.testing.assert_allclose(answer, found.values, rtol=1e-10, atol=1e-14)
