"""Values judged by retraining of four kinds: each game is what its name says, and the own one is the bench's."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import tasks
from inrun_bench.experiments import EXPERIMENTS, retraining
from inrun_bench.experiments.retraining import ANOTHER, GAMES, OWN
from inrun_bench.report import headline, write_summary
from inrun_bench.report.figures import draw_figures
from inrun_bench.report.page import write_page
from inrun_bench.runs.store import Store
from inrun_bench.runs.stored_values import read_reference, reference_blocks
from inrun_bench.runs.unit import REFERENCE, Unit
from tests.inrun_bench.tiny import PLAN, TASK, run

PLAN = dataclasses.replace(PLAN, seeds=(0,))
UNITS = retraining.units(PLAN)
N = tasks.load(TASK).n_train
HALF = np.arange(N) % 2 == 0
EVERYBODY = np.ones(N, dtype=bool)


def blocks_of(game):
    return [need for need in UNITS[0].needs if need.settings.get("game", OWN) == game]


def some(unit, *coalitions):
    """Return the utilities of some coalitions in the game of a block."""
    game = retraining._game(tasks.load(TASK), str(unit.settings["game"]), int(unit.settings["block"]))
    return game(np.stack(coalitions))


def test_the_own_game_is_that_of_the_reference_of_the_bench():
    assert blocks_of(OWN) == list(reference_blocks(PLAN, TASK, 0))


def test_conventional_retraining_may_take_more_runs_and_keeps_those_that_there_are(monkeypatch):
    knobs = dataclasses.replace(retraining.KNOBS[PLAN.profile], conventional_blocks={TASK: 6})
    monkeypatch.setitem(retraining.KNOBS, PLAN.profile, knobs)
    more = retraining.units(PLAN)[0].needs
    for game in (*GAMES, ANOTHER):
        found = [need for need in more if need.settings.get("game", OWN) == game]
        assert found[:2] == blocks_of(game)
        assert len(found) == (6 if game == "conventional" else 2)


@pytest.mark.parametrize("game", [*GAMES[1:], ANOTHER])
def test_games_are_what_their_names_say(game):
    task, units = tasks.load(TASK), blocks_of(game)
    assert len(units) == 2
    own = task.trajectory_game()(np.stack([HALF, EVERYBODY]))
    one, other = (some(unit, HALF, EVERYBODY) for unit in units)
    assert np.array_equal(one, other) == (game in ("renormalised", ANOTHER))  # else each block is a run of its own
    assert (one[1] == own[1]) == (game == "renormalised")  # whose full coalition is that of the own game
    assert one[0] != own[0]
    if game == "conventional":
        run = task.rerun(int(task.run_seeds(2)[-1])).trajectory_game()
        assert one[1] == pytest.approx(run(EVERYBODY[None])[0])
        assert one[0] != pytest.approx(run(HALF[None])[0])


def rows_of(values, references, method="mine"):
    """Return what the experiment says of a method with these values, or of a reference."""
    needs = {}
    unit = next(u for u in UNITS if u.method == (method if method in (REFERENCE, ANOTHER) else PLAN.methods[0]))
    for need in unit.needs:
        game = need.settings.get("game", OWN)
        known = values if need.method != REFERENCE else references[game][int(need.settings["block"])]
        needs[need] = pd.DataFrame({"metric": "value", "sample": range(N), "value": known})
    return pd.DataFrame(retraining.measure(unit, needs)).set_index(["judge", "metric"])["value"]


def test_each_game_is_judged_by_its_own_reference():
    rng = np.random.default_rng(0)
    truth = {game: rng.standard_normal(N) for game in (*GAMES, ANOTHER)}
    noise = rng.standard_normal(N) * 0.3
    references = {game: [values + noise, values - noise] for game, values in truth.items()}
    for game in GAMES:
        found = rows_of(truth[game], references)
        assert found[game, "spearman"] == pytest.approx(1.0)
        assert max(found[other, "spearman"] for other in GAMES if other != game) < 0.5
    halves = rows_of(None, references, REFERENCE)
    assert 0.5 < halves[OWN, "spearman"] < halves[OWN, "spearman_ceiling"] < 1
    another = rows_of(None, {**references, ANOTHER: references["other runs"]}, ANOTHER)
    assert another["other runs", "spearman"] == pytest.approx(1.0)
    assert another[OWN, "spearman"] < 0.5


def test_a_block_holds_values_that_share_out_the_utility_of_all():
    unit = blocks_of("conventional")[0]
    rows = pd.DataFrame(retraining.measure(unit, {}))
    full, empty = some(unit, EVERYBODY, ~EVERYBODY)
    assert read_reference([rows])[0].sum() == pytest.approx(full - empty, abs=1e-6)
    assert rows[rows["metric"] == "cost"]["seconds"].gt(0).all()


def test_figure_and_tables_show_every_game_and_method(tmp_path):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        [
            {
                "task": task,
                "seed": seed,
                "method": method,
                "judge": game,
                "metric": name,
                "value": rng.uniform(0.2, 0.9),
            }
            for task in ("a", "b", "c")
            for seed in (0, 1)
            for method in (*PLAN.methods, REFERENCE, ANOTHER)
            for game in GAMES
            for name in ("spearman", *(["spearman_ceiling"] if method == REFERENCE else []))
        ]
    )
    figure = retraining.draw(rows)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(GAMES)
    text = retraining.table(rows)
    assert text.count("*noise ceiling*") == text.count(retraining.ANOTHER_LABEL) == len(GAMES)
    assert all(text.count(f"{title}, 2 seeds\n\n| method") == 1 for title in retraining.TITLES.values())
    for game, told in zip(retraining.TITLES, text.split("| method")[1:], strict=True):
        for task in ("a", "b", "c"):
            alone = rows[(rows["task"] == task) & (rows["method"] == "knn") & (rows["judge"] == game)]["value"]
            assert f"{np.tanh(np.arctanh(alone).mean()):.3f} [" in told
    store = Store(tmp_path / "alone")
    for (task, method, seed), own in rows.groupby(["task", "method", "seed"]):
        store.write(Unit("retraining", task, method, int(seed)), own.to_dict("records"))
    assert headline(store).partition("\n\n")[2] in text
    assert "by conventional retraining" in headline(store)


def test_a_run_that_ended_at_the_references_blocks_is_reported(tmp_path):
    block = next(need for need in UNITS[0].needs if "game" in need.settings)
    store = Store(tmp_path)
    assert run([block], store).failed == ()
    assert len(store.read_all("retraining"))
    assert write_summary(store, EXPERIMENTS) == ""
    assert draw_figures(store, ["retraining"], EXPERIMENTS) == []
    assert "retraining" in write_page(store, EXPERIMENTS).read_text()
