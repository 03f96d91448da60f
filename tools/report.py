#!/usr/bin/env python
"""Turns any set of runs into a report: see `python tools/report.py --help`.

Where detpool is installed without a checkout, the same program is `detpool-report`.
"""

from detpool.cli.report import main

if __name__ == "__main__":
    main()
