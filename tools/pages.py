"""Helpers for generated Markdown tables in documentation pages, which stand between two comments."""

from __future__ import annotations

import re
from collections.abc import Sequence


def line(cells: Sequence[str]) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def head(columns: Sequence[str]) -> list[str]:
    """Returns the first two lines of a Markdown table."""
    return [line(columns), "|---" * len(columns) + "|"]


def replace_between(page: str, begin: str, end: str, text: str) -> str:
    """Returns the page with the text between ``begin`` and ``end`` replaced.

    Raises:
        ValueError: If the page does not contain both exactly once.
    """
    pattern = f"(?<={re.escape(begin)}).*?(?={re.escape(end)})"
    page, count = re.subn(pattern, lambda _: text, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page must hold {begin.strip()} and {end} once, found {count} times")
    return page
