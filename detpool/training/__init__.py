"""Training and evaluation with Lightning: the module, callbacks, runs and sweeps."""
