import math
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.methods import METHODS
from inrun_bench.report.cells import NOT_MEASURED, SHADES, cell_text, price_text, shade
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.leaderboard import Question, leaderboard, questions_of, ranks
from inrun_bench.report.overview import ANOTHER
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import REFERENCE, Unit, recipe_setting

OWN, CONVENTIONAL = "agreement with the run's own game", "agreement with conventional retraining"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def write(store, experiment, method, values, metric="spearman", task="some-task", **columns):
    """One unit a seed, with one row."""
    for seed, value in enumerate(values):
        row = {"metric": metric, "value": value, **columns}
        store.write(Unit(experiment, task, method, seed), [row])


def only(board, label, task="some-task"):
    (column,) = (c for c in board.columns if (c.question.label, c.task) == (label, task))
    return column


# --- ranks ---

means = st.dictionaries(st.text(max_size=3), st.floats(-1, 1) | st.just(math.nan), max_size=8)


@given(means, st.booleans())
def test_a_rank_is_one_more_than_the_number_of_better_means(means, larger):
    found = ranks(means, larger_is_better=larger)
    assert set(found) == {name for name, mean in means.items() if not math.isnan(mean)}
    for name, rank in found.items():
        better = [m for m in means.values() if (m > means[name] if larger else m < means[name])]
        assert rank == 1 + len(better)


@given(means)
def test_ranks_the_other_way_round_are_those_of_the_negated_means(means):
    assert ranks(means, larger_is_better=False) == ranks({name: -mean for name, mean in means.items()})


@given(st.integers(2, 40))
def test_shades_go_from_the_first_to_the_last_and_never_back(ranked):
    shades = [shade(rank, ranked) for rank in range(1, ranked + 1)]
    assert shades[0] == 1
    assert shades[-1] == SHADES
    assert shades == sorted(shades)


def test_one_method_alone_has_a_rank_and_no_shade(store):
    write(store, "agreement", "knn", [0.5])
    column = only(leaderboard(store, EXPERIMENTS), OWN)
    assert (cell_text(column, "knn").rank, cell_text(column, "knn").shade) == (1, None)


# --- columns and cells ---


def test_the_numbers_are_those_of_over_seeds(results):
    board = leaderboard(results, EXPERIMENTS)
    sources = {
        OWN: ("agreement", "spearman", {}),
        CONVENTIONAL: ("retraining", "spearman", {"judge": "conventional"}),
        "removal, in the run's own game": ("removal", "area_loss", {}),
        "removal, by conventional retraining": ("removal", "conventional_area_loss", {}),
        "wrong labels found": ("detection", "auroc", {}),
    }
    assert set(sources) <= {column.question.label for column in board.columns}
    for label, (experiment, metric, where) in sources.items():
        rows = results.read_all(experiment)
        for name, value in where.items():
            rows = rows[rows[name] == value]
        table = over_seeds(rows[rows["metric"] == metric])
        for column in (c for c in board.columns if c.question.label == label):
            judged = {m for task, m, _ in table.index if task == column.task} - {REFERENCE, ANOTHER}
            assert set(column.cells) == judged
            for method, cell in column.cells.items():
                assert cell.interval == tuple(table.loc[(column.task, method, metric), ["mean", "low", "high", "n"]])


def test_every_question_of_an_experiment_with_rows_has_a_column(results):
    board = leaderboard(results, EXPERIMENTS)
    asked = {q.label for name in results.experiments() for q in questions_of(EXPERIMENTS[name])}
    assert {column.question.label for column in board.columns} == asked


def test_the_reference_bounds_a_column_and_is_ranked_in_none(results):
    board = leaderboard(results, EXPERIMENTS)
    assert not {REFERENCE, ANOTHER} & {*board.methods, *(m for column in board.columns for m in column.cells)}
    rows = results.read_all("agreement").query("metric == 'spearman_ceiling'")
    for task, own in rows.groupby("task"):
        table = over_seeds(own)
        assert only(board, OWN, task).ceiling == table.loc[(task, REFERENCE, "spearman_ceiling"), "mean"]
        assert only(board, OWN, task).another_seed is not None


def test_two_experiments_that_ask_the_same_share_a_column_and_the_first_of_them_counts(store):
    write(store, "agreement", "knn", [0.5])
    write(store, "retraining", "knn", [0.9], judge="own")
    write(store, "retraining", "mc-10", [0.7], judge="own")
    column = only(leaderboard(store, EXPERIMENTS), OWN)
    assert {method: cell.interval.mean for method, cell in column.cells.items()} == {"knn": 0.5, "mc-10": 0.7}
    assert {method: cell.rank for method, cell in column.cells.items()} == {"knn": 2, "mc-10": 1}


def test_a_method_has_a_row_wherever_it_was_measured_and_its_missing_cells_say_so(store):
    write(store, "agreement", "knn", [0.5, 0.6])
    write(store, "detection", "acme", [0.9, 0.8], metric="auroc", task="another-task")
    board = leaderboard(store, EXPERIMENTS)
    assert set(board.methods) == {"knn", "acme"}
    assert cell_text(only(board, OWN), "acme").note == NOT_MEASURED
    assert cell_text(only(board, "wrong labels found", "another-task"), "knn").note == NOT_MEASURED


def test_a_cell_whose_units_failed_says_so(store):
    write(store, "agreement", "knn", [0.5])
    failed = {("agreement", "some-task", "acme"), ("detection", "some-task", "knn")}
    board = leaderboard(store, EXPERIMENTS, failed)
    assert "acme" in board.methods
    assert cell_text(only(board, OWN), "acme").note == "failed"
    assert cell_text(only(board, OWN), "knn").note == "1 seed"


def test_rows_of_several_definitions_have_no_mean_no_rank_and_no_price(store):
    for n, method in ((2, "knn"), (1, "mc-10")):
        for reference in "ab"[:n]:
            unit = Unit("cost", "some-task", method, 0, {"reference": reference})
            store.write(unit, [{"metric": "spearman", "value": 0.5, "seconds": 1.0}])
    board = leaderboard(store, EXPERIMENTS)
    column = only(board, "agreement with the stored reference")
    assert column.cells["knn"].definitions == 2
    assert column.cells["knn"].rank is None
    text = cell_text(column, "knn")
    assert (text.number, text.mean, text.note) == (None, "", "2 definitions")
    assert cell_text(column, "mc-10").rank == 1
    assert set(board.prices["some-task", ""]) == {"mc-10"}


def test_one_seed_has_no_interval_and_fewer_seeds_than_others_are_counted(store):
    write(store, "agreement", "knn", [0.5, 0.6, 0.7])
    write(store, "agreement", "mc-10", [0.5, 0.6])
    write(store, "agreement", "acme", [0.5])
    column = only(leaderboard(store, EXPERIMENTS), OWN)
    told = {method: cell_text(column, method) for method in column.cells}
    assert [told[m].note for m in ("knn", "mc-10", "acme")] == ["", "2 seeds", "1 seed"]
    assert told["acme"].interval == ""
    assert told["mc-10"].interval


def test_a_mean_that_is_no_number_has_no_rank(store):
    write(store, "agreement", "knn", [math.nan])
    write(store, "agreement", "mc-10", [0.1])
    column = only(leaderboard(store, EXPERIMENTS), OWN)
    assert cell_text(column, "knn").number is None
    assert (column.cells["mc-10"].rank, column.ranked) == (1, 1)


def test_recipes_are_columns_of_their_own_and_the_default_one_needs_no_name(store):
    for recipe, value in (("adamw", 0.1), ("sgd", 0.2)):
        unit = Unit("cost", "some-task", "knn", 0, recipe_setting(recipe))
        store.write(unit, [{"metric": "spearman", "value": value, "seconds": 1.0}])
    board = leaderboard(store, EXPERIMENTS)
    assert {c.place: round(c.cells["knn"].interval.mean, 9) for c in board.columns} == {"": 0.2, "adamw": 0.1}
    assert [column.place for column in board.columns] == ["", "adamw"]
    assert set(board.prices) == {("some-task", ""), ("some-task", "adamw")}


def test_scale_has_a_column_at_the_largest_size_and_at_the_longest_training(store):
    for n, epochs in ((50, 5), (100, 5), (100, 25), (50, 100)):
        row = {"metric": "lds", "value": 0.5, "judge": "conventional", "steps": n * epochs // 20}
        store.write(Unit("scale", "some-task", "knn", 0, {"n": n, "epochs": epochs}), [row])
    board = leaderboard(store, EXPERIMENTS)
    assert [column.place for column in board.columns] == ["50 samples, 250 steps", "100 samples, 25 steps"]


def test_prices_are_medians_over_seeds_of_what_values_cost(store):
    write(store, "agreement", "knn", [0.5, 0.6, 0.7])
    for seed, seconds in enumerate((1.0, 2.0, 300.0)):
        cost = {"metric": "cost", "value": 0.0, "seconds": seconds, "evaluations": int(10 * seconds)}
        store.write(Unit("values", "some-task", "knn", seed), [cost])
    board = leaderboard(store, EXPERIMENTS)
    told = price_text(board, ("some-task", ""), "knn")
    assert (told.number, told.mean, told.note) == (2.0, "2 s", "20 trainings")
    assert price_text(board, ("some-task", ""), "acme").note == NOT_MEASURED


def test_an_experiment_of_another_package_has_columns_too(store):
    question = Question("distance", "error", "error", larger_is_better=False)
    write(store, "acme", "knn", [0.5], metric="error")
    write(store, "acme", "mc-10", [0.1], metric="error")
    board = leaderboard(store, {"acme": SimpleNamespace(QUESTIONS=(question,)), "none": SimpleNamespace()})
    assert {method: cell.rank for method, cell in board.columns[0].cells.items()} == {"knn": 2, "mc-10": 1}


def test_a_question_asks_nothing_of_rows_that_lack_its_columns():
    rows = pd.DataFrame({"task": ["t"], "method": ["m"], "seed": [0], "metric": ["spearman"], "value": [0.5]})
    assert Question("q", "spearman", "s", where={"judge": "own"}).of(rows).empty
    assert list(Question("q", "spearman", "s", by={"recipe": "{}"}).of(rows)["place"]) == [""]


def test_an_empty_folder_has_no_columns(store):
    board = leaderboard(store, EXPERIMENTS)
    assert (board.methods, board.columns, board.prices) == ((), (), {})


def test_methods_stand_in_the_house_s_order(store):
    for method in ("random", "knn", "inrun-first", "zzz"):
        write(store, "agreement", method, [0.5])
    assert leaderboard(store, EXPERIMENTS).methods == ("inrun-first", "knn", "random", "zzz")
    assert "zzz" not in METHODS
