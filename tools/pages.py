"""Tables in pages of the documentation, between two comments, made by programs."""

from __future__ import annotations

import re
from collections.abc import Sequence


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def head(columns: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [line(columns), "|---" * len(columns) + "|"]


def replace_between(page: str, begin: str, end: str, text: str) -> str:
    """The page with what stands between its lines ``begin`` and ``end`` replaced.

    Raises:
        ValueError: If the page does not hold both, once.
    """
    pattern = f"(?<={re.escape(begin)}).*?(?={re.escape(end)})"
    page, count = re.subn(pattern, lambda _: text, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page must hold {begin.strip()} and {end} once, found {count} times")
    return page
