"""What tools/bench_scale.py measures, and the synthetic data that it measures it on."""
