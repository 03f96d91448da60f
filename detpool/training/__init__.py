"""Training and evaluation with Lightning: the module, callbacks, runs and sweeps."""

from detpool.extras import require

require()
