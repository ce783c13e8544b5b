"""The GPU benchmark works: all of it, on tiny shapes, under Triton's interpreter; and it finds what is wrong."""

import contextlib
import dataclasses
import math
import multiprocessing
import signal
import subprocess
import sys
import time
from functools import partial

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from inrun_bench.attribution.products.backend import interpreter_obstacle
from inrun_bench.cli import main
from inrun_bench.experiments import gpu
from inrun_bench.experiments.gpu import kernels, steps, supervisor
from inrun_bench.experiments.gpu.alone import MEASURED
from inrun_bench.experiments.gpu.checks import TOLERANCE
from inrun_bench.experiments.gpu.figure import draw
from inrun_bench.experiments.gpu.order import Planned, in_order
from inrun_bench.experiments.gpu.rounds import Attempt, DeviceLostError, attempt_rounds, recover
from inrun_bench.experiments.gpu.supervisor import START_SECONDS, supervise
from inrun_bench.experiments.gpu.told import told
from inrun_bench.experiments.gpu.worker import Answer
from inrun_bench.report.figures import SETTINGS, draw_figures
from inrun_bench.runs.run_rows import RunRows
from inrun_bench.runs.store import SCHEMA, Store
from inrun_bench.runs.timing import described, wall_seconds
from inrun_bench.runs.unit import Unit
from tasks.architectures import mlp
from tests.inrun_bench import gpu_hazards
from tests.inrun_bench.tiny import PLAN, files

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure for minutes"),
    pytest.mark.skipif(interpreter_obstacle() is not None, reason=str(interpreter_obstacle())),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # the compiler's own
]
CEILINGS = {("tflops", "float32"): 1.0, ("tflops", "bfloat16"): 1.0, ("tbytes_per_s", "copy"): 1.0}
KERNELS = ["wgrad-dot", "project-dot", "gram-dot"]


@contextlib.contextmanager
def started_by(forking):
    """Have workers forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda _method: forking)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory, forking):
    """Everything, once; for reading only."""
    folder = tmp_path_factory.mktemp("gpu") / "results"
    with started_by(forking):
        return main(["run", "gpu", "--out", str(folder)]), Store(folder, create=False)


@pytest.fixture(scope="module")
def layer():
    """The unit of one layer's kernels."""
    return next(unit for unit in gpu.units(PLAN) if unit.task == "tiny-bfloat16")


@pytest.fixture
def replace(monkeypatch):
    """Put something else in the place of kernels; given each kernel's twin."""
    genuine = kernels._kernel_calls

    def put(**by_name):
        def calls(inputs, names):
            found = genuine(inputs, names)
            twins = {name.replace("_", "-"): found[f"{name.replace('_', '-')}-torch"] for name in by_name}
            return found | {name: partial(by_name[name.replace("-", "_")], twin) for name, twin in twins.items()}

        monkeypatch.setattr(kernels, "_kernel_calls", calls)

    return put


def check(unit):
    return pd.DataFrame(kernels.measure_kernels(unit, CEILINGS, Attempt()))


# --- the whole of it ---


def test_the_command_measures_everything_and_nothing_fails(measured):
    code, store = measured
    rows = pd.concat([store.read(unit) for unit in gpu.units(PLAN)])
    assert rows[rows["status"] != "ok"][["task", "method", "message"]].values.tolist() == []
    assert code == 0
    assert set(rows["device"]) == {"cpu (interpreter)"}


def test_every_kernel_is_right_and_repeatable_and_timed(measured):
    rows = measured[1].read_all("gpu").query("task in @kernels.TINY_LAYERS")
    errors = rows.query("metric == 'error'")
    assert (errors["value"] <= errors["dtype"].map(TOLERANCE)).all()
    assert (rows.query("metric == 'deterministic'")["value"] == 1).all()
    twins = {f"{kernel}{twin}" for kernel in ("wgrad-dot", "project-dot", "gram-dot") for twin in ("", "-torch")}
    for _, own in rows.groupby("task"):
        assert set(own.query("metric == 'error'")["method"]) == twins
        for metric in ("tflops", "tbytes_per_s", "roofline_share", "ratio_to_cublas"):
            found = own[own["metric"] == metric]
            assert set(found["method"]) == {"cublas", *twins}
            assert (found["value"] > 0).all()
            assert (found["seconds"] > 0).all()


def test_every_step_is_compared_with_the_regular_one(measured):
    rows = measured[1].read_all("gpu").query("metric == 'throughput_ratio'")
    done = set(zip(rows["optimizer"], rows["compiled"], strict=True))
    assert done == {("adamw", "no"), ("sgd", "no"), ("sgd", "aot_eager")}
    for (_, variants), own in rows.groupby(["task", "variants"]):
        assert set(own["method"]) == set(variants.split()) - {"validation"}
        assert (own["value"] > 0).all()
    forced = measured[1].read_all("gpu").query("task == 'mlp-tiny' and method.str.startswith('inrun-first-')")
    for method, own in forced.groupby("method"):
        assert set(own["rule"]) == {method.removeprefix("inrun-first-")}


def test_what_is_there_is_not_measured_again(measured, capsys):
    before = files(measured[1].root)
    assert main(["run", "gpu", "--out", str(measured[1].root)]) == 0
    assert files(measured[1].root) == before
    assert "0 units done" in capsys.readouterr().out


# --- what is wrong is found ---


def wrong(twin):
    gradient, scores = twin()
    return gradient, 1.1 * scores


def restless(twin):
    gradient, scores = twin()
    return gradient, scores * (1 + 1e-4 * torch.rand(()))


def unwritten(twin):
    gradient, scores = twin()
    gradient[:, 0] = math.nan
    return gradient, scores


def out_of_memory(_twin):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("spoiled", "metric"), [(wrong, "error"), (restless, "deterministic"), (unwritten, "error")])
def test_a_kernel_that_is_not_right_is_an_error(replace, layer, spoiled, metric):
    replace(wgrad_dot=spoiled)
    rows = check(layer).query("method == 'wgrad-dot' and status == 'error'")
    assert metric in set(rows["metric"])
    assert rows["message"].str.len().gt(10).all()


def test_a_kernel_that_fails_leaves_the_others_alone(replace, layer):
    replace(project_dot=out_of_memory)
    rows = check(layer)
    failed = rows[rows["method"] == "project-dot"]
    assert failed["status"].tolist() == ["error"]
    assert failed["message"].str.contains("out of memory").all()
    timed = set(rows[rows["metric"] == "tflops"]["method"])
    assert timed >= {"cublas", "wgrad-dot-torch", "project-dot-torch", "gram-dot", "gram-dot-torch"}


def test_a_step_that_fails_leaves_the_others_alone():
    settings = {"optimizer": "sgd", "compiled": "no", "rounds": 1, "budget": 0.0}
    unit = Unit("gpu", "mlp-tiny", "steps", 0, {**settings, "variants": "regular validation inrun-nonsense"})
    rows = pd.DataFrame(steps.measure_steps(unit, CEILINGS, Attempt()))
    assert rows[rows["status"] == "error"]["method"].tolist() == ["inrun-nonsense"]
    assert set(rows["metric"]) >= {"throughput_ratio", "step_ratio", "peak_ratio", "mfu", "samples_per_s"}


def test_a_compiled_step_with_scores_is_compiled_once_for_training_and_once_for_validation():
    """An engine's first step runs in a mode of its own, for which everything would be compiled a second time."""
    torch.compiler.reset()
    counters.clear()
    settings = {"optimizer": "sgd", "compiled": "aot_eager", "variants": "inrun-first", "rounds": 1, "budget": 0.0}
    rows = steps.measure_steps(Unit("gpu", "gpt-tiny", "steps", 0, settings), CEILINGS, Attempt())
    assert {row["method"] for row in rows if row["metric"] == "tokens_per_s"} == {"inrun-first"}
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("broken_call", ["synchronize", "empty_cache"])
def test_a_gpu_that_does_nothing_more_is_said_to_be_lost(monkeypatch, broken_call):
    def refuse():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for name, call in {"synchronize": lambda: None, "empty_cache": lambda: None, broken_call: refuse}.items():
        monkeypatch.setattr(torch.cuda, name, call)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DeviceLostError, match="what the method said"):
        recover("what the method said")


def test_what_is_avoided_is_not_run_and_the_rest_is(layer):
    begun = []
    rows = pd.DataFrame(kernels.measure_kernels(layer, CEILINGS, Attempt(begun.append, {"wgrad-dot": "it hung"})))
    twins = {f"{kernel}-torch" for kernel in KERNELS}
    assert set(begun) == set(rows["method"]) == {"cublas", "project-dot", "gram-dot", *twins}


def test_without_ceilings_all_is_measured_but_their_shares(layer):
    metrics = set(pd.DataFrame(kernels.measure_kernels(layer, {}, Attempt()))["metric"])
    assert metrics >= {"error", "tflops", "tbytes_per_s", "ratio_to_cublas"}
    assert "roofline_share" not in metrics


@pytest.mark.usefixtures("here")
def test_failures_make_the_command_fail(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "measure", gpu_hazards.measure)
    unit = Unit("gpu", "task", "raising", 0, {"device": "made up", "breaks": "raises"})
    monkeypatch.setattr("inrun_bench.experiments.gpu.alone.in_order", lambda seed: [Planned(unit, 1.0)])
    assert main(["run", "gpu", "--out", str(tmp_path / "out")]) == 1
    assert "task bad: ZeroDivisionError: by zero" in capsys.readouterr().err


# --- the order, the budget, and what breaks ---


def test_what_matters_most_comes_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    planned = in_order(0)
    units = [one.unit for one in planned]
    assert units[0].method == "ceilings"
    assert [(u.task, u.settings["optimizer"], u.settings["compiled"]) for u in units[1:5]] == [
        ("gpt2-small", "adamw", "no"),
        ("gpt2-small", "sgd", "no"),
        ("gpt2-small", "adamw", "inductor"),
        ("gpt2-small", "sgd", "inductor"),
    ]
    assert {u.settings["variants"] for u in units[1:5]} == {"regular validation inrun-first"}
    assert units[5].settings["variants"] == "regular validation inrun-first-lagged inrun-first-lagged-joint"
    assert [u.settings.get("kernels") for u in units[6:14]] == ["wgrad-dot"] * 8
    assert all(u.task.startswith(("gpt2-small", "llama3-8b")) for u in units[5:14])
    kinds = list(dict.fromkeys(u.method for u in units[14:]))
    assert [kind for kind in kinds if kind != "kernels"] == ["steps", "passes", "trainings", "approximations"]
    assert kinds.index("steps") < kinds.index("kernels") < kinds.index("trainings")
    assert START_SECONDS + sum(one.seconds for one in planned[:14]) < 300
    assert START_SECONDS + sum(one.seconds for one in planned) < 720
    assert len(set(units)) == len(units)


def hazard(method, seconds=0.0, **settings):
    return Planned(Unit("gpu", "task", method, 0, settings), seconds)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def outcome(store, planned):
    """Status by method, and all messages."""
    rows = store.read(planned.unit)
    return dict(zip(rows["method"], rows["status"], strict=True)), " ".join(rows["message"]).strip()


BREAKING = {  # what a method does, and what is said of it
    "dies": "WorkerDied: the process ended with code -9",
    "hangs": "TimeoutError: not done after 2 s",
    "loses the device": "illegal memory access",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory, forking):
    """A run whose units do their worst, one after another, between two that are well; and what was told of it."""
    store, finished = Store(tmp_path_factory.mktemp("gpu") / "broken"), []
    names = ("first", *BREAKING, "second", "raises", "last")
    todo = {name: hazard(name.replace(" ", "-"), 1.0, breaks=name) for name in names}
    with started_by(forking):
        assert (
            supervise(
                list(todo.values()), RunRows(store, MEASURED), gpu_hazards.measure, limit=2.0, say=finished.append
            )
            == []
        )
    return store, todo, finished


@pytest.mark.parametrize("breaks", BREAKING)
def test_a_method_that_breaks_the_process_costs_only_itself(broken, breaks):
    store, todo, _ = broken
    status, message = outcome(store, todo[breaks])
    assert status == {"good": "ok", "late": "ok", "bad": "error"}
    assert BREAKING[breaks] in message


def test_units_beside_those_that_break_are_whole(broken):
    store, todo, finished = broken
    for name in ("first", "second", "last"):
        assert outcome(store, todo[name]) == ({"good": "ok", "bad": "ok", "late": "ok"}, "")
    assert [one.planned for one in finished] == list(todo.values())


def test_a_unit_that_raises_leaves_its_process_alone(broken):
    store, todo, _ = broken
    assert outcome(store, todo["raises"]) == ({"bad": "error"}, "ZeroDivisionError: by zero")
    assert set(store.read(todo["second"].unit)["pid"]) == set(store.read(todo["last"].unit)["pid"])


def test_a_unit_is_told_with_its_time_results_and_failures(broken):
    text = told(broken[2][1], budget=500.0)
    assert "task dies" in text
    assert "(1 planned, " in text
    assert " s left)" in text
    assert "failed: bad: WorkerDied" in text


class Here:
    """A worker that is no process."""

    def __init__(self, measure):
        self.measure, self.running = measure, False

    def try_unit(self, unit, needs, avoided, limit, stopped):
        self.running, begun = True, []
        try:
            return Answer(self.measure(unit, needs, Attempt(begun.append, avoided)))
        except ZeroDivisionError as error:
            return Answer(message=described(error), method=begun[-1])

    def end(self):
        pass


class Dying(Here):
    """A worker whose process dies of whatever it is to run."""

    def try_unit(self, unit, needs, avoided, limit, stopped):
        return Answer(message="it died", method=f"method {len(avoided)}", lost=True)


def test_a_unit_that_every_process_dies_of_ends(monkeypatch, store):
    monkeypatch.setattr(supervisor, "Worker", Dying)
    unit = hazard("hopeless")
    assert supervise([unit], RunRows(store, MEASURED), gpu_hazards.measure, limit=60.0) == []
    assert outcome(store, unit)[0] == {"method 0": "error", "method 1": "error", "method 2": "error"}


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(supervisor, "Worker", Here)


@pytest.mark.usefixtures("here")
def test_the_budget_begins_nothing_that_would_not_end_and_the_next_run_goes_on(store):
    todo = [hazard("short", 1.0), hazard("long", 1000.0), hazard("short too", 1.0)]
    left = supervise(todo, RunRows(store, MEASURED), gpu_hazards.measure, limit=60.0, budget=START_SECONDS + 60.0)
    assert [one.planned.unit.method for one in left] == ["long"]
    assert "more than the budget has left" in left[0].reason
    finished = []
    assert supervise(todo, RunRows(store, MEASURED), gpu_hazards.measure, limit=60.0, say=finished.append) == []
    assert [one.planned.unit.method for one in finished] == ["long"]


@pytest.mark.usefixtures("here")
def test_a_process_that_must_be_started_counts_against_the_budget(store):
    todo = [hazard("first", 10.0), hazard("second", 10.0)]
    assert len(supervise(todo, RunRows(store, MEASURED), gpu_hazards.measure, limit=60.0, budget=START_SECONDS)) == 2
    assert supervise(todo, RunRows(store, MEASURED), gpu_hazards.measure, limit=60.0, budget=START_SECONDS + 11.0) == []


@pytest.mark.usefixtures("here")
def test_what_failed_is_tried_again_after_what_was_never_tried(store):
    failing, fresh = hazard("raising", breaks="raises"), hazard("fresh")
    supervise([failing], RunRows(store, MEASURED), gpu_hazards.measure, limit=60.0)
    finished = []
    supervise([failing, fresh], RunRows(store, MEASURED), gpu_hazards.measure, limit=60.0, say=finished.append)
    assert [one.planned.unit.method for one in finished] == ["fresh", "raising"]


def test_a_stop_ends_at_once_what_is_being_measured_and_begins_no_more(store, forking, tmp_path):
    pid = tmp_path / "pid"
    todo = [hazard("first"), hazard("hanging", breaks="hangs", pid=str(pid)), hazard("last")]
    with started_by(forking):
        left = supervise(
            todo, RunRows(store, MEASURED), gpu_hazards.measure, limit=1000.0, stopped=lambda: written(pid)
        )
    assert [one.planned.unit.method for one in left] == ["hanging", "last"]
    assert not gpu_hazards.alive(int(pid.read_text()))
    assert [store.has(planned.unit) for planned in todo] == [True, False, False]


def test_sigterm_ends_the_command_and_leaves_what_is_finished(tmp_path):
    out = tmp_path / "results"
    command = [sys.executable, "-W", "ignore", "-m", "inrun_bench.experiments.gpu", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "machine ceilings" in line:  # the lines come as they are said, or this would wait for the end
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert "left: gpt-tiny steps: stopped" in rest
    assert Store(out, create=False).has(in_order(0)[0].unit)
    assert not list(out.glob("rows/.*"))


def test_a_worker_ends_with_whoever_started_it(forking, tmp_path):
    starter = forking.Process(target=gpu_hazards.hang, args=(tmp_path / "pid",))
    starter.start()
    wait_for(lambda: written(tmp_path / "pid"))
    worker = int((tmp_path / "pid").read_text())
    assert gpu_hazards.alive(worker)
    starter.kill()
    wait_for(lambda: not gpu_hazards.alive(worker), seconds=20)


def written(pid):
    return pid.exists() and pid.read_text().endswith("\n")


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- counting and timing ---


@pytest.mark.parametrize("name", kernels.TINY_LAYERS)
def test_work_is_what_the_tensors_say(name):
    layer = kernels.TINY_LAYERS[name]
    inputs = kernels._inputs(layer)
    calls = kernels._kernel_calls(inputs, KERNELS)
    reads = {"cublas": "a b", "wgrad-dot": "a b probe", "project-dot": "a b probe", "gram-dot": "a b a_val b_val"}
    for kernel, read in reads.items():
        result = calls["cublas" if kernel == "cublas" else f"{kernel}-torch"]()
        results = result if isinstance(result, tuple) else (result,)
        moved = sum(inputs[n].nbytes for n in read.split()) + sum(r.nbytes for r in results)
        operations, counted = kernels.work(kernel, layer)
        assert counted == moved
        if kernel != "gram-dot":
            with FlopCounterMode(display=False) as counter:
                calls["cublas"]()
            assert operations == counter.get_total_flops()


def test_the_arithmetic_of_a_model_is_that_of_its_matrices():
    expected = 2 * (6 * 8 + 8 * 8 + 8 * 8 + 8 * 3)
    assert steps._forward_flops(lambda: mlp(6, 8, 3), torch.zeros(1, 6)) == expected


def test_calls_take_turns_and_each_round_starts_with_another():
    seen = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    rounds, failed = attempt_rounds(calls, {"rounds": 3, "budget": 60.0}, wall_seconds, Attempt(), warm_up=4)
    assert "".join(seen[12:]) == "abcbcacab"  # after four of each
    assert [list(taken) for taken in rounds] == [list("abc")] * 3
    assert failed == {}


def test_a_call_that_fails_late_is_in_no_round():
    numbers = iter(range(6))
    calls = {"good": lambda: None, "late": lambda: 1 / (5 - next(numbers))}
    rounds, failed = attempt_rounds(calls, {"rounds": 3, "budget": 60.0}, wall_seconds, Attempt(), warm_up=4)
    assert [list(taken) for taken in rounds] == [["good"]] * 3
    assert "ZeroDivisionError" in failed["late"]


def test_the_budget_ends_the_rounds_but_not_the_first_three():
    rounds, _ = attempt_rounds({"a": lambda: None}, {"rounds": 50, "budget": 0.0}, wall_seconds, Attempt())
    assert len(rounds) == 3


# --- tables of the documentation ---


@pytest.fixture
def tables():
    """The module that makes them, where what it needs is installed: the benchmark itself does without."""
    pytest.importorskip("tabulate")
    from inrun_bench.experiments.gpu import tables

    return tables


@pytest.fixture(scope="module")
def published(measured, tmp_path_factory):
    """The interpreter's rows as if a GPU had measured them, of GPT-2 and of Llama 3."""
    store = Store(tmp_path_factory.mktemp("gpu") / "published")
    named = {"gpt-tiny": "gpt2-small", "tiny-bfloat16": "gpt2-small-qkv", "tiny-float32": "llama3-8b-q"}
    for unit in gpu.units(PLAN):
        rows = measured[1].read(unit).to_dict("records")
        task = named.get(unit.task, unit.task)
        card = dataclasses.replace(unit, task=task, settings={**unit.settings, "device": "NVIDIA H100"}, needs=())
        kept = [{name: value for name, value in row.items() if not pd.isna(value)} for row in rows]
        store.write(card, [{**row, "task": task, "device": "NVIDIA H100"} for row in kept])
    (store.root / "manifest.json").write_text(
        '[{"device": "NVIDIA H100", "started": "2030-01-02T03:04:05", "versions": {"torch": "9.8.7", "triton": "6.5"}}]'
    )
    return store


def test_the_documentation_shows_what_was_measured(repository, tables):
    page = (repository / "docs" / "kernels.md").read_text()
    shown = page.partition(tables.BEGIN)[2].partition(tables.END)[0].strip()
    assert shown == tables.tables(repository / "results" / "gpu")


def test_the_readme_shows_how_far_the_targets_are(repository, tables):
    page = (repository / "README.md").read_text()
    shown = page.partition(tables.BEGIN)[2].partition(tables.END)[0].strip()
    assert shown == tables.targets(repository / "results" / "gpu")


def test_the_tables_say_card_date_and_what_was_reached(published, tables):
    text = tables.tables(published.root)
    rows = published.read_all("gpu")
    assert "### NVIDIA H100, 2030-01-02 (torch 9.8.7, triton 6.5)" in text
    assert "not yet measured" not in text
    ratios = rows.query("metric == 'ratio_to_cublas' and method == 'wgrad-dot'").set_index("task")["value"]
    assert f"GPT-2 small {ratios['gpt2-small-qkv']:.2f} to" in text
    assert f"Llama-3 8B {ratios['llama3-8b-q']:.2f} to" in text
    net = rows.query("metric == 'net_throughput_ratio' and method == 'inrun-first' and task == 'gpt2-small'")["value"]
    assert f"{net.min():.2f} to {net.max():.2f}" in text
    for row in rows.query("metric == 'mfu'").drop_duplicates(["task", "optimizer", "compiled", "method"]).itertuples():
        assert f" {row.value:.3f} " in text
    for row in rows.query("metric in ('ratio_to_cublas', 'ratio_to_torch')").itertuples():
        assert row.method == "cublas" or row.method.endswith("-torch") or f"{row.value:.3f} of " in text


def test_the_interpreters_rows_are_no_measurement(measured, tables):
    assert tables.tables(measured[1].root).startswith("Nothing has been measured on a GPU yet.")


# --- the figure ---


def paint(rows):
    with mpl.rc_context(SETTINGS):
        figure = draw(rows)
        figure.draw_without_rendering()
    return figure


def test_the_figure_shows_the_ratios(measured):
    rows = measured[1].read_all("gpu")
    names = ("ratio_to_cublas", "throughput_ratio", "net_throughput_ratio")
    own = rows[~rows["method"].isin(["cublas", "regular", "validation"])]
    figure = paint(rows)
    assert len(figure.axes) == 3
    for ax, name in zip(figure.axes, names, strict=True):
        heights = sorted(bar.get_height() for bar in ax.patches)
        assert heights == pytest.approx(sorted(own[own["metric"] == name]["value"]))
    assert all("interpreter" in ax.get_title("right") for ax in figure.axes)
    assert (measured[1].root / "figures" / "gpu.png").stat().st_size > 1000


def test_measurements_take_the_place_of_the_interpreters(measured):
    rows = measured[1].read_all("gpu")
    figure = paint(pd.concat([rows, rows.assign(device="NVIDIA H200")]))
    assert {ax.get_title("right") for ax in figure.axes} == {"NVIDIA H200: median, quartiles"}


def test_nothing_is_drawn_of_nothing(tmp_path, measured):
    assert draw(SCHEMA.empty_table().to_pandas()).axes == []
    assert draw(measured[1].read_all("gpu").query("metric == 'error'")).axes == []
    assert draw_figures(Store(tmp_path / "empty"), ["gpu"], MEASURED) == []


def test_approximations_are_measured_against_the_exact_product(measured):
    _, store = measured
    rows = store.read_all("gpu").query("task == 'gpt-text'")
    errors = rows[rows["metric"] == "score_error"].set_index("method")["value"]
    assert errors["exact"] < errors["low-rank-16"] < 0.1
    assert errors["exact"] < errors["float8"] < 0.1
    assert set(rows[rows["metric"] == "speed_to_exact"]["method"]) == {"float8", "low-rank-16"}


def test_trainings_are_counted_and_agree_with_those_of_the_processor(measured):
    rows = measured[1].read_all("gpu").query("task == 'breast-cancer-logreg'")
    assert set(rows["method"]) == {"trajectory", "optimum"}
    rates = rows[rows["metric"] == "trainings_per_s"]
    assert (rates["value"] * rates["seconds"]).round(6).tolist() == [16, 16]
    assert (rows[rows["metric"] == "largest_difference"]["value"] < 1e-5).all()
