"""Reference values: blocks add up, reliability decides when they are enough, and what was altered is found out."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import tasks
from baselines import exact_shapley, permutation_shapley
from inrun_bench.adjoint import relaxed_game
from inrun_bench.adjoint.sweep import TRAININGS_A_RUN
from inrun_bench.cli import main
from inrun_bench.experiments import EXPERIMENTS, cost, estimators
from inrun_bench.methods import METHODS
from inrun_bench.reference import blocks as reference
from inrun_bench.reference import estimate as reference_estimate
from inrun_bench.reference import make as reference_making
from inrun_bench.reference import verify as reference_proof
from inrun_bench.reference.make import extend, thin
from inrun_bench.reference.verify import verify
from inrun_bench.report import write_summary
from inrun_bench.report.figures import draw_figures
from inrun_bench.runs.plan import Plan
from inrun_bench.runs.runner import Outcome
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Unit
from tests.inrun_bench.tiny import TASK, files, run

N = 10
FEW = dataclasses.replace(tasks.CATALOG[TASK], n_train=N)
MORE = dataclasses.replace(tasks.CATALOG[TASK], n_train=30)


@pytest.fixture
def small(monkeypatch):
    """The task with ten samples, which are enumerated."""
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, FEW)


@pytest.fixture
def medium(monkeypatch):
    """The task with thirty samples, in blocks of two draws."""
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, MORE)
    monkeypatch.setattr(reference, "SHIFTS", 3)
    monkeypatch.setattr(reference, "DRAWS", 2)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "reference")


@pytest.fixture(autouse=True)
def nothing_published(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "PUBLISHED", Store(tmp_path / "published").root)


def test_few_samples_are_enumerated(small, store):
    found = extend(store, TASK, jobs=1)
    assert found.exact
    assert found.blocks == 1
    for utility in ("loss", "accuracy"):
        exact = exact_shapley(tasks.load(TASK).trajectory_game(utility))
        np.testing.assert_allclose(found.valuations[utility].values, exact.values, atol=1e-12)
        assert found.valuations[utility].evaluations == 2**N
        assert not found.valuations[utility].stderr.any()


def test_blocks_are_independent_permutations_and_the_reference_is_their_mean(medium, store):
    units = [reference.block(TASK, 0, number) for number in range(3)]
    run(units, store)
    found = reference.read(store, TASK)
    game = tasks.load(TASK).trajectory_game("accuracy")
    parts = [
        permutation_shapley(game, n_permutations=12, antithetic=True, shifts=3, rng=unit.random_seed) for unit in units
    ]
    accuracy = found.valuations["accuracy"]
    np.testing.assert_allclose(accuracy.values, np.mean([p.values for p in parts], axis=0), atol=1e-12)
    np.testing.assert_allclose(accuracy.halves, np.mean([p.halves for p in parts], axis=0), atol=1e-12)
    variance = np.sum([p.stderr**2 for p in parts], axis=0) / 9  # of the mean of three independent estimates
    np.testing.assert_allclose(accuracy.stderr, np.sqrt(variance), atol=1e-12)
    assert accuracy.evaluations == sum(p.evaluations for p in parts)
    assert found.reliability()["accuracy"] == pytest.approx(spearmanr(*accuracy.halves).statistic)
    assert not found.exact
    assert len({v.values.tobytes() for v in parts}) == 3


def test_blocks_are_added_until_the_halves_agree(medium, store):
    first = extend(store, TASK, reliability=0.01, jobs=1)
    assert min(first.reliability().values()) >= 0.01
    again = extend(store, TASK, reliability=0.01, jobs=1)
    assert again.blocks == first.blocks
    more = extend(store, TASK, reliability=1 - 1e-12, seconds=1, jobs=1)
    assert more.blocks > first.blocks


def test_a_reference_is_as_reliable_as_its_least_reliable_utility(monkeypatch, store):
    """Blocks are added until all utilities have reached the reliability, not one of them."""
    made = []
    of_blocks = [{"loss": 0.999, "accuracy": level} for level in (0.2, 0.6, 0.9, 0.95)]
    monkeypatch.setattr(reference_making, "blocks", lambda *_: made)
    monkeypatch.setattr(
        reference_making,
        "read",
        lambda *_: SimpleNamespace(exact=False, blocks=len(made), reliability=lambda: of_blocks[len(made) - 1]),
    )
    monkeypatch.setattr(reference_making, "run", lambda units, *_, **__: made.extend(units) or Outcome(1, 0, ()))
    assert extend(store, TASK, reliability=0.85, jobs=1).blocks == 3


def test_no_block_is_started_when_the_time_is_up(medium, store):
    assert extend(store, TASK, reliability=1 - 1e-12, seconds=0, jobs=1).blocks == 1


def test_a_block_that_fails_says_why_and_those_before_it_are_kept(medium, store, monkeypatch):
    extend(store, TASK, seconds=0, jobs=1)
    monkeypatch.setattr(reference_estimate, "estimate", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match=f"{TASK}.*block=1.*division by zero"):
        extend(store, TASK, reliability=1 - 1e-12, jobs=1)
    monkeypatch.undo()
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, MORE)


def test_a_reference_that_is_not_there(store):
    with pytest.raises(ValueError, match=r"no reference for task 'digits-mlp', seed 3.*inrun-bench reference --task"):
        reference.read(store, "digits-mlp", 3)
    with pytest.raises(ValueError, match=r"recipe 'adamw', in .*--task digits-mlp --seed 0 --recipe adamw'"):
        reference.read(store, "digits-mlp", recipe="adamw")


# --- recipes ---


def test_a_block_of_the_default_recipe_is_the_one_that_was_made_before_there_were_others():
    plain = {"block": 3, "shifts": reference.SHIFTS, "draws": reference.DRAWS}
    assert reference.block(TASK, 0, 3, "sgd").key == Unit("reference", TASK, "reference", 0, plain).key
    other = reference.block(TASK, 0, 3, "adamw")
    assert other.key == Unit("reference", TASK, "reference", 0, {**plain, "recipe": "adamw"}).key
    assert (reference.block(TASK, 0, 3).recipe, other.recipe) == ("sgd", "adamw")


def test_references_of_several_recipes_stand_side_by_side(small, store):
    assert reference.recipes(store, TASK) == []
    for recipe in ("adamw", "sgd"):
        assert not reference.exists(store, TASK, recipe=recipe)
        extend(store, TASK, recipe=recipe, jobs=1)
    assert reference.recipes(store, TASK) == ["sgd", "adamw"]
    for recipe in ("sgd", "adamw"):
        game = tasks.load(TASK, recipe=recipe).trajectory_game()
        found = reference.read(store, TASK, recipe=recipe)
        np.testing.assert_allclose(found.valuations["loss"].values, exact_shapley(game).values, atol=1e-12)
        assert (found.recipe, found.identity, found.blocks) == (recipe, game.identity(), 1)
        assert verify(store, TASK, recipe=recipe, coalitions=5, rng=0).same_game


def test_a_reference_is_not_proved_by_another_recipes_trainings(small, store, monkeypatch):
    extend(store, TASK, recipe="adamw", jobs=1)
    recipes = {"sgd": FEW.recipes["sgd"], "adamw": FEW.recipes["sgd"]}
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, dataclasses.replace(FEW, recipes=recipes))
    proof = verify(store, TASK, recipe="adamw", coalitions=5, rng=0)
    assert not proof.same_game
    assert not proof.holds


@pytest.mark.parametrize("act", [extend, verify])
def test_an_unknown_recipe_is_refused_with_the_nearest_known_one(small, store, act):
    with pytest.raises(ValueError, match=r"'adamm'; did you mean 'adamw'\? \(known: sgd, momentum, adamw"):
        act(store, TASK, recipe="adamm")


# --- verification ---


def test_a_reference_is_proved(medium, store):
    extend(store, TASK, seconds=0, jobs=1)
    proof = verify(store, TASK, coalitions=20, rng=0)
    assert proof.holds
    assert proof.same_game
    assert proof.retrained == 20
    assert proof.replay_error == 0


def test_an_enumerated_reference_is_proved(small, store):
    extend(store, TASK, jobs=1)
    assert verify(store, TASK, coalitions=50, rng=0).holds


def rewrite(store, change):
    unit = reference.block(TASK, 0, 0)
    rows = store.read(unit)
    change(rows)
    kept = rows.drop(columns=["experiment", "task", "method", "seed", "block", "shifts", "draws", "status", "message"])
    records = [{k: v for k, v in row.items() if not (np.isscalar(v) and v != v)} for row in kept.to_dict("records")]
    store.write(unit, records, store.provenance(unit))


def test_blocks_without_utilities_are_made_anew_and_hold(medium, store):
    run([reference.block(TASK, 0, number) for number in range(4)], store)
    whole = reference.read(store, TASK)
    assert thin(store, 2) == 2
    assert thin(store, 2) == 0
    store.pack()
    thinned = reference.read(store, TASK)
    for utility, valuation in whole.valuations.items():
        np.testing.assert_array_equal(thinned.valuations[utility].values, valuation.values)
        assert thinned.valuations[utility].evaluations == valuation.evaluations
        assert thinned.valuations[utility].seconds == valuation.seconds
    for remake, blocks in ((None, 1), (0, 0), (2, 2), (9, 2)):
        proof = verify(store, TASK, coalitions=20, remake=remake, rng=0)
        assert (proof.blocks, proof.replayed, proof.retrained, len(proof.remade)) == (4, 2, 20, blocks)
        assert set(proof.remade) <= {2, 3}
        assert proof.holds


def test_references_that_differ_in_any_utility_are_told_apart(small, store):
    found = extend(store, TASK, jobs=1)
    digests = {found.digest()}
    for utility, valuation in found.valuations.items():
        values = valuation.values + (np.arange(N) == 3)
        other = {**found.valuations, utility: dataclasses.replace(valuation, values=values)}
        digests.add(dataclasses.replace(found, valuations=other).digest())
    assert len(digests) == 3


def test_a_proof_tells_the_largest_error_of_what_is_trained_again(medium, store, monkeypatch):
    extend(store, TASK, seconds=0, jobs=1)
    game = tasks.load(TASK).trajectory_game()
    coalitions = np.arange(30) < np.arange(1, 6)[:, None]
    stored = game.measure(coalitions)
    stored[3] += [stored[3, 0], 0.25]
    monkeypatch.setattr(reference_proof, "_replay", lambda *_: (0.0, coalitions, stored))
    assert verify(store, TASK).errors == pytest.approx({"loss": 0.5, "accuracy": 0.25})  # of a loss twice as large


def test_a_proof_tells_the_largest_error_of_values_in_units_of_their_spread(medium, store):
    run([reference.block(TASK, 0, number) for number in range(2)], store)

    def change(rows):
        of_loss = (rows["metric"] == "value") & (rows["utility"] == "loss")
        rows.loc[of_loss & (rows["sample"] == 4), "value"] += 1.0
        changed.append(rows.loc[of_loss, "value"])

    changed = []
    rewrite(store, change)
    expected = 1 / changed[0].std(ddof=0)
    assert verify(store, TASK, coalitions=1, rng=0).replay_error == pytest.approx(expected)
    for number in range(2):
        store.drop_column(reference.block(TASK, 0, number), "utilities")
    assert verify(store, TASK, remake=2, rng=0).remade_errors["loss"] == pytest.approx(expected)


def test_values_that_are_no_numbers_prove_nothing(medium, store):
    extend(store, TASK, seconds=0, jobs=1)

    def change(rows):
        rows.loc[(rows["metric"] == "value") & (rows["sample"] == 4), "value"] = -np.inf

    rewrite(store, change)
    with np.errstate(invalid="ignore"):
        proof = verify(store, TASK, coalitions=1, rng=0)
        store.drop_column(reference.block(TASK, 0, 0), "utilities")
        remade = verify(store, TASK, remake=1, rng=0)
    assert np.isnan([proof.replay_error, *remade.remade_errors.values()]).all()
    assert not proof.holds
    assert not remade.holds


def test_altered_values_of_a_block_without_utilities_are_found_out(medium, store):
    extend(store, TASK, seconds=0, jobs=1)
    store.drop_column(reference.block(TASK, 0, 0), "utilities")
    assert verify(store, TASK, rng=0).holds

    def change(rows):
        spread = rows.loc[rows["metric"] == "value", "value"].std()
        rows.loc[(rows["metric"] == "value") & (rows["sample"] == 4), "value"] += spread

    rewrite(store, change)
    proof = verify(store, TASK, rng=0)
    assert proof.remade_errors["loss"] > 0.1
    assert not proof.holds
    assert verify(store, TASK, remake=0, rng=0).holds  # nobody looked


def test_enumerated_utilities_are_kept_of_seed_0_alone_and_the_others_proved_anew(small, store):
    whole = {seed: extend(store, TASK, seed=seed, jobs=1).valuations["loss"].values for seed in (0, 1)}
    assert thin(store, 0) == 1
    for seed, retrained in ((0, 20), (1, 0)):
        np.testing.assert_array_equal(reference.read(store, TASK, seed).valuations["loss"].values, whole[seed])
        proof = verify(store, TASK, seed, coalitions=20, rng=0)
        assert (proof.retrained, len(proof.remade)) == (retrained, seed)
        assert proof.holds


def test_blocks_of_two_contents_of_a_task_are_not_mixed(medium, store, monkeypatch):
    run([reference.block(TASK, 0, 0)], store)
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, dataclasses.replace(MORE, scaling="global"))
    run([reference.block(TASK, 0, 1)], store)
    with pytest.raises(ValueError, match=r"blocks 0 and 1 of the reference for .* are of two contents of the task"):
        reference.read(store, TASK)


def test_blocks_of_ones_own_go_on_after_the_published_ones(medium, store, tmp_path):
    published = Store(reference.PUBLISHED)
    run([reference.block(TASK, 0, number) for number in range(2)], published)
    before = files(published.root)
    extended = extend(store, TASK, reliability=1 - 1e-12, seconds=0, jobs=1, earlier=[published])
    assert extended.blocks == 2  # the time is up
    run([reference.block(TASK, 0, 2)], store)
    assert reference.read(reference.references(store.root), TASK).blocks == 3
    assert reference.read(reference.references(), TASK).blocks == 2
    assert files(published.root) == before


def test_a_reference_comes_back_from_the_rows_that_travel(medium, store):
    run([reference.block(TASK, 0, number) for number in range(2)], store)
    whole = reference.read(store, TASK)
    unit = reference.as_unit(whole)
    back = reference.of_rows(TASK, 0, "sgd", [pd.DataFrame(unit.given)])
    assert (back.digest(), back.identity, back.reliability()) == (whole.digest(), whole.identity, whole.reliability())
    for utility, valuation in whole.valuations.items():
        np.testing.assert_array_equal(back.valuations[utility].stderr, valuation.stderr)
        assert back.valuations[utility].evaluations == valuation.evaluations


def test_altered_values_are_found_out(medium, store):
    extend(store, TASK, seconds=0, jobs=1)

    def change(rows):
        rows.loc[(rows["metric"] == "value") & (rows["sample"] == 4), "value"] += 1e-6

    rewrite(store, change)
    proof = verify(store, TASK, coalitions=5, rng=0)
    assert proof.replay_error > 1e-9
    assert not proof.holds


def test_altered_utilities_are_found_out_by_retraining(medium, store, monkeypatch):
    extend(store, TASK, seconds=0, jobs=1)

    def change(rows):
        place = rows.index[(rows["metric"] == "utilities") & (rows["utility"] == "loss")][0]
        rows.at[place, "utilities"] = rows.at[place, "utilities"] * 1.01  # values would have to be altered with them
        values = rows["metric"].eq("value") & rows["utility"].eq("loss")
        rows.loc[values, "value"] *= 1.01

    rewrite(store, change)
    proof = verify(store, TASK, coalitions=5, rng=0)
    assert proof.replay_error < 1e-9
    assert proof.errors["loss"] == pytest.approx(0.01, rel=0.05)
    assert not proof.holds


def test_what_a_reference_is_of_is_noted_anew_where_it_holds_and_nowhere_else(medium, store, monkeypatch, capsys):
    extend(store, TASK, seconds=0, jobs=1)
    unit = reference.block(TASK, 0, 0)
    before, made = store.provenance(unit), store.read(unit)
    arguments = [
        "verify",
        "--task",
        TASK,
        "--coalitions",
        "5",
        "--remake",
        "0",
        "--reference",
        str(store.root),
        "--note",
    ]
    outdated = dataclasses.replace(before, fingerprint={**before.fingerprint, "task": "by an older law"})
    store.note(unit, outdated, identity="by an older law")
    with monkeypatch.context() as patch:
        patch.setattr(reference_proof, "RETRAINED", -1.0)  # nothing holds
        assert main(arguments) == 1
    assert store.provenance(unit) == outdated
    assert "noted" not in capsys.readouterr().out
    assert main(arguments) == 0
    assert "noted in 1 blocks that they are of the task as it is now" in capsys.readouterr().out
    assert store.provenance(unit) == before
    pd.testing.assert_frame_equal(store.read(unit), made)
    assert main([*arguments[:-3], "--note"]) == 2


def test_other_data_are_told_from_the_same(medium, store, monkeypatch):
    extend(store, TASK, seconds=0, jobs=1)
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, dataclasses.replace(MORE, scaling="global"))
    proof = verify(store, TASK, coalitions=5, rng=0)
    assert not proof.same_game
    assert not proof.holds


# --- the command line ---


def test_the_commands_make_and_prove_references(medium, store, capsys):
    place, chosen = ["--out", str(store.root)], ["--task", TASK]
    assert main(["reference", *place, *chosen, "--reliability", "0.01", "--minutes", "1", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert f"{TASK}: loss 0." in out
    assert " accuracy |" in (store.root / "summary.md").read_text()
    assert main(["verify", "--reference", str(store.root), *chosen, "--coalitions", "5"]) == 0
    assert f"{TASK}: holds" in capsys.readouterr().out


def test_the_commands_take_a_recipe(small, store, capsys):
    place = ["--out", str(store.root), "--task", TASK]
    for recipe in ("sgd", "adamw"):
        assert main(["reference", *place, "--recipe", recipe, "--jobs", "1"]) == 0
    table = (store.root / "summary.md").read_text()
    assert [f"{TASK} | {recipe:>8} |" in table for recipe in ("sgd", "adamw")] == [True, True]
    capsys.readouterr()
    assert main(["verify", "--reference", str(store.root), "--coalitions", "3"]) == 0
    both = [line.partition(";")[0] for line in capsys.readouterr().out.splitlines()]
    assert both == [f"{TASK}: holds", f"{TASK}, adamw: holds"]
    assert (
        main(["verify", "--reference", str(store.root), "--task", TASK, "--recipe", "adamw", "--coalitions", "3"]) == 0
    )
    assert capsys.readouterr().out.startswith(f"{TASK}, adamw: holds")


def test_what_nobody_has_looked_at_is_not_proved_and_not_noted(small, store, capsys):
    extend(store, TASK, seed=1, jobs=1)
    assert thin(store, 1) == 1
    there = ["verify", "--reference", str(store.root), "--task", TASK, "--seed", "1"]
    before = store.provenance(reference.block(TASK, 1, 0))
    assert main([*there, "--remake", "0", "--note"]) == 1
    assert "seed 1: NOT PROVED; values of 0 of 1 blocks" in (told := capsys.readouterr().out)
    assert "--remake 1" in told
    assert store.provenance(reference.block(TASK, 1, 0)) == before
    assert main([*there, "--remake", "1"]) == 0
    assert "seed 1: holds" in capsys.readouterr().out


def test_the_commands_take_several_seeds(small, store, capsys):
    chosen = ["--task", TASK, "--seed", "0", "2"]
    assert main(["reference", "--out", str(store.root), *chosen, "--jobs", "1"]) == 0
    made = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if ": exact" in line]
    assert main(["verify", "--reference", str(store.root), *chosen, "--coalitions", "3"]) == 0
    proved = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert made == proved == [TASK, f"{TASK}, seed 2"]
    assert reference.read(store, TASK, 2).identity == tasks.load(TASK, 2).trajectory_game().identity()
    assert main(["verify", "--reference", str(store.root), "--task", TASK, "--seed", "0", "1"]) == 2
    assert f"no reference for task '{TASK}', seed 1" in capsys.readouterr().err


def test_without_tasks_a_recipes_references_are_made_of_those_that_have_it(monkeypatch, store, capsys):
    own = dataclasses.replace(FEW, recipes={**FEW.recipes, "acme": FEW.recipes["sgd"]})
    monkeypatch.setitem(tasks.CATALOG._all(), TASK, own)
    assert main(["reference", "--out", str(store.root), "--recipe", "acme", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"{TASK}, acme: exact")
    assert len(list((store.root / "rows").iterdir())) == 1


def test_verify_looks_at_whatever_is_there_and_fails_where_one_does_not_hold(medium, store, capsys):
    extend(store, TASK, seconds=0, jobs=1)
    assert main(["verify", "--reference", str(store.root), "--coalitions", "3"]) == 0

    def change(rows):
        rows.loc[rows["metric"] == "value", "value"] *= 2

    rewrite(store, change)
    assert main(["verify", "--reference", str(store.root), "--coalitions", "3"]) == 1
    assert "DOES NOT HOLD" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reference", "--reliability", "1.5"], "--reliability must lie between 0 and 1, got 1.5"),
        (["reference", "--task", "digit-mlp"], "did you mean 'digits-mlp'"),
        (["reference", "--jobs", "0"], "--jobs must be a positive number"),
        (["verify", "--remake", "-1"], "--remake must not be negative, got -1"),
        (["verify", "--coalitions", "0"], "--coalitions must be at least 1, got 0"),
        (["verify", "--task", TASK, "--seed", "7"], "no reference for task"),
        (["verify", "--seed", "0", "-2"], "--seed must not be negative, got -2"),
        (["reference", "--seed", "-1"], "--seed must not be negative, got -1"),
        (["verify", "--recipe", "adamw"], "recipe 'adamw', in"),
        (["reference", "--recipe", "adamm"], "unknown recipe 'adamm'; did you mean 'adamw'"),
        (["verify", "--recipe", "adamm"], "unknown recipe 'adamm'; did you mean 'adamw'"),
    ],
)
def test_bad_input_of_the_commands(store, capsys, arguments, message):
    assert main([*arguments, "--reference", str(store.root)]) == 2
    assert message in capsys.readouterr().err


def test_a_replay_answers_in_order_and_no_more_than_it_has():
    replay = reference_estimate.Replay(3, np.arange(4.0), frozenset({2}))
    coalitions = np.eye(3, dtype=bool)
    assert replay(coalitions).tolist() == [0, 1, 2]
    assert replay.seen[2].tolist() == [False, False, True]
    with pytest.raises(ValueError, match="only 4 utilities are stored"):
        replay(coalitions)


# --- the estimators' experiment, which stands on references ---


@pytest.fixture
def with_reference(small, store, monkeypatch):
    monkeypatch.setattr(reference, "PUBLISHED", store.root)
    return extend(store, TASK, jobs=1).valuations["loss"]


def test_every_estimator_is_followed_to_its_budget(with_reference, tmp_path):
    plan = Plan("tiny", tasks=(TASK,), methods=estimators.METHODS, seeds=(0,))
    found = Store(tmp_path / "runs")
    assert run(estimators.units(plan), found).failed == ()
    rows = found.read_all("estimators").query("metric == 'error'")
    assert set(rows["method"]) == {*estimators.METHODS, "reference"}
    assert rows.query("method == 'reference'")["value"].tolist() == [0.0]
    for _, own in rows.query("method != 'reference'").groupby("method"):
        assert own["evaluations"].is_monotonic_increasing
        assert own["evaluations"].max() <= 2 + estimators.KNOBS["tiny"].budgets["default"] * N
        assert own["look"].tolist() == list(range(len(own)))


def test_the_error_is_that_of_the_values_in_units_of_their_spread(with_reference, tmp_path, monkeypatch):
    def mine(task, rng, *, budget, stop):
        assert budget > 2
        return permutation_shapley(task.trajectory_game(), n_permutations=40, rng=rng, stop=stop)

    monkeypatch.setitem(METHODS._all(), "mine", mine)
    plan = Plan("tiny", tasks=(TASK,), methods=("mine", "knn"), seeds=(0,))
    (unit,) = (u for u in estimators.units(plan) if u.method != "reference")
    assert unit.method == "mine"
    last = {row["metric"]: row for row in estimators.measure(unit, {unit.needs[0]: pd.DataFrame(unit.needs[0].given)})}
    found = permutation_shapley(tasks.load(TASK).trajectory_game(), n_permutations=40, rng=unit.random_seed)
    truth = with_reference.values
    assert last["error"]["value"] == pytest.approx(np.sqrt(np.mean((found.values - truth) ** 2)) / truth.std())
    assert last["stderr"]["value"] == pytest.approx(np.sqrt(np.mean(found.stderr**2)) / truth.std())
    for row in last.values():
        assert row["evaluations"] == 2 + 40 * (N - 1)


@pytest.mark.parametrize("name", estimators.METHODS)
def test_evaluations_are_trainings_and_a_differentiated_run_counts_as_what_it_takes(small, monkeypatch, name):
    runs = {"plain": 0, "differentiated": 0}

    def counted(kind, function, which):
        def call(*arguments, **options):
            runs[kind] += len(arguments[which])
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(tasks.TrajectoryGame, "__call__", counted("plain", tasks.TrajectoryGame.__call__, 1))
    monkeypatch.setattr(relaxed_game, "differentiate", counted("differentiated", relaxed_game.differentiate, 1))
    seen = []
    valuation = METHODS[name](
        tasks.load(TASK), np.random.SeedSequence(0), budget=400, stop=lambda e: bool(seen.append(e))
    )
    assert (
        seen[-1].evaluations == valuation.evaluations == round(runs["plain"] + TRAININGS_A_RUN * runs["differentiated"])
    )
    assert 300 < seen[-1].evaluations <= 400
    np.testing.assert_array_equal(seen[-1].values, valuation.values)
    np.testing.assert_array_equal(seen[-1].stderr, valuation.stderr)


# --- cost: methods against the stored reference ---


def test_methods_are_compared_with_the_stored_reference(with_reference, tmp_path):
    plan = Plan("tiny", tasks=(TASK,), methods=("few-run-4", "knn"), seeds=(0,))
    found = Store(tmp_path / "runs")
    assert run(cost.units(plan), found).failed == ()
    rows = found.read_all("cost").query("metric == 'spearman'").set_index("method")
    values = METHODS["few-run-4"](tasks.load(TASK), None).values
    assert rows.loc["few-run-4", "value"] == pytest.approx(spearmanr(values, with_reference.values).statistic)
    assert rows.loc["reference", "value"] == 1.0
    assert (rows["trainings"] > 0).all()
    draw_figures(found, ["cost"], EXPERIMENTS)
    assert "| 4 differentiated runs" in write_summary(found, EXPERIMENTS)


def test_each_seed_is_judged_by_its_own_reference_and_those_without_one_are_not(with_reference, store, tmp_path):
    truth = {0: with_reference.values, 3: extend(store, TASK, seed=3, jobs=1).valuations["loss"].values}
    plan = Plan("tiny", tasks=(TASK,), methods=("few-run-4",), seeds=(0, 1, 3))
    found = Store(tmp_path / "runs")
    assert run(cost.units(plan), found).failed == ()
    rows = found.read_all("cost").query("metric == 'spearman' and method == 'few-run-4'").set_index("seed")["value"]
    assert set(rows.index) == {0, 3}
    for seed, values in truth.items():
        own = METHODS["few-run-4"](tasks.load(TASK, seed), None).values
        assert rows[seed] == pytest.approx(spearmanr(own, values).statistic)
    with pytest.raises(ValueError, match=rf"no reference for task '{TASK}', seed 1.*reference --task {TASK} --seed 1"):
        cost.units(Plan("tiny", tasks=(TASK,), methods=("few-run-4",), seeds=(1, 2)))


def test_methods_are_judged_by_every_recipe_that_has_a_reference(with_reference, store, tmp_path):
    plan = Plan("tiny", tasks=(TASK,), methods=("few-run-8",), seeds=(0,))
    before = cost.units(plan)
    truth = extend(store, TASK, recipe="adamw", jobs=1).valuations["loss"].values
    units = cost.units(plan)
    assert units[: len(before)] == before
    assert [(unit.method, unit.recipe) for unit in units[len(before) :]] == [
        ("reference", "adamw"),
        ("few-run-8", "adamw"),
    ]
    found = Store(tmp_path / "runs")
    assert run(units, found).failed == ()
    rows = found.read_all("cost")
    ours = rows.query("recipe == 'adamw' and method == 'few-run-8'").set_index("metric")["value"]
    valuation = METHODS["few-run-8"](tasks.load(TASK, recipe="adamw"), None)
    assert ours["spearman"] == pytest.approx(spearmanr(valuation.values, truth).statistic)
    for diagnostic in ("sum", "gain", "roughness"):
        assert ours[diagnostic] == pytest.approx(valuation.parameters[diagnostic])
    of_reference = rows.query("method == 'reference'").groupby("metric")["value"].unique()
    assert of_reference.map(list).to_dict() == {"spearman": [1.0], "spearman_ceiling": [1.0]}
    draw_figures(found, ["cost"], EXPERIMENTS)
    summary = write_summary(found, EXPERIMENTS)
    assert f"| {TASK} |    adamw |" in summary.partition("**Diagnostics**")[2]


def test_the_ceiling_is_that_of_the_references_halves(medium, store, monkeypatch):
    monkeypatch.setattr(reference, "PUBLISHED", store.root)
    halves = extend(store, TASK, seconds=0, jobs=1).reliability()["loss"]
    (unit,) = cost.units(Plan("tiny", tasks=(TASK,), methods=(), seeds=(0,)))
    (values,) = unit.needs
    rows = {row["metric"]: row["value"] for row in cost.measure(unit, {values: pd.DataFrame(values.given)})}
    assert rows == {"spearman": halves, "spearman_ceiling": pytest.approx(np.sqrt(2 * halves / (1 + halves)))}


@pytest.mark.parametrize("experiment_of_references", [estimators, cost])
def test_without_references_an_experiment_says_how_to_make_them(tmp_path, monkeypatch, experiment_of_references):
    with pytest.raises(ValueError, match=r"no reference for task .* make it with 'inrun-bench reference --task"):
        experiment_of_references.units(Plan("quick", tasks=(TASK,), methods=estimators.METHODS, seeds=(0,)))
    monkeypatch.setattr(reference, "PUBLISHED", tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"references that come with inrun-bench are not beside it: .*nothing"):
        experiment_of_references.units(Plan("quick", tasks=(TASK,), methods=estimators.METHODS, seeds=(0,)))


@pytest.mark.parametrize(
    ("method", "trainings"), [("few-run-4", 22), ("few-run-8", 42), ("unrolled", 5), ("control-variate-10", 140)]
)
def test_a_differentiated_run_counts_as_the_trainings_that_it_takes(small, method, trainings):
    found = METHODS[method](tasks.load(TASK), np.random.SeedSequence(0))
    assert TRAININGS_A_RUN == 5
    assert found.evaluations == pytest.approx(trainings, abs=2)  # a control variate spends its budget in pairs
