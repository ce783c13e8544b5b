import shutil

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from scipy import stats

from inrun_bench.experiments import EXPERIMENTS, overhead
from inrun_bench.experiments.estimators import efficiencies
from inrun_bench.experiments.fidelity import EDGES, OPTIMIZERS, failing
from inrun_bench.experiments.overhead import WORKLOAD_LABELS as WORKLOADS
from inrun_bench.experiments.overhead import of_workloads
from inrun_bench.report.figures import SETTINGS, draw_figures, drawn
from inrun_bench.report.intervals import mean_interval
from inrun_bench.report.looks import MANY, band, in_order, look
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Unit

DEFAULT = sorted(name for name in drawn(EXPERIMENTS) if EXPERIMENTS[name].DEFAULT)
figure_names = pytest.mark.parametrize("name", DEFAULT)


def paint(name, rows):
    """Draw a figure, if there is something to draw, and lay it out as when it is saved; warnings are errors."""
    with mpl.rc_context(SETTINGS):
        figure = EXPERIMENTS[name].draw(rows)
        if figure is not None:
            figure.draw_without_rendering()
    return figure


def only_files(folder, results, pattern):
    """Return a store with some of the results, as a run that was cut short leaves them."""
    store = Store(folder / "results")
    (store.root / "rows").mkdir()
    for path in (results.root / "rows").glob(pattern):
        shutil.copy(path, store.root / "rows")
    assert any((store.root / "rows").iterdir())
    return store


def texts(figure):
    return {text.get_text() for text in figure.findobj(Text)}


def words_of_ticks(labels):
    """Tick labels that are words rather than numbers."""
    return [t.get_text() for t in labels if t.get_text()[:1].isalpha()]


def test_every_workload_has_a_name_in_the_figure():
    assert list(WORKLOADS) == list(overhead.WORKLOADS)


def test_every_default_experiment_but_the_values_that_all_share_has_a_figure():
    assert set(DEFAULT) == {name for name, e in EXPERIMENTS.items() if e.DEFAULT} - {"values"}


@figure_names
def test_every_axis_says_what_it_shows(results, name):
    figure = paint(name, results.read_all(name))
    assert figure.axes
    for ax in figure.axes:
        place = ax.get_subplotspec()
        assert ax.get_xlabel() or words_of_ticks(ax.get_xticklabels()) or not place.is_last_row()
        assert ax.get_ylabel() or words_of_ticks(ax.get_yticklabels()) or not place.is_first_col()
        assert ax.has_data()


@figure_names
def test_a_method_that_the_house_does_not_know_is_drawn_and_named(results, name):
    rows = results.read_all(name).replace({"method": {"inrun-first": "inrun-acme"}})
    figure = paint(name, rows)
    assert any("inrun-acme" in text for text in texts(figure))
    if any("inrun-acme" in label.get_text() for ax in figure.axes for label in ax.get_yticklabels()):
        return  # lines are named at the axis, and colours tell something else
    color = look("inrun-acme").color
    shown = [artist for ax in figure.axes for artist in (*ax.lines, *ax.patches)]
    assert any(
        same_color(a.get_color() if isinstance(a, Line2D) else a.get_facecolor(), color)
        for a in shown
        if isinstance(a, Line2D | Rectangle)
    )


@figure_names
def test_no_method_is_needed_by_another(results, name):
    rows = results.read_all(name)
    for method in set(rows["method"]) - {"regular"}:  # overhead is in units of regular steps
        with mpl.rc_context(SETTINGS):
            EXPERIMENTS[name].draw(rows[rows["method"] != method])


@figure_names
@pytest.mark.parametrize("methods", [("reference",), ("random",), ("knn",), ("inrun-first", "regular")], ids=str)
def test_one_method_is_enough(results, name, methods):
    rows = results.read_all(name)
    rows = rows[rows["method"].isin(methods)]
    if len(rows):
        paint(name, rows)


@figure_names
def test_one_seed_is_enough(results, name):
    paint(name, results.read_all(name).query("seed == 0"))


@figure_names
def test_tasks_need_not_have_the_same_methods(results, name):
    rows = results.read_all(name)
    other = rows[~rows["method"].isin(["reference", "random", "inrun-first"])].assign(task="other-task")
    figure = paint(name, pd.concat([rows, other]))
    said = [text.replace("\n", "") for text in texts(figure)]  # long names go on in another line
    assert any("other-task" in text for text in said)
    assert any("breast-cancer-logreg" in text for text in said)


def test_fidelity_is_passed_over_when_only_the_judge_is_done(tmp_path, results):
    store = only_files(tmp_path, results, "fidelity.*.step-shapley.*")
    assert draw_figures(store, ["fidelity"], EXPERIMENTS) == []


def test_fidelity_can_be_drawn_at_other_learning_rates_than_the_recipes(results):
    paint("fidelity", results.read_all("fidelity").query("rate_factor == 5"))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW, warm-up"])
def test_fidelity_can_be_drawn_of_one_optimizer(results, optimizer):
    figure = paint("fidelity", results.read_all("fidelity").query("optimizer == @optimizer"))
    assert figure.axes[0].get_title() == optimizer
    assert len(figure.axes) == 2  # over the rate, over the steps
    assert all(ax.has_data() for ax in figure.axes)


@pytest.mark.parametrize("half", ["steps", "workload", "knn"])  # steps, of either kind, or a method's run
def test_overhead_can_be_drawn_when_half_of_it_is_done(tmp_path, results, half):
    store = only_files(tmp_path, results, f"overhead.*.{half}.*")
    figure = paint("overhead", store.read_all("overhead"))
    assert figure.axes
    assert all(ax.has_data() for ax in figure.axes)


def test_overhead_can_be_drawn_of_one_model_size(results):
    rows = results.read_all("overhead")
    for width in (0, 1024):
        paint("overhead", rows[(rows["metric"] == "run_ratio") | (rows["width"] == width)])


# --- what is drawn is what the rows say ---


def test_agreement_shows_means_and_the_ceiling(results):
    rows = results.read_all("agreement")
    (ax,) = paint("agreement", rows).axes
    found = rows[rows["metric"] == "spearman"].groupby("method")
    heights = {
        method: mean_interval(own["value"], correlation=True).mean
        for method, own in found
        if method not in ("reference", "random")
    }
    places = {method: own["seconds"].median() for method, own in found if method in heights}
    drawn = {(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1}
    assert {(places[m], heights[m]) for m in heights} <= drawn
    levels = {line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]}
    ceiling = mean_interval(rows[rows["metric"] == "spearman_ceiling"]["value"], correlation=True).mean
    chance = mean_interval(found.get_group("random")["value"], correlation=True).mean
    assert sorted(levels) == pytest.approx(sorted([ceiling, chance]))


def test_agreement_shows_the_median_of_times():
    seconds = (1.0, 2.0, 300.0)
    rows = pd.DataFrame(
        {"task": "t", "method": "knn", "metric": "spearman", "seed": seed, "value": 0.5 + 0.1 * seed, "seconds": s}
        for seed, s in enumerate(seconds)
    )
    (ax,) = paint("agreement", rows).axes
    assert [2.0] in [line.get_xdata().tolist() for line in ax.lines]


def test_removal_shows_means_over_seeds(results):
    rows = results.read_all("removal")
    figure = paint("removal", rows)
    own = rows.query("method == 'knn' and metric == 'test_loss' and direction == 'top'")
    expected = own.groupby("fraction")["value"].mean()
    drawn = [line for ax in figure.axes for line in ax.lines if line.get_color() == look("knn").color]
    matching = [
        line for line in drawn if len(line.get_ydata()) == len(expected) and np.allclose(line.get_ydata(), expected)
    ]
    assert len(matching) == 1
    np.testing.assert_allclose(matching[0].get_xdata(), 100 * expected.index)


def test_detection_shows_means(results):
    rows = results.read_all("detection")
    figure = paint("detection", rows)
    for ax, metric in zip(figure.axes, ("auroc", "average_precision"), strict=True):
        means = rows[rows["metric"] == metric].groupby("method")["value"].mean()
        drawn = sorted(line.get_xdata()[0] for line in ax.lines if line.get_marker() not in ("None", ""))
        assert drawn == pytest.approx(sorted(means))


def test_fidelity_shows_medians(results):
    rows = results.read_all("fidelity")
    errors = rows.query("metric == 'relative_error' and method in ['inrun-first', 'inrun-integrated']")
    figure = paint("fidelity", rows)
    for place, ax in enumerate(figure.axes[:8]):
        optimizer, x = list(OPTIMIZERS)[place % 4], ("rate_factor", "stage")[place // 4]
        own = errors[errors["optimizer"] == optimizer]
        own = own if x == "rate_factor" else own[own["rate_factor"] == 1]
        medians = own.groupby(["method", "batch_size", x])["value"].median().unstack(x)
        assert list(medians.index) == [(m, size) for m in ("inrun-first", "inrun-integrated") for size in (4, 10)]
        (mesh,) = ax.collections
        drawn = mesh.get_array().reshape(medians.shape)
        low, high = (np.take(EDGES, np.floor(drawn).astype(int) + end) for end in (0, 1))
        assert ((low <= medians.to_numpy()) & (medians.to_numpy() <= high)).all()
        assert [label.get_text() for label in ax.get_xticklabels()] == [f"{value:g}" for value in medians.columns]


def losses(*by_seed, rate=1.0):
    """Rows of training losses at every quarter of the run, one list of them a seed."""
    place = {"metric": "training_loss", "task": "t", "optimizer": "SGD", "rate_factor": rate, "batch_size": 4}
    return pd.DataFrame(
        {**place, "seed": seed, "done": done, "value": value}
        for seed, run in enumerate(by_seed)
        for done, value in zip((0.0, 0.25, 0.5, 0.75, 1.0), run, strict=True)
    )


@pytest.mark.parametrize(
    ("run", "fails"),
    [
        ([3.0, 2.0, 1.5, 1.2, 1.0], False),
        ([3.0, 1.0, 1.1, 1.0, 1.1], False),  # it hovers about its end
        ([3.0, 1.0, 1.2, 0.9, 0.8], True),  # by more than a twentieth of 3
        ([3.0, 2.9, 2.9, 2.9, 3.0], True),  # nothing is learnt
        ([3.0, 4.0, 9.0, np.nan, np.nan], True),
        ([3.0, 2.0, np.inf, np.inf, np.inf], True),
    ],
)
def test_training_fails_if_the_loss_ends_no_lower_or_rises_on_the_way_in_any_seed(run, fails):
    falls = [3.0, 2.0, 1.5, 1.2, 1.0]
    rows = pd.concat([losses(falls, falls, rate=0.5), losses(falls, run, rate=2.0)]).sample(frac=1, random_state=0)
    assert failing(rows) == ({("t", "SGD", 2.0, 4)} if fails else set())


def test_fidelity_crosses_out_the_rates_at_which_training_fails(results):
    rows = results.read_all("fidelity")
    fails = failing(rows)
    assert any(where[2] == 20.0 for where in fails)
    assert not any(where[2] == 1.0 for where in fails)
    for place, ax in enumerate(paint("fidelity", rows).axes[:8]):
        optimizer = list(OPTIMIZERS)[place % 4]
        own = [where for where in fails if where[1] == optimizer] if place < 4 else []
        crosses = [line for line in ax.lines if line.get_marker() == "x"]
        assert len(crosses) == 2 * 2 * len(own)  # two orders, and the edge of each cross


def test_residual_draws_every_step_and_the_line_of_equals(results):
    steps = results.read_all("residual").query("metric == 'relative_error'")
    shown = steps[steps["method"].isin(["inrun-first", "inrun-integrated"])]
    for ax, kind in zip(paint("residual", steps).axes, ("SGD|momentum", "AdamW"), strict=True):
        *clouds, line = ax.lines
        own = shown[shown["optimizer"].str.contains(kind)]
        assert sum(len(cloud.get_xdata()) for cloud in clouds) == len(own)
        drawn = np.sort(np.concatenate([cloud.get_ydata() for cloud in clouds]))
        np.testing.assert_allclose(drawn, np.sort(own["value"].clip(1e-6, 1e2)))
        np.testing.assert_allclose(line.get_xdata(), line.get_ydata())


def test_overhead_shows_ratios_and_their_quartiles_and_the_table_has_the_runs(results):
    rows = results.read_all("overhead")
    axes = paint("overhead", rows).axes
    steps = rows[(rows["metric"] == "step_ratio") & rows["width"].notna()]
    memory = steps["peak_bytes"] / steps["width"].map(
        steps[steps["method"] == "regular"].set_index("width")["peak_bytes"]
    )
    runs = rows[(rows["metric"] == "run_ratio") & ~rows["method"].isin(["plain-run", "random"])]
    own = steps["method"] != "regular"
    net = rows[rows["metric"] == "net_ratio"]
    peak = rows[(rows["metric"] == "peak_ratio") & rows["method"].isin(net["method"])]
    whole, whole_peak = (rows[rows["metric"] == metric]["value"] for metric in (overhead.WHOLE, overhead.WHOLE_PEAK))
    drawn = (net["value"], peak["value"], whole, whole_peak, steps["value"][own], memory[own], runs["value"])
    for ax, expected in zip(axes, drawn, strict=True):
        assert ax.get_xscale() == "log"
        points = [line for line in ax.lines if line.get_marker() != "None"]
        assert sorted(line.get_xdata()[0] for line in points) == pytest.approx(sorted(expected))
    spans = [tuple(line.get_xdata()) for line in axes[4].lines if line.get_marker() == "None"]
    quartiles = steps[own][["low", "high"]].itertuples(index=False, name=None)
    np.testing.assert_allclose(sorted(spans), sorted([*quartiles, (1, 1)]))  # and the line at 1
    told = overhead.table(rows)
    assert all(f"{ratio:,.3g}" in told for ratio in runs["value"])


def test_points_of_one_group_have_lines_of_their_own_below_each_other(results):
    for ax in paint("overhead", results.read_all("overhead")).axes:
        heights = [line.get_ydata()[0] for line in ax.lines if line.get_marker() != "None"]
        assert len(set(heights)) == len(heights)
        places, (bottom, top) = ax.get_yticks(), ax.get_ylim()
        assert all(np.diff(places) > 0)
        assert top < min(heights) < max(heights) < bottom


def test_workloads_are_shown_in_the_houses_order_and_unknown_ones_last():
    names = ["acme", "cnn", "gpt-256", "gpt-64"]
    rows = pd.DataFrame({"task": names, "metric": "net_ratio"})
    assert of_workloads(rows)["task"].tolist() == ["gpt-64", "gpt-256", "cnn", "acme"]


def test_sweeps_show_every_way_on_a_line_of_its_task_and_recipe():
    ratios = {"memory": 2.0, "disk": 3.0, "recomputed": 4.0}
    rows = pd.DataFrame(
        {"task": "a", "recipe": recipe, "method": "differentiated-run", "way": way, "metric": metric, "value": value}
        for recipe in ("sgd", "adamw")
        for way, value in ratios.items()
        for metric in ("trainings", "peak_ratio", "stored_bytes")
    )
    axes = paint("sweeps", rows).axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a, sgd", "a, adamw"]
    for ax, unit in zip(axes, (1, 1, 1e6), strict=True):
        points = [line for line in ax.lines if line.get_marker() != "None"]
        assert sorted(line.get_xdata()[0] * unit for line in points) == pytest.approx([2, 2, 3, 3, 4, 4])
    assert paint("sweeps", rows[:0]).axes == []


def test_rivals_show_speedups_beside_a_line_at_one_and_what_estimators_cost():
    speed = {"method": "knn", "metric": "speedup", "contender": "inrun-bench", "value": 7.0}
    cost = {"method": "estimators", "metric": "microseconds", "contender": "tmc"}
    costs = [{**cost, "players": n, "value": 1 / n} for n in (10, 100)]
    speedups, estimators = paint("rivals", pd.DataFrame([speed, *costs])).axes
    assert {line.get_xdata()[0] for line in speedups.lines} == {1, 7.0}
    assert estimators.lines[0].get_xydata().tolist() == [[10, 0.1], [100, 0.01]]
    for rows in ([speed], costs):
        assert len(paint("rivals", pd.DataFrame(rows, columns=[*cost, "players", "value"])).axes) == 1
    assert paint("rivals", pd.DataFrame(columns=[*cost, "players", "value"])).axes == []


def test_bands_do_not_stretch_the_axis():
    ax = Figure().subplots()
    intervals = pd.DataFrame({"mean": [0.4, 0.6], "low": [-9.0, 0.5], "high": [9.0, 0.7]})
    band(ax, [0, 1], intervals, look("knn"))
    low, high = ax.get_ylim()
    assert 0.3 < low < 0.4 < 0.6 < high < 0.7


# --- files and style ---


def test_experiments_without_rows_are_passed_over(tmp_path, results):
    store = Store(tmp_path / "results")
    rows = results.read_all("detection").query("method == 'knn'")
    unit = Unit("detection", "task", "knn", 0)
    store.write(unit, rows[["metric", "value"]].to_dict("records"))
    written = draw_figures(store, sorted(drawn(EXPERIMENTS)), EXPERIMENTS)
    assert [path.name for path in written] == ["detection.png", "detection.svg"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_methods_are_ordered_by_the_house_and_then_by_name():
    shuffled = ["zeta", "knn", "inrun-first", "alpha", "reference", "knn"]
    assert in_order(shuffled) == ["reference", "inrun-first", "knn", "alpha", "zeta"]
    assert in_order(shuffled[::-1]) == in_order(shuffled)


def test_an_unknown_method_looks_the_same_each_time():
    assert look("acme") == look("acme")
    assert look("acme").label == "acme"


def estimator_rows(names=("a", "b", "c", "d", "e")):
    """Three repetitions of two estimators, whose errors and costs differ, and a reference that is not exact."""
    looks = [
        {"task": task, "method": method, "repetition": repetition, "look": number, "metric": "error"}
        | {
            "value": (2.0 + repetition) / (1 + number),
            "evaluations": 10 * (1 + number) + repetition,
            "seconds": 0.1 + number,
        }
        for task in names
        for method in ("permutation", "kernel")
        for repetition in range(3)
        for number in range(4)
    ]
    noise = [{"task": task, "method": "reference", "metric": "error", "value": 0.01} for task in names]
    return pd.DataFrame([*looks, *noise])


def test_estimators_show_medians_over_repetitions_and_the_error_of_the_reference():
    figure = paint("estimators", estimator_rows())
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == 2 * 5
    permutation, kernel, noise = sorted(shown[0].lines, key=lambda line: line.get_label())
    for line in (permutation, kernel):
        np.testing.assert_allclose(line.get_ydata(), 3.0 / np.arange(1, 5))
        np.testing.assert_allclose(line.get_xdata(), 10 * np.arange(1, 5) + 1)
    assert set(noise.get_ydata()) == {0.01}
    assert {"trainings", "seconds on one core", "a", "e"} <= texts(figure)


def test_estimators_draw_nothing_of_nothing():
    assert paint("estimators", estimator_rows().iloc[:0]).axes == []


def test_an_efficiency_is_relative_to_plain_permutations_of_the_same_task():
    errors = estimator_rows().query("method != 'reference'")
    halved = errors.assign(
        metric="stderr", value=errors["value"].where(errors["method"] != "kernel", errors["value"] / 2)
    )
    found = efficiencies(pd.concat([errors, halved]))
    assert (found.loc["permutation"] == 1).all()
    np.testing.assert_allclose(found.loc["kernel"], 4)  # a variance of a quarter
    assert list(found.columns) == ["a", "b", "c", "d", "e"]
    assert efficiencies(pd.concat([errors, halved.query("method == 'kernel'")])).empty  # nothing to compare with
    assert efficiencies(errors).empty


def cost_rows():
    """Two methods and the reference on two tasks, of which one has two recipes."""
    places = [("a", None), ("b", None), ("a", "adamw")]  # rows of the default recipe need not name it
    found = [
        ("knn", "spearman", 0.4, 0.2),
        ("few-run-8", "spearman", 0.9, 7.0),
        ("reference", "spearman", 0.95, 1e4),
        ("reference", "spearman_ceiling", 0.97, 1e4),
    ]
    return pd.DataFrame(
        {"task": task, "method": method, "metric": metric, "value": value + 0.01 * number, "trainings": trainings}
        | ({} if recipe is None else {"recipe": recipe})
        for number, (task, recipe) in enumerate(places)
        for method, metric, value, trainings in found
    )


def test_cost_shows_each_task_and_recipe_under_the_ceiling_of_its_reference():
    figure = paint("cost", cost_rows())
    by_place = {(ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start): ax for ax in figure.axes}
    assert [by_place[0, column].get_title() for column in (0, 1)] == ["recipe sgd", "recipe adamw"]
    assert [by_place[row, 0].get_ylabel() for row in (0, 1)] == ["a", "b"]
    assert set(by_place) == {(0, 0), (1, 0), (0, 1)}  # b has one recipe
    assert all(by_place[place].get_xlabel() for place in ((1, 0), (0, 1)))  # the last ones of their columns
    for number, ax in enumerate(by_place[place] for place in ((0, 0), (1, 0), (0, 1))):
        points = {line.get_ydata()[0] for line in ax.lines if len(line.get_xdata()) == 1}
        assert points == {0.4 + 0.01 * number, 0.9 + 0.01 * number}
        (ceiling,) = {line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]}
        assert ceiling == 0.97 + 0.01 * number


def test_cost_over_seeds_shows_means_with_their_intervals_at_median_prices():
    values, prices = np.array([0.2, 0.5, 0.6]), (1.0, 2.0, 9.0)
    rows = [
        {"task": "a", "method": "knn", "metric": "spearman", "seed": seed, "value": value, "trainings": price}
        for seed, (value, price) in enumerate(zip(values, prices, strict=True))
    ]
    (ax,) = paint("cost", pd.DataFrame(rows)).axes
    z, half = np.arctanh(values), stats.t.ppf(0.975, 2) * np.arctanh(values).std(ddof=1) / np.sqrt(3)
    (point,) = (line for line in ax.lines if len(line.get_xdata()) == 1)
    (interval,) = (line for line in ax.lines if list(line.get_xdata()) == [2.0, 2.0])
    assert point.get_xydata().tolist() == [[2.0, pytest.approx(np.tanh(z.mean()))]]
    assert interval.get_ydata() == pytest.approx(np.tanh([z.mean() - half, z.mean() + half]))


def test_cost_shows_the_foremost_of_many_methods_and_says_how_many_it_leaves_to_the_table():
    rows = cost_rows()
    many = [rows.assign(method=rows["method"].replace("knn", f"other-{number}")) for number in range(MANY)]
    along = rows.assign(method=rows["method"].replace("knn", "knn-embedding"))
    figure = paint("cost", pd.concat([rows, *many, along]).drop_duplicates())
    assert figure.get_suptitle() == "in the table alone: 1 more method"
    assert look("knn").label in texts(figure)
    assert look("knn-embedding").label not in texts(figure)


def test_cost_needs_no_reference_and_no_second_recipe():
    rows = cost_rows().drop(columns="recipe").iloc[:8]
    figure = paint("cost", rows[rows["method"] != "reference"])
    assert [ax.get_ylabel() for ax in figure.axes] == ["a", "b"]
    assert paint("cost", rows.iloc[:0]).axes == []
    alone = paint("cost", rows[:1].assign(method="random"))
    assert [ax.get_ylabel() for ax in alone.axes] == ["a"]


def test_cost_says_what_it_leaves_out():
    rows = cost_rows().assign(seed=0)
    assert not paint("cost", rows).get_suptitle()
    assert paint("cost", pd.concat([rows, rows[:1]])).get_suptitle().startswith("left out: 1 means")
