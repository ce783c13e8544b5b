"""Kernels of the ghost rules: scores inside of products that training computes anyway.

Each is a public function with two implementations: a Triton kernel for GPUs, and its twin in plain torch, which runs
elsewhere and says what the kernel must compute.
"""

from inrun_bench.attribution.products.embedding_dot import embedding_dot
from inrun_bench.attribution.products.gram_dot import gram_dot
from inrun_bench.attribution.products.norm_dot import layer_norm_dot, rms_norm_dot
from inrun_bench.attribution.products.project_dot import project_dot
from inrun_bench.attribution.products.wgrad_dot import wgrad_dot

__all__ = ["embedding_dot", "gram_dot", "layer_norm_dot", "project_dot", "rms_norm_dot", "wgrad_dot"]
