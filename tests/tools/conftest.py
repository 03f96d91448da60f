import sys
from pathlib import Path

# The tools are scripts: they find their own modules beside themselves.
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
