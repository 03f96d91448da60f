"""Parts of `tools/kernel_report.py`: kernel launches, compiled code, and the cost model."""
