"""A program that prints the report on Hopper, and launches kernels on a made-up GPU of that kind: compiled, not run.

What a launch makes of its arguments (a size of one becomes a constant, a multiple of sixteen is known to be one, tensor
descriptors are described by the compiler) is what the interpreter never sees, and no compilation ahead of time that
makes up its own arguments.
"""

import contextlib
import io
import json
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from inrun_bench.attribution.products.triton import wgrad_work
from inrun_bench.attribution.products.triton.adam import adam_secant_triton
from inrun_bench.attribution.products.triton.embedding import embedding_dot_triton
from inrun_bench.attribution.products.triton.gram import gram_dot_triton
from inrun_bench.attribution.products.triton.norm import norm_dot_triton
from inrun_bench.attribution.products.triton.project import project_dot_triton
from inrun_bench.experiments.gpu import hopper
from inrun_bench.experiments.gpu.kernels import LAYERS
from inrun_bench.experiments.gpu.passes import PASSES

run, compiled = JITFunction.run, {}


class Hopper:
    """As much of a driver as the compiler asks for."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


def run_up_to_the_launch(self, *args, grid, warmup, **kwargs):
    kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
    boxes = [described["block_size"] for described in getattr(kernel.metadata, "tensordesc_meta", None) or []]
    compiled[kernel.hash] = {
        "kernel": self.__name__,
        "shared_bytes": kernel.metadata.shared,
        "wgmma": kernel.asm["ptx"].count("wgmma.mma_async"),
        "boxes": boxes,
    }
    return kernel


def launch_products(layer, bias):
    kind = getattr(torch, layer.dtype)
    a = torch.empty(layer.samples, layer.positions, layer.d_in, dtype=kind)
    b = torch.empty(layer.samples, layer.positions, layer.d_out, dtype=kind)
    a_val, b_val = (torch.empty(layer.validation, x.shape[-1], dtype=kind) for x in (a, b))
    probe = torch.empty(1, layer.d_out, layer.d_in)
    wgrad_work.launch(a, b, probe, torch.empty(1, layer.d_out) if bias else None, None, "ieee")
    x, y, q = (b, a, probe) if layer.d_out >= layer.d_in else (a, b, probe.transpose(1, 2))
    project_dot_triton(x, y, q.to(kind), None, "ieee")
    project_dot_triton(x, y.float(), q.to(kind), None, "ieee")  # as autocast leaves the input of a linear map
    gram_dot_triton(a, b, a_val, b_val, "ieee")


def launch_passes(sizes):
    kind = getattr(torch, sizes["dtype"])
    a = torch.empty(sizes["samples"], sizes["positions"], sizes["width"], dtype=kind)
    q, table = torch.empty(sizes["width"]), torch.empty(sizes["vocabulary"], sizes["width"])
    norm_dot_triton(a, a, q, q, 1e-5, True)
    norm_dot_triton(a, a, q, None, 1e-5, False)
    adam_secant_triton([table], [table], [(table, table)], [[1.0] * 5], 1e-8, "decoupled")
    embedding_dot_triton(torch.empty(a.shape[:2], dtype=torch.int64), a, table, None)


def printed_report():
    sys.argv[1:] = []
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        hopper.main()
    return printed.getvalue().strip()


def launch(layers, passes):
    driver.set_active(Hopper())
    JITFunction.run = run_up_to_the_launch
    wgrad_work._processors = lambda _device: 132
    for name in layers:
        launch_products(LAYERS[name], bias=name.startswith("gpt2"))  # Llama's maps have none
    for name in passes:
        launch_passes(PASSES[name])
    return list(compiled.values())


if __name__ == "__main__":
    layers, passes = (names.split() for names in sys.argv[1:])
    print(json.dumps({"report": printed_report(), "launched": launch(layers, passes)}))
