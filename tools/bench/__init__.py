"""What `tools/bench_ops.py` measures, against whom, and how it reports."""
