"""What `tools/kernel_report.py` is made of: launches, compiled code, and the model of cost."""
