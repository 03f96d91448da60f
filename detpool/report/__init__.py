"""From finished runs to tables, plots and a report: `tools/report.py`."""

from detpool.extras import require

require()
