import itertools

import numpy as np
import pytest
from scipy import stats

from baselines import Valuation
from inrun_bench.experiments import EXPERIMENTS, fidelity
from inrun_bench.experiments.fidelity import OPTIMIZERS, failing
from inrun_bench.reference.blocks import block
from inrun_bench.reference.estimate import value_rows
from inrun_bench.report import BEGIN, END, headline, markdown, marks, update_page, update_section, write_summary
from inrun_bench.report.figures import draw_figures
from inrun_bench.report.looks import look
from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import Unit, recipe_setting
from tests.inrun_bench.tiny import METHODS, TASK


def tables_in(text):
    """Return the Markdown tables of a text, each as {first cell: {head: cell}}."""
    tables, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip("|").split("|")])
        elif lines:
            heads, _, *body = lines
            tables.append({cells[0]: dict(zip(heads, cells, strict=True)) for cells in body})
            lines = []
    return tables


def fisher_interval(values, errors=None):
    """The interval over seeds; of two of them, with what samples make them differ, where that is known."""
    values = np.asarray(values)
    z = np.arctanh(values)
    low, high = stats.t.interval(0.95, len(z) - 1, loc=z.mean(), scale=stats.sem(z))
    if errors is not None:
        of_samples = np.asarray(errors) / (1 - values**2)
        variance = z.var(ddof=1) + np.square(of_samples).mean()
        low, high = stats.norm.interval(0.95, loc=z.mean(), scale=np.sqrt(variance / len(z)))
    return f"{np.tanh(z.mean()):.3f} [{np.tanh(low):.3f}, {np.tanh(high):.3f}]"


@pytest.fixture(scope="module")
def summary(results, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("report") / "results")
    (store.root / "rows").symlink_to(results.root / "rows")
    text = write_summary(store, EXPERIMENTS)
    assert (store.root / "summary.md").read_text() == text + "\n"
    return text


@pytest.fixture(scope="module")
def methods_table(summary):
    (table,) = (t for t in tables_in(summary) if any("removal" in head for row in t.values() for head in row))
    return table


def values_of(results, experiment, method, metric, column="value"):
    rows = results.read_all(experiment)
    return rows[(rows["method"] == method) & (rows["metric"] == metric)][column].to_numpy()


def agreement_of(results, method):
    """The cell of a method's Spearman correlation in the run's own game."""
    seen = (values_of(results, "agreement", method, "spearman", column) for column in ("value", "stderr"))
    return fisher_interval(*seen)


def test_differences_are_paired_by_seed(results, summary):
    """With two seeds the interval shows the pairs: its middle is the mean, its half width t times half the gap."""
    (table,) = (t for t in tables_in(summary) if any("of 2)" in cell for row in t.values() for cell in row.values()))
    assert look("inrun-first").label not in table
    base = values_of(results, "agreement", "inrun-first", "spearman")
    for method in ("inrun-integrated", "knn"):
        gaps = values_of(results, "agreement", method, "spearman") - base
        half = stats.t.ppf(0.975, 1) * gaps.std(ddof=1) / np.sqrt(2)
        told = f"{gaps.mean():+.3f} [{gaps.mean() - half:+.3f}, {gaps.mean() + half:+.3f}] ({(gaps > 0).sum()} of 2)"
        assert table[look(method).label][TASK] == told


def test_the_headline_shows_the_run_s_own_game_beside_conventional_retraining(results, summary):
    table = tables_in(summary)[0]
    rows = results.read_all("retraining")
    conventional = rows[(rows["judge"] == "conventional") & (rows["metric"] == "spearman")]
    for method in METHODS:
        own = conventional[conventional["method"] == method]["value"]
        assert table[look(method).label][f"{TASK}, conventional"] == fisher_interval(own)
        assert table[look(method).label][TASK].startswith(agreement_of(results, method))
    again = conventional[conventional["method"] == "another seed"]["value"]
    assert table["*the reference under another seed*"][f"{TASK}, conventional"] == fisher_interval(again).split()[0]


@pytest.mark.parametrize("method", ["reference", *METHODS])
def test_the_methods_table_says_what_the_rows_say(results, methods_table, method):
    row = methods_table[look(method).label]
    cost = results.read_all("agreement").query("method == @method and metric == 'spearman'")
    assert row["trainings"] == f"{np.median(cost['evaluations']):,.0f}"
    assert row["time (s)"] == f"{np.median(cost['seconds']):.2g}"
    assert row["Spearman [95 % CI]"] == agreement_of(results, method)
    for head, metric in (("Kendall", "kendall"), ("Pearson", "pearson")):
        z = np.arctanh(values_of(results, "agreement", method, metric))
        assert row[head] == f"{np.tanh(z.mean()):.3f}"
    for head, experiment, metric in (
        ("top 10 %", "agreement", "top10_overlap"),
        ("bottom 10 %", "agreement", "bottom10_overlap"),
        ("error, best scale", "agreement", "scaled_rmse"),
        ("flipped labels, AUROC", "detection", "auroc"),
        ("AP", "detection", "average_precision"),
        ("removal area (loss)", "removal", "area_loss"),
    ):
        seen = values_of(results, experiment, method, metric)
        assert row[head] == (f"{seen.mean():.3f}" if len(seen) else "")


def test_the_methods_table_has_a_row_for_every_method_and_no_other(methods_table):
    assert list(methods_table) == [look(m).label for m in ("reference", *METHODS[1:], "random")]


def test_the_summary_names_the_noise_ceiling(results, summary):
    ceiling = values_of(results, "agreement", "reference", "spearman_ceiling").mean()
    assert f"noise ceiling of Spearman: {ceiling:.3f}" in summary


def test_the_headline_says_what_the_rows_say(results):
    (table,) = tables_in(headline(results))
    for method in METHODS:
        cost = results.read_all("agreement").query("method == @method and metric == 'spearman'")["seconds"]
        expected = agreement_of(results, method)
        assert table[look(method).label][TASK] == f"{expected}, {np.median(cost):.2g} s"
    (ceiling_row,) = (row for name, row in table.items() if "ceiling" in name)
    ceiling = values_of(results, "agreement", "reference", "spearman_ceiling").mean()
    spent = results.read_all("agreement").query("method == 'reference' and metric == 'spearman'")["seconds"].median()
    assert ceiling_row[TASK] == f"{ceiling:.3f}, {spent:.2g} s"


def lines_of(summary, title):
    """The rows of the table below a title, each {head: cell}."""
    text = summary[summary.index(f"**{title}**") :]
    lines = text[text.index("\n|") + 1 :].split("\n\n")[0].splitlines()
    heads, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(heads, cells, strict=True)) for cells in body]


def as_percent(share):
    if share < 1e-6:
        return "< 0.0001 %"
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:,.0f} %"


def test_the_fidelity_table_says_what_the_rows_say(results, summary):
    rows = results.read_all("fidelity")
    lines = lines_of(summary, "Fidelity")
    assert len(lines) == 4 * 3  # optimisers, learning rates
    fails = failing(rows)
    for line in lines:
        assert line["task"] == TASK
        factor = float(line["rate / own"])
        own = rows[(rows["optimizer"] == line["optimizer"]) & (rows["rate_factor"] == factor)]
        medians = own.groupby(["method", "metric"])["value"].median()
        for order in ("first", "midpoint", "trapezoid", "integrated"):
            assert line[look(f"inrun-{order}").label] == as_percent(medians[f"inrun-{order}", "relative_error"])
        assert line["residual of integrated"] == as_percent(medians["inrun-integrated", "residual_share"])
        failed = [size for size in (4, 10) if (TASK, line["optimizer"], factor, size) in fails]
        assert line["training fails at batches of"] == (f"size {', '.join(map(str, failed))}" if failed else "")


def test_a_rate_is_safe_if_it_and_all_lower_ones_are(results, summary):
    errors = results.read_all("fidelity").query("metric == 'relative_error' and step > 0")
    lines = lines_of(summary, "Safe learning rates")
    assert [line["optimizer"] for line in lines] == ["SGD", "momentum", "AdamW", "AdamW, warm-up"]
    for line in lines:
        for order in ("first", "integrated"):
            own = errors[(errors["method"] == f"inrun-{order}") & (errors["optimizer"] == line["optimizer"])]
            safe = [own[own["rate_factor"] == rate]["value"].quantile(0.9) <= 0.1 for rate in (1.0, 5.0, 20.0)]
            so_far = zip((1, 5, 20), itertools.accumulate(safe, min), strict=True)
            expected = [f"{rate:g}" for rate, held in so_far if held]
            assert line[look(f"inrun-{order}").label] == (expected[-1] if expected else "")


def test_a_step_that_diverges_is_off_by_more_than_any_other(results):
    """In a run whose losses are numbers and fall."""
    rows = results.read_all("fidelity")
    rows.loc[(rows["metric"] == "training_loss") & (rows["optimizer"] == "SGD"), "value"] = 1 - rows["done"]
    of_steps = (rows["metric"] == "relative_error") & (rows["optimizer"] == "SGD")
    rows.loc[of_steps, "value"] = 0.01

    def safe():
        line = next(of for of in lines_of(fidelity.table(rows), "Safe learning rates") if of["optimizer"] == "SGD")
        return {line[look(f"inrun-{order}").label] for order in ("first", "integrated")}

    assert safe() == {"20"}
    rows.loc[of_steps & (rows["rate_factor"] == 5.0) & (rows["stage"] == 0.5) & (rows["seed"] == 0), "value"] = np.nan
    assert safe() == {"1"}


@pytest.mark.parametrize("lost", [{"rate_factor": 5.0, "batch_size": 4, "seed": 1}, {"rate_factor": 5.0}])
def test_where_nobody_knows_whether_training_holds_no_rate_is_safe(results, lost):
    """As where weights overflow, so that what would have told it fails."""
    rows = results.read_all("fidelity")
    gone = (rows["optimizer"] == "SGD") & rows["metric"].isin(["training_loss", "relative_error"])
    for name, value in lost.items():
        gone &= rows[name] == value
    told = fidelity.table(rows[~gone])
    safe = {line["optimizer"]: line for line in lines_of(told, "Safe learning rates")}["SGD"]
    assert {safe["training"], *(safe[look(f"inrun-{order}").label] for order in ("first", "integrated"))} <= {"1", ""}
    fails = {(line["optimizer"], line["rate / own"]): line for line in lines_of(told, "Fidelity")}
    if "seed" in lost:
        assert fails["SGD", "5"]["training fails at batches of"].startswith("size 4")


def test_the_table_of_the_residual_says_what_the_rows_say(results, summary):
    rows = results.read_all("residual")
    lines = {(line["optimizer"], line["method"]): line for line in lines_of(summary, "The residual as a warning")}
    orders = ("first", "midpoint", "trapezoid", "integrated")
    assert set(lines) == {(name, look(f"inrun-{order}").label) for name in OPTIMIZERS for order in orders}
    for optimizer in OPTIMIZERS:
        own = rows[(rows["method"] == "inrun-first") & (rows["optimizer"] == optimizer)]
        line = lines[optimizer, look("inrun-first").label]
        wrong = own[own["metric"] == "share_wrong"]["value"].mean()
        assert line["share of steps with an error above 10%"] == f"{wrong:.3f}"
        correlation = np.tanh(np.arctanh(own[own["metric"] == "spearman"]["value"]).mean())
        assert line["Spearman"].split()[0] == f"{correlation:.3f}"


def test_the_overhead_table_says_what_the_rows_say(results, summary):
    steps = results.read_all("overhead").query("metric == 'step_ratio' and width >= 0")
    for row, (_, own) in zip(lines_of(summary, "Overhead"), steps.groupby("width"), strict=True):
        found = own.set_index("method")
        assert row["regular step (ms)"] == f"{1000 * found['seconds']['regular']:.2f}"
        for method in set(found.index) - {"regular"}:
            memory = found["peak_bytes"][method] / found["peak_bytes"]["regular"]
            assert row[look(method).label] == f"{found['value'][method]:.2f} / {memory:.2f}"


def test_the_table_of_the_cost_of_scores_says_what_the_rows_say(results, summary):
    rows = results.read_all("overhead").query("task == 'mlp'")
    (line,) = lines_of(summary, "Cost of scores")
    values = rows.set_index(["metric", "method"])["value"]
    regular = rows.query("method == 'regular' and metric == 'step_ratio'")["seconds"].item()
    assert line["model"] == "MLP, 1024 wide"
    assert line["regular step (ms)"] == f"{1000 * regular:,.0f}"
    assert line["validation pass"] == f"{values['step_ratio', 'validation']:.2f}"
    for method, net in values["net_ratio"].items():
        assert line[look(method).label] == f"{net:.2f} / {values['peak_ratio', method]:.2f}"
    first = rows.query("method == 'inrun-first' and metric == 'net_ratio'").iloc[0]
    assert line["rules chosen (layers)"] == first["rule"]
    assert line["fastest rule"] == first["fastest_rule"]


# --- tables over stored references ---


def test_the_cost_tables_say_what_the_rows_say_one_a_recipe(tmp_path):
    """Means over seeds as everywhere, medians of times; a task of one seed has no interval and no differences."""
    store = Store(tmp_path / "results")
    spearman = {
        ("sgd", "knn"): (0.4, 0.5, 0.7),
        ("sgd", "inrun-first"): (0.5, 0.4, 0.6),
        ("sgd", "reference"): (0.8, 0.9, 0.9),
        ("adamw", "knn"): (0.3,),
        ("adamw", "reference"): (0.9,),
    }
    for (recipe, method), values in spearman.items():
        for seed, value in enumerate(values):
            rows = [{"metric": "spearman", "value": value, "seconds": 1.0, "trainings": 12.34 * (1 + seed)}]
            if method == "reference":
                rows.append({"metric": "spearman_ceiling", "value": 0.91 + value / 100})
            store.write(Unit("cost", "some-task", method, seed, recipe_setting(recipe)), rows)
    summary = write_summary(store, EXPERIMENTS)
    sgd, differences, adamw = tables_in(summary)
    knn = look("knn").label
    assert list(adamw) == [look("reference").label, knn, "*noise ceiling*", "*seeds*"]
    assert [table[knn]["some-task"] for table in (sgd, adamw)] == [
        f"{fisher_interval(np.array(spearman['sgd', 'knn']))}, 24.7",
        "0.300, 12.3",
    ]
    assert [table["*seeds*"]["some-task"] for table in (sgd, adamw)] == ["3", "1"]
    assert adamw["*noise ceiling*"]["some-task"] == "0.919"
    assert list(differences) == [knn]
    assert differences[knn]["some-task"].startswith("+0.033 [")
    assert differences[knn]["some-task"].endswith("(2 of 3)")
    assert "recipe sgd, of the Spearman" in summary


def test_of_two_references_of_a_seed_no_mean_no_price_and_no_difference_is_told(tmp_path):
    store = Store(tmp_path / "results")
    for seed, references in ((0, "a"), (1, "a"), (2, "ab")):
        for reference in references:
            for method, value in (("knn", 0.5 + seed / 10), ("inrun-first", 0.4)):
                rows = [{"metric": "spearman", "value": value, "seconds": 1.0, "trainings": 8.0}]
                store.write(Unit("cost", "some-task", method, seed, {"reference": reference}), rows)
    found, differences = tables_in(write_summary(store, EXPERIMENTS))
    assert found[look("knn").label]["some-task"] == "2 definitions"
    assert differences[look("knn").label]["some-task"].startswith("+0.150 [")
    assert differences[look("knn").label]["some-task"].endswith("(2 of 2)")


def test_the_diagnostics_table_says_what_the_rows_say(tmp_path):
    store = Store(tmp_path / "results")
    agreement = [{"metric": "spearman", "value": 0.5, "seconds": 1.0, "trainings": 8.0}]
    diagnostics = {"sum": 0.3, "gain": 0.4, "roughness": 0.25}
    parameters = [{"metric": name, "value": value} for name, value in diagnostics.items()]
    store.write(Unit("cost", "some-task", "few-run-8", 0), agreement)
    assert "**Diagnostics**" not in write_summary(store, EXPERIMENTS)  # rows that are older than diagnostics
    store.write(Unit("cost", "some-task", "few-run-8", 0, recipe_setting("adamw")), agreement + parameters)
    store.write(Unit("cost", "some-task", "few-run-4", 0, recipe_setting("adamw")), agreement + parameters)
    (line,) = lines_of(write_summary(store, EXPERIMENTS), "Diagnostics")
    assert line == {
        "task": "some-task",
        "recipe": "adamw",
        "sum / gain": "0.750",
        "roughness": "0.250",
        "Spearman": "0.500",
    }


def test_diagnostics_are_told_without_a_reference_too(tmp_path):
    store = Store(tmp_path / "results")
    for seed, roughness in enumerate((0.1, 0.5, 0.2)):
        diagnostics = {"sum": 0.3, "gain": 0.4, "roughness": roughness}
        rows = [{"metric": name, "value": value} for name, value in diagnostics.items()]
        store.write(Unit("values", "some-task", "few-run-8", seed), rows)
    (line,) = lines_of(write_summary(store, EXPERIMENTS), "Diagnostics")
    assert line == {"task": "some-task", "recipe": "sgd", "sum / gain": "0.750", "roughness": "0.200"}


def test_the_efficiency_table_compares_trainings_for_the_same_standard_error(tmp_path):
    store = Store(tmp_path / "results")
    last_of = {"permutation": (0.4, 100), "owen": (0.2, 100), "kernel": (0.4, 50), "tmc": (0.01, 100)}
    for method, (stderr, evaluations) in last_of.items():
        for repetition, factor in enumerate((1, 3, 0.5)):
            rows = [
                {"metric": metric, "value": value * factor, "look": number, "evaluations": trainings, "seconds": 1.0}
                for number, (value, trainings) in enumerate(((9.0, 10), (stderr, evaluations)))
                for metric in ("error", "stderr")
            ]
            store.write(Unit("estimators", "some-task", method, 0, {"repetition": repetition}), rows)
    found = {line["estimator"]: line["some-task"] for line in lines_of(write_summary(store, EXPERIMENTS), "Efficiency")}
    assert found == {look("permutation").label: "1", look("owen").label: "4", look("kernel").label: "2"}


def test_estimators_without_standard_errors_have_no_efficiency(tmp_path):
    store = Store(tmp_path / "results")
    row = {"metric": "error", "value": 0.5, "look": 0, "evaluations": 10, "seconds": 1.0}
    store.write(Unit("estimators", "some-task", "permutation", 0, {"repetition": 0}), [row])
    summary = write_summary(store, EXPERIMENTS)
    assert "**Estimators**" in summary
    assert "**Efficiency**" not in summary


def test_times_are_medians_over_seeds_and_what_is_measured_is_a_mean(tmp_path):
    """Three seeds, of which one is far off."""
    store = Store(tmp_path / "results")
    for seed, (value, seconds) in enumerate(((0.1, 1.0), (0.2, 2.0), (0.6, 300.0))):
        cost = {"evaluations": int(10 * seconds), "seconds": seconds}
        store.write(Unit("agreement", "some-task", "acme", seed), [{"metric": "top10_overlap", "value": value, **cost}])
        store.write(Unit("agreement", "some-task", "knn", seed), [{"metric": "spearman", "value": 0.5, **cost}])
        for method in ("reference", "acme"):
            rows = [{"metric": metric, "value": value, **cost} for metric in ("error", "spearman", "cost")]
            rows.append({"metric": "value", "player": 0, "name": "a", "value": 1.0})
            store.write(Unit("groups", "some-task", method, seed, {"groups": "classes"}), rows)
    summary = write_summary(store, EXPERIMENTS)
    by_task, groups = tables_in(headline(store))[0], tables_in(summary[summary.index("**Groups**") :])[0]
    methods = next(t for t in tables_in(summary) if "trainings" in t[look("knn").label])
    assert by_task[look("knn").label]["some-task"] == "0.500 [0.500, 0.500], 2 s"
    assert [methods[look("knn").label][head] for head in ("trainings", "time (s)")] == ["20", "2"]
    assert methods["acme"]["top 10 %"] == "0.300"
    assert [groups["acme"][head] for head in ("runs", "time (s)", "error")] == ["20", "2", "0.300"]


def test_long_times_are_whole_seconds_and_short_ones_have_two_digits(tmp_path):
    for seconds, shown in ((0.01234, "0.012"), (1.26, "1.3"), (99.4, "99"), (12345.6, "12,346")):
        store = Store(tmp_path / f"results-{seconds}")
        row = {"metric": "spearman", "value": 0.5, "evaluations": 1, "seconds": seconds}
        store.write(Unit("agreement", "some-task", "acme", 0), [row])
        (table,) = tables_in(write_summary(store, EXPERIMENTS).partition("\n\n**some-task**")[2])
        assert table["acme"]["time (s)"] == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0 %"), (1e-7, "< 0.0001 %"), (0.012345, "1.2 %"), (0.999, "1e+02 %"), (12.3456, "1,235 %"), (None, "")],
)
def test_shares_have_two_digits_and_those_that_are_rounding_say_so(share, shown):
    assert markdown.percent(share) == shown


def test_the_noise_of_a_reference_is_a_root_mean_square_in_units_of_the_spread(tmp_path):
    store = Store(tmp_path / "results")
    values, stderr = np.array([1.0, 2.0, 6.0]), np.array([0.1, 0.2, 0.5])
    valuation = Valuation(values, stderr, 30, 1.0, "reference", halves=np.stack([values, values]))
    store.write(block("iris-logreg", 0, 0), [{**row, "identity": "x"} for row in value_rows(valuation, "loss")])
    (line,) = lines_of(write_summary(store, EXPERIMENTS), "Reference values")
    assert line["standard error"] == f"{np.sqrt(np.mean(stderr**2)) / np.std(values):.2g}"


def test_references_of_other_seeds_are_told_by_the_least_reliable_of_them(tmp_path):
    store, values = Store(tmp_path / "results"), np.array([1.0, 2.0, 6.0, 7.0])
    others = {0: values, 1: values, 2: values[[0, 1, 3, 2]], 4: values}
    for seed, even in others.items():
        valuation = Valuation(values, 0.1 * values, 100 * seed, 1.0, "reference", halves=np.stack([even, values]))
        rows = [{**row, "identity": "x"} for row in value_rows(valuation, "loss")]
        store.write(block("iris-logreg", seed, 0), rows)
    summary = write_summary(store, EXPERIMENTS)
    (line,) = lines_of(summary, "Reference values of other seeds")
    told = ("seeds", "trainings", "split-half Spearman")
    assert [line[head] for head in told] == ["1, 2, 4", "200", "0.8000"]
    (line,) = lines_of(summary, "Reference values")
    assert [line[head] for head in told] == ["0", "0", "1.0000"]


def test_nothing_is_reported_of_nothing(tmp_path):
    assert write_summary(Store(tmp_path / "results"), EXPERIMENTS) == ""


def test_one_seed_has_no_interval(tmp_path):
    store = Store(tmp_path / "results")
    rows = [{"metric": "spearman", "value": 0.5, "evaluations": 1, "seconds": 2.0}]
    store.write(Unit("agreement", "some-task", "acme", 0), rows)
    (table,) = tables_in(headline(store))
    assert table["acme"]["some-task"] == "0.500, 2 s"
    assert "acme" in write_summary(store, EXPERIMENTS)


def test_seeds_are_those_of_the_method_and_rows_of_two_definitions_are_not_pooled(tmp_path):
    """As where two profiles share a folder: their units need other references, and measure other things."""
    store = Store(tmp_path / "results")
    references = [Unit("values", "some-task", "reference", 0, {"block": 0, "permutations": p}) for p in (10, 20)]
    for seed in range(3):
        rows = [{"metric": "spearman", "value": 0.5 + seed / 10, "evaluations": 1, "seconds": 2.0}]
        store.write(Unit("agreement", "some-task", "acme", seed), rows)
        for need in references[: 2 if seed == 0 else 0]:
            store.write(Unit("agreement", "some-task", "knn", seed, needs=(need,)), rows)
    store.write(Unit("agreement", "some-task", "random", 0), rows)
    (table,) = tables_in(headline(store))
    methods = next(t for t in tables_in(write_summary(store, EXPERIMENTS)) if "trainings" in t["acme"])
    assert table["acme"]["some-task"].endswith("], 2 s")
    assert table[look("random").label]["some-task"] == "0.700 (1 seed), 2 s"
    assert table[look("knn").label]["some-task"] == "2 definitions"
    assert methods[look("knn").label]["Spearman [95 % CI]"] == methods[look("knn").label]["time (s)"] == "2 definitions"
    draw_figures(store, ["agreement"], EXPERIMENTS)


def test_experiments_stand_alone(results, tmp_path):
    for experiment in ("agreement", "fidelity", "overhead"):
        store = Store(tmp_path / experiment)
        (store.root / "rows").mkdir()
        for path in (results.root / "rows").glob(f"{experiment}.*"):
            (store.root / "rows" / path.name).symlink_to(path)
        assert tables_in(write_summary(store, EXPERIMENTS))


def test_a_section_is_replaced_and_nothing_else_even_twice(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before {BEGIN} old {END} after {END}")
    for words in ("new", "newer \\1 words"):
        update_section(page, words)
        assert page.read_text() == f"before {BEGIN}\n\n{words}\n\n{END} after {END}"


def test_marks_that_name_a_folder_are_for_it_alone(results, tmp_path):
    store = Store(tmp_path / "mine")
    (store.root / "rows").symlink_to(results.root / "rows")
    between = "\n\n".join(
        f"{begin}\nold\n{end}" for begin, end in map(marks, ("summary", "agreement of mine", "agreement of yours"))
    )
    page = tmp_path / "page.md"
    page.write_text(between)
    update_page(page, store, EXPERIMENTS)
    told = EXPERIMENTS["agreement"].table(results.read_all("agreement"))
    begin, end = marks("agreement of mine")
    assert page.read_text() == between.replace(f"{begin}\nold\n{end}", f"{begin}\n\n{told}\n\n{end}")


def test_a_page_without_marks_for_what_a_folder_holds_is_left_as_it_is(tmp_path):
    store = Store(tmp_path / "results")
    unit = Unit("detection", "iris-logreg", "knn", 0)
    store.write(unit, [{"metric": "auroc", "value": 0.5}])
    page = tmp_path / "page.md"
    page.write_text(before := f"{BEGIN}\n\nthe headline of another folder\n\n{END}\n")
    with pytest.raises(ValueError, match=r"page.md' has no marks for the tables of .*put a line '<!-- NAME: begin"):
        update_page(page, store, EXPERIMENTS)
    assert page.read_text() == before
