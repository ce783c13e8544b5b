"""The Triton kernels and their launchers; imported only where Triton is there to run them."""
