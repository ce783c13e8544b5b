"""Kernels compiled ahead of time for Hopper, on any machine: what the compiler made of each candidate.

No GPU is needed: Triton's package brings the assembler. What can be known without running is known here: whether the
products became tensor-core instructions (``wgmma``), how many registers a thread takes and whether any spill to memory,
and whether the shared memory fits. Beside it stands the time that the chip's ceilings allow, by counting the operations
and the bytes that a kernel cannot avoid.

``python -m inrun_bench.experiments.gpu.hopper`` prints the tables; it must run without ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

__all__ = ["PRODUCTS", "Compiled", "candidates", "compile_candidate", "predicted_seconds", "report"]

PRODUCTS = ("wgrad", "project", "gram")  # kernels of matrix products, which belong on tensor cores
KERNELS = (*PRODUCTS, "norm", "embedding", "adam")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHARED_BYTES = 227 * 1024  # of a Hopper multiprocessor, for one program
REGISTERS = 255  # a thread

BEGIN, END = "<!-- hopper: begin -->", "<!-- hopper: end -->"

LAYERS = {  # d_in, d_out
    "GPT-2 small, attention in": (768, 2304),
    "GPT-2 small, perceptron": (768, 3072),
    "GPT-2 large, attention in": (1280, 3840),
    "GPT-2 large, perceptron": (1280, 5120),
    "Llama-3 8B, query": (4096, 4096),
    "Llama-3 8B, gate": (4096, 14336),
}

H200 = {"operations": {"bf16": 989e12, "fp32": 67e12}, "bytes": 4.8e12}  # a second, by the maker's data sheet


@dataclass(frozen=True)
class Compiled:
    """What became of one candidate.

    Attributes
    ----------
    kernel, dtype, config : str
        Which.
    registers, spilled_bytes, shared_bytes : int
        A thread's registers, what it spills, and a program's shared memory.
    wgmma : int
        Tensor-core instructions of Hopper's in the code.
    """

    kernel: str
    dtype: str
    config: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    wgmma: int


def candidates() -> Iterator[tuple[str, str, Any]]:
    """Yield kernel, dtype and candidate of all that a launcher may choose from."""
    for name in KERNELS:
        module = _module(name)
        if name == "wgrad":
            yield from ((name, "fp32" if config.single else "bf16", config) for config in module.CONFIGS)
            continue
        yield from ((name, "bf16", config) for config in module.CONFIGS)
        yield from ((name, "fp32", config) for config in getattr(module, "CONFIGS_FLOAT32", module.CONFIGS))


def compile_candidate(name: str, dtype: str, config: Any) -> Compiled:
    """Compile one candidate for compute capability 9.0 and read the result; float32 products as tf32."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = _module(name)
    precision = {"input_precision": "tf32"} if dtype == "fp32" and name in PRODUCTS else {}
    constants = module.constexprs(config, **precision)
    if name == "wgrad":
        types, ones, attributes = module.signature(config, DTYPES[dtype])
        constants |= ones
        config = asdict(config)
    else:
        types, attributes = module.signature(dtype), module.attributes()
    source = ASTSource(getattr(module, f"{name}_kernel"), types, constants, attributes)
    options = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        shown = subprocess.run(  # noqa: S603 - a tool of Triton's package
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", shown)}
    return Compiled(
        kernel=name,
        dtype=dtype,
        config=", ".join(f"{key.lower()} {value}" for key, value in config.items() if value is not False),
        registers=usage["REG"],
        spilled_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=int(compiled.metadata.shared),
        wgmma=compiled.asm["ptx"].count("wgmma.mma_async"),
    )


def predicted_seconds(samples: int, positions: int, d_in: int, d_out: int, dtype: str = "bf16") -> tuple[float, float]:
    """Return the least time that an H200 allows the weight gradient with scores, and without.

    Both multiply ``2 B T d_in d_out`` operations and read inputs and output gradients; both write the gradient, and
    with scores the probe is read and dotted once a sample, from the L2 cache, at ``2 B d_in d_out`` operations on
    ordinary cores. The time is that of the slower of arithmetic and memory.
    """
    size = 2 if dtype == "bf16" else 4
    rows = samples * positions
    product = 2 * rows * d_in * d_out / H200["operations"][dtype]  # type: ignore[index]
    moved = (rows * (d_in + d_out) * size + 4 * d_in * d_out) / H200["bytes"]  # type: ignore[operator]
    dots = 2 * samples * d_in * d_out / H200["operations"]["fp32"]  # type: ignore[index]
    with_scores = max(product + dots, moved + 4 * d_in * d_out / H200["bytes"])  # type: ignore[operator]
    return with_scores, max(product, moved)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"inrun_bench.attribution.products.triton.{name}")


def report() -> str:
    """Compile all candidates and return two Markdown tables: what became of them, and the least times of layers."""
    compiled = [asdict(compile_candidate(*candidate)) for candidate in candidates()]
    least = []
    for name, (d_in, d_out) in LAYERS.items():
        seconds, plain = predicted_seconds(16, 1024, d_in, d_out)
        least.append(
            {
                "layer": name,
                "d_in x d_out": f"{d_in} x {d_out}",
                "weight gradient (us)": f"{plain * 1e6:.0f}",
                "with scores (us)": f"{seconds * 1e6:.0f}",
                "share": f"{plain / seconds:.3f}",
            }
        )
    return f"{_markdown(compiled)}\n\n{_markdown(least)}"


def _markdown(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows])


def main() -> None:
    """Print the report, or put it between the marks of a Markdown file (``--into FILE``)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--into", type=Path, help=f"a file that holds the lines {BEGIN!r} and {END!r}")
    into: Path | None = parser.parse_args().into
    if into is None:
        print(report())
        return
    head, begin, rest = into.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        parser.error(f"{into} must hold the lines {BEGIN!r} and {END!r}")
    into.write_text(f"{head}{BEGIN}\n{report()}\n{END}{tail}")


if __name__ == "__main__":
    main()
