"""Makes tables, plots and a report from finished runs, for `tools/report.py`."""

from detpool.extras import require

require()
