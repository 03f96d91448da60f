"""Parts of `tools/bench_ops.py`: workloads, operators, other implementations, timing, and reports."""
