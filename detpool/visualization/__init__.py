"""Pictures of pooling: what operators read, how their output changes with the box, and where their gradients point."""

from detpool.extras import require

require("matplotlib")

from detpool.visualization.continuity import Continuity, measure_continuity, plot_continuity
from detpool.visualization.gradient_field import GradientField, gradient_field, plot_gradient_fields
from detpool.visualization.sampling import Footprint, footprint, plot_footprints

__all__ = [
    "Continuity",
    "Footprint",
    "GradientField",
    "footprint",
    "gradient_field",
    "measure_continuity",
    "plot_continuity",
    "plot_footprints",
    "plot_gradient_fields",
]
