#!/usr/bin/env python
"""Writes a report of any set of runs: see `python tools/report.py --help`.

If detpool is installed without a checkout, the same program is called `detpool-report`.
"""

from detpool.cli.report import main

if __name__ == "__main__":
    main()
