"""Programs that are also installed as commands: `train.py` as `detpool-train`; `eval.py`, `tools/report.py` likewise.

If the packages that they need are missing, importing them ends the process with only the error message.
"""

from detpool.errors import exit_with_message
from detpool.extras import require

with exit_with_message():
    require()
