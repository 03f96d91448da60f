"""The programs: `train.py` and `eval.py` of a checkout, `detpool-train` and `detpool-eval` of an installation.

Without what they need, importing them ends the process with the message alone.
"""

from detpool.errors import exit_with_message
from detpool.extras import require

with exit_with_message():
    require()
