"""Methods and what can be asked of them: values of groups, a budget of trainings, an early end."""

import functools

import numpy as np
import pytest
import torch

import tasks
from baselines import GroupedGame, Valuation
from inrun_bench import Method, benchmark, cli
from inrun_bench.experiments import EXPERIMENTS, estimators, groups, units_of
from inrun_bench.methods import METHODS, method_names, method_of, valued
from inrun_bench.methods.method import OPTIONS
from inrun_bench.runs.plan import PROFILES, Plan
from inrun_bench.runs.unit import REFERENCE

SEED = np.random.SeedSequence(0)
TASK = tasks.load("iris-logreg")  # 16 training samples
GROUPS = np.arange(16) % 5
BUDGET = 200
NOT_EFFICIENT = ("tmc", "tmc-10", "owen")  # truncated, and an integral by random points


@functools.lru_cache
def values_of_samples(name):
    return valued(name, TASK, SEED)


def taking(option):
    return [name for name in METHODS if option in method_of(name).options]


def test_budgets_and_early_ends_go_together_and_have_no_number_in_their_names():
    assert taking("budget") == taking("stop") == [name for name in METHODS if name in estimators.METHODS]
    assert set(method_names()) == set(METHODS) - set(taking("budget"))
    assert {name for profile in PROFILES.values() for name in profile.methods} <= set(method_names())


@pytest.mark.parametrize("name", [name for name in taking("groups") if name != "random"])
def test_values_of_groups_add_up_as_those_of_samples_do(name):
    """To what training on everybody is worth, or group by group where values of groups are sums."""
    of_groups, of_samples = valued(name, TASK, SEED, groups=GROUPS), values_of_samples(name)
    assert of_groups.values.shape == (5,)
    if method_of(name).family in ("permutations", "coalitions") or name.startswith("control-variate"):
        game = GroupedGame(TASK.trajectory_game(), GROUPS)
        nobody, everybody = game(np.array([np.zeros(5, bool), np.ones(5, bool)]))
        assert of_groups.values.sum() == pytest.approx(everybody - nobody, rel=0.1 if name in NOT_EFFICIENT else 1e-9)
    elif not name.startswith("coalition-gradients"):  # which are drawn anew: of samples, or of groups
        np.testing.assert_allclose(of_groups.values, np.bincount(GROUPS, of_samples.values), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", taking("groups"))
def test_groups_of_one_sample_each_are_the_samples(name):
    of_groups, of_samples = valued(name, TASK, SEED, groups=np.arange(16)), values_of_samples(name)
    np.testing.assert_allclose(of_groups.values, of_samples.values, rtol=1e-9)
    assert of_groups.evaluations == of_samples.evaluations


@pytest.mark.parametrize("name", taking("budget"))
def test_a_budget_is_spent_and_not_exceeded_and_a_rule_ends_it_early(name):
    assert BUDGET / 2 < valued(name, TASK, SEED, budget=BUDGET).evaluations <= BUDGET
    seen = []
    ended = valued(name, TASK, SEED, budget=BUDGET, stop=lambda estimate: bool(seen.append(estimate)) or True)
    assert ended.evaluations == seen[-1].evaluations < BUDGET
    assert len(seen) == 1
    by_rule_alone = valued(name, TASK, SEED, stop=lambda estimate: estimate.evaluations > BUDGET)
    assert BUDGET < by_rule_alone.evaluations < 3 * BUDGET


@pytest.mark.parametrize("name", taking("budget"))
def test_a_budget_that_is_too_small_is_refused_by_its_name(name):
    with pytest.raises(ValueError, match=r"budget must be at least .*, got 1\b"):
        valued(name, TASK, SEED, budget=1)


@pytest.mark.parametrize("option", OPTIONS)
def test_what_a_method_does_not_take_is_refused_and_who_does_is_named(option):
    given = {"groups": GROUPS, "budget": BUDGET, "stop": lambda _: True}
    with pytest.raises(ValueError, match=rf"method 'knn' takes no {option}; methods that do: .*permutation-antithetic"):
        valued("knn", TASK, SEED, **{option: given[option]})
    with pytest.raises(ValueError, match=rf"method 'KNN-Shapley' takes no {option}$"):
        METHODS["knn"](TASK, SEED, **{option: given[option]})


def test_groups_that_are_not_numbered_from_zero_are_refused():
    for name in taking("groups"):
        with pytest.raises(ValueError, match="groups"):
            valued(name, TASK, SEED, groups=GROUPS + 1)


def test_a_method_says_itself_what_it_takes_and_a_builtin_takes_nothing():
    assert Method(lambda task, seed, *, stop=None, other=3: None, "mine").options == {"stop"}
    assert Method(max, "mine").options == frozenset()


def test_values_of_as_many_groups_as_there_are_are_asked_for(monkeypatch):
    def careless(task, _seed, *, groups=None):
        return Valuation(np.zeros(task.n_train), stderr=None, evaluations=0, seconds=0.0, method="careless")

    monkeypatch.setitem(METHODS._all(), "careless", careless)
    with pytest.raises(ValueError, match=r"must return 5 finite values, got shape \(16,\).*value i is that of group i"):
        valued("careless", TASK, SEED, groups=GROUPS)


# --- in experiments ---


@pytest.mark.parametrize(
    ("name", "experiment", "task"), [("groups", groups, "digits-mlp"), ("estimators", estimators, "iris-logreg")]
)
def test_an_experiment_runs_its_own_methods_unless_some_are_named(name, experiment, task):
    plan = Plan("quick", tasks=(task,), methods=("knn", "permutation-antithetic", "few-run-4"), seeds=(0,))

    def methods(**named):
        return {unit.method for unit in units_of(name, experiment, plan, **named)} - {REFERENCE}

    assert methods(methods_named=False) == set(experiment.METHODS)
    with pytest.warns(UserWarning, match="leaves out knn"):
        assert methods() == {
            m for m in plan.methods if {"groups": "groups", "estimators": "stop"}[name] in method_of(m).options
        }


@pytest.mark.parametrize("name", ["groups", "estimators"])
def test_an_experiment_asked_for_with_methods_that_it_does_not_support_says_which_it_runs(name, tmp_path, capsys):
    arguments = ["run", name, "--method", "knn", "--task", "digits-mlp", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert f"experiment '{name}' has nothing to do on digits-mlp with knn; it needs methods that" in said
    assert "where none is named, its methods are " in said
    assert "permutation-antithetic" in said


def test_a_method_of_ones_own_is_judged_on_groups_and_over_budgets(tmp_path):
    def mine(task, seed, *, groups=None, budget=None, stop=None):
        return METHODS["owen"](task, seed, groups=groups, budget=budget, stop=stop)

    found = benchmark("digits-mlp", [mine, "random"], "groups", out=tmp_path / "groups", jobs=1)
    rows = found.rows("groups").query("metric == 'error'")
    assert set(rows["method"]) == {"mine", "random"}
    assert rows.groupby("method")["value"].mean()["mine"] < rows.groupby("method")["value"].mean()["random"]
    found = benchmark("iris-logreg", mine, "estimators", out=tmp_path / "estimators", jobs=1)
    assert set(found.rows("estimators")["method"]) == {"mine", REFERENCE}


def test_every_experiment_that_has_methods_of_its_own_says_what_it_needs():
    for experiment in EXPERIMENTS.values():
        if hasattr(experiment, "METHODS"):
            assert set(experiment.METHODS) <= set(METHODS)
            assert experiment.NEEDS.startswith("methods that")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"budget": 100.5}, TypeError, "budget must be"),
        ({"budget": True}, TypeError, "budget must be"),
        ({"budget": 0}, ValueError, "budget must be at least 1"),
        ({"stop": 3}, TypeError, "stop must be a rule"),
        ({"groups": np.r_[0:15]}, ValueError, r"groups must be integers of shape \[16\]"),
        ({"groups": np.r_[np.zeros(15, int), 2]}, ValueError, "groups must use all numbers from 0 on"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["coalition-gradients", "control-variate", "owen", "mine"])
def test_what_is_asked_of_a_method_is_checked_before_it_runs(monkeypatch, name, given, error, message):
    def mine(_task, _seed, *, groups=None, budget=None, stop=None):
        raise AssertionError("it was run")

    monkeypatch.setitem(METHODS._all(), "mine", mine)
    with pytest.raises(error, match=message):
        valued(name, TASK, SEED, **given)


@pytest.mark.parametrize("name", ["few-run-4", "mc-10", "random"])
def test_groups_may_be_a_list_or_a_tensor_and_a_seed_an_integer(name):
    expected = valued(name, TASK, np.random.SeedSequence(3), groups=GROUPS).values
    for given in (GROUPS.tolist(), torch.from_numpy(GROUPS), GROUPS.astype(np.uint8)):
        np.testing.assert_array_equal(METHODS[name](TASK, 3, groups=given).values, expected)
    assert valued("few-run-4-seeds-20", TASK, 3).values.shape == (16,)


def test_too_few_players_for_shifts_are_said_to_be_so():
    for name in ("mc-shifted-10", "permutation-shifts"):
        with pytest.raises(ValueError, match="shifted permutations need 5 players, samples or groups, and there are 4"):
            valued(name, TASK, SEED, groups=np.arange(16) % 4)


def test_a_wrapper_that_passes_nothing_on_takes_nothing():
    @functools.wraps(METHODS["owen"].run)
    def alone(task, seed):
        raise NotImplementedError

    def plain(task, seed, *, groups=None):
        raise NotImplementedError

    wrapped = functools.wraps(plain)(lambda *args, **kwargs: plain(*args, **kwargs))
    assert Method(alone, "alone").options == frozenset()
    assert Method(wrapped, "wrapped").options == {"groups"}


@pytest.mark.parametrize("shows", ["nothing", "something else"])
def test_an_estimator_that_returns_other_values_than_it_shows_is_told(tmp_path, shows):
    def mine(task, seed, *, budget=None, stop=None):
        found = METHODS["owen"](task, seed, budget=budget, stop=stop if shows == "something else" else None)
        return found.values / 2

    (message,) = set(benchmark("iris-logreg", mine, "estimators", out=tmp_path, jobs=1).failed.values())
    assert "method 'mine' must show its rule `stop` every estimate, the last of them that which it returns" in message


@pytest.mark.parametrize("values", [1j * np.arange(16), np.ma.masked_equal(np.arange(16), 3), ["1"] * 16])
def test_arrays_that_are_no_real_numbers_are_refused(tmp_path, values):
    found = benchmark("iris-logreg", {"mine": lambda _task, _seed: values}, "detection", out=tmp_path, jobs=1)
    assert any("what method 'mine' returns" in message for message in found.failed.values())


def test_methods_that_an_experiment_leaves_out_are_named():
    plan = Plan("quick", tasks=("iris-logreg",), methods=("knn", "owen"), seeds=(0,))
    with pytest.warns(UserWarning, match="experiment 'estimators' leaves out knn; it needs methods that take a budget"):
        units_of("estimators", estimators, plan)
