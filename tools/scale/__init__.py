"""Parts of tools/bench_scale.py: what it measures, and the synthetic data on which it measures."""
