"""The GPU benchmark works: all of it, on tiny shapes, under Triton's interpreter; and it finds what is wrong."""

import math
from functools import partial

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from inrun_bench.attribution.kernels.backend import interpreter_obstacle
from inrun_bench.experiments import gpu
from inrun_bench.experiments.gpu import kernels, steps
from inrun_bench.experiments.gpu.__main__ import main
from inrun_bench.experiments.gpu.rounds import take_turns, wall_seconds
from inrun_bench.figures import SETTINGS, draw_figures
from inrun_bench.figures.gpu import draw
from inrun_bench.store import SCHEMA, Store
from tasks.architectures import mlp
from tests.inrun_bench.tiny import PLAN, files

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure for minutes"),
    pytest.mark.skipif(interpreter_obstacle() is not None, reason=str(interpreter_obstacle())),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # the compiler's own
]
CEILINGS = {("tflops", "float32"): 1.0, ("tflops", "bfloat16"): 1.0, ("tbytes_per_s", "copy"): 1.0}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Everything, once; for reading only."""
    folder = tmp_path_factory.mktemp("gpu") / "results"
    return main(["--out", str(folder)]), Store(folder, create=False)


@pytest.fixture(scope="module")
def layer():
    """The unit of one layer's kernels."""
    return next(unit for unit in gpu.units(PLAN) if unit.task == "tiny-bfloat16")


@pytest.fixture
def replace(monkeypatch):
    """Put something else in the place of kernels; given each kernel's twin."""
    genuine = kernels._kernel_calls

    def put(**by_name):
        def calls(inputs):
            found = genuine(inputs)
            twins = {name.replace("_", "-"): found[f"{name.replace('_', '-')}-torch"] for name in by_name}
            return found | {name: partial(by_name[name.replace("-", "_")], twin) for name, twin in twins.items()}

        monkeypatch.setattr(kernels, "_kernel_calls", calls)

    return put


def check(unit):
    return pd.DataFrame(kernels.measure_kernels(unit, CEILINGS))


# --- the whole of it ---


def test_the_command_measures_everything_and_nothing_fails(measured):
    code, store = measured
    rows = pd.concat([store.read(unit) for unit in gpu.units(PLAN)])
    assert rows[rows["status"] != "ok"][["task", "method", "message"]].values.tolist() == []
    assert code == 0
    assert set(rows["device"]) == {"cpu (interpreter)"}


def test_every_kernel_is_right_and_repeatable_and_timed(measured):
    rows = measured[1].read_all("gpu").query("task in @gpu.TINY_LAYERS")
    errors = rows.query("metric == 'error'")
    assert (errors["value"] <= errors["dtype"].map(gpu.TOLERANCE)).all()
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
    for (optimizer, compiled), own in rows.groupby(["optimizer", "compiled"]):
        assert set(own["method"]) == set(steps._variants(optimizer, compiled != "no")) - {"validation"}
        assert (own["value"] > 0).all()
    forced = measured[1].read_all("gpu").query("task == 'mlp-tiny' and method.str.startswith('inrun-first-')")
    for method, own in forced.groupby("method"):
        assert set(own["rule"]) == {method.removeprefix("inrun-first-")}


def test_what_is_there_is_not_measured_again(measured, capsys):
    before = files(measured[1].root)
    assert main(["--out", str(measured[1].root)]) == 0
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


def test_a_step_that_fails_leaves_the_others_alone(monkeypatch):
    unit = next(unit for unit in gpu.units(PLAN) if unit.task == "mlp-tiny")
    monkeypatch.setattr(steps, "_variants", lambda *_: ["regular", "validation", "inrun-nonsense"])
    rows = pd.DataFrame(steps.measure_steps(unit, CEILINGS))
    assert rows[rows["status"] == "error"]["method"].tolist() == ["inrun-nonsense"]
    assert set(rows["metric"]) >= {"throughput_ratio", "step_ratio", "peak_ratio", "mfu", "samples_per_s"}


def test_failures_make_the_command_fail(monkeypatch, tmp_path, capsys, replace):
    replace(gram_dot=out_of_memory)
    few = gpu.units(PLAN)[:2]
    monkeypatch.setattr("inrun_bench.experiments.gpu.__main__.units", lambda _plan: few)
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert "gram-dot: OutOfMemoryError" in capsys.readouterr().err


# --- counting and timing ---


@pytest.mark.parametrize("name", kernels.TINY_LAYERS)
def test_work_is_what_the_tensors_say(name):
    layer = kernels.TINY_LAYERS[name]
    inputs = kernels._inputs(layer)
    calls = kernels._kernel_calls(inputs)
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
    rounds, failed = take_turns(calls, {"rounds": 3, "budget": 60.0}, wall_seconds)
    assert "".join(seen[12:]) == "abcbcacab"  # after four of each
    assert [list(taken) for taken in rounds] == [list("abc")] * 3
    assert failed == {}


def test_a_call_that_fails_late_is_in_no_round():
    numbers = iter(range(6))
    calls = {"good": lambda: None, "late": lambda: 1 / (5 - next(numbers))}
    rounds, failed = take_turns(calls, {"rounds": 3, "budget": 60.0}, wall_seconds)
    assert [list(taken) for taken in rounds] == [["good"]] * 3
    assert "ZeroDivisionError" in failed["late"]


def test_the_budget_ends_the_rounds_but_not_the_first_three():
    rounds, _ = take_turns({"a": lambda: None}, {"rounds": 50, "budget": 0.0}, wall_seconds)
    assert len(rounds) == 3


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
    assert {ax.get_title("right") for ax in figure.axes} == {"NVIDIA H200"}


def test_nothing_is_drawn_of_nothing(tmp_path, measured):
    assert draw(SCHEMA.empty_table().to_pandas()).axes == []
    assert draw(measured[1].read_all("gpu").query("metric == 'error'")).axes == []
    assert draw_figures(Store(tmp_path / "empty"), ["gpu"]) == []


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
