"""Trains and evaluates a detector: `python train.py pooler=pr_roi_pool data=shapes`. See README.md.

Where detpool is installed without a checkout, the same program is `detpool-train`.
"""

from detpool.cli.train import main

if __name__ == "__main__":
    main()
