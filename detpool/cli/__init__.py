"""Programs that an installation has too: `train.py` as `detpool-train`, `eval.py` and `tools/report.py` likewise.

Without what they need, importing them ends the process with the message alone.
"""

from detpool.errors import exit_with_message
from detpool.extras import require

with exit_with_message():
    require()
