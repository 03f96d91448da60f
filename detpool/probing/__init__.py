"""What poolings keep, asked without training: of a frozen backbone's maps, and of finished weights."""

from detpool.extras import require

require()
