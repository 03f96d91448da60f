"""Tables for papers: text escaped for LaTeX, and as many columns as fit on the page.

Tables are set in footnote size. A table that fits into one column of a two-column paper is a `table`, another one is a
`table*`, which spans both. It is not wider than the narrowest usual one-column page, so that every table fits into
papers with one and with two columns: columns that do not fit are left out, beginning with the last, and a comment names
them. Columns of words that would be wider than `WORDS` together are wrapped. Widths are estimated, a little too wide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from detpool.report.tables import Table

COLUMN, PAGE, WORDS = 237, 345, 130
"""Widths in points: a column of the styles of CVPR and ICCV, the page of LaTeX's article, and all columns of words."""
_GAP = 6
_NARROW, _WIDE = " .,:;|![]()filjtI'", "mwMW±×Δ+=<>%&"
_ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPED |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
_ESCAPED |= {character: f"\\{character}" for character in "&%$#_{}"}
_ESCAPED |= {"±": r"$\pm$", "×": r"$\times$", "Δ": r"$\Delta$", "−": "$-$"}
_METRIC = re.compile(r"(Δ )?(mask_)?AP(50|75|[sml]|@0\.\d\d)?")


@dataclass(frozen=True)
class LatexTable:
    """A table as LaTeX source.

    Attributes:
        environment: `table` or `table*`.
        caption: title and note.
        columns: column specification of the `tabular`.
        rows: the header, then the cells of each row.
        left_out: names of the columns that do not fit.
    """

    environment: str
    caption: str
    columns: str
    rows: list[list[str]]
    left_out: list[str]


def latex(text: str) -> str:
    """Escapes text for LaTeX; sets minus signs of numbers as such, and no spaces around ± between numbers."""
    escaped = "".join(_ESCAPED.get(character, character) for character in " ".join(text.split()))
    close = re.sub(r"(?<=\d) (\$\\pm\$) (?=\d)", r"\1", escaped)
    return "--" if text == "-" else re.sub(r"(?<![\w.])-(?=\d)", "$-$", close)


def fit(table: Table) -> LatexTable:
    """Converts a table to LaTeX with as many of its columns as fit."""
    names = [str(name) for name in table.cells]
    texts = [[_plain(name), *table.cells.iloc[:, place]] for place, name in enumerate(names)]
    widths = [max(map(_width, column)) for column in texts]
    kinds = ["l"] * table.words + ["r"] * (len(names) - table.words)
    for place in range(table.words):
        pieces = (piece for text in texts[place] for piece in re.split(r"(?<=[ _=.])", text))
        room = max(WORDS / table.words, *map(_width, pieces))
        if widths[place] > room:
            widths[place], kinds[place] = room, rf">{{\raggedright\arraybackslash}}p{{{room:.0f}pt}}"
    kept = len(names)
    while kept > table.words + 1 and sum(widths[:kept]) + _GAP * (kept - 1) > PAGE:
        kept -= 1
    narrow = sum(widths[:kept]) + _GAP * (kept - 1) <= COLUMN
    rows = [list(map(_header, names[:kept]))]
    for row in table.cells.iloc[:, :kept].to_numpy().tolist():
        pairs = zip(map(latex, row), kinds[:kept], strict=True)
        rows.append([text if kind in "lr" else _breakable(text) for text, kind in pairs])
        if rows[-1][0].startswith(("[", "*")):  # else LaTeX takes it for an argument of the line break before it
            rows[-1][0] = f"{{}}{rows[-1][0]}"
    masks = r" AP$^{\mathrm{m}}$: AP of masks." if any(r"^{\mathrm{m}}" in name for name in rows[0]) else ""
    caption = f"{latex(table.title)}. {latex(table.note)}".strip() + masks
    return LatexTable("table" if narrow else "table*", caption, "".join(kinds[:kept]), rows, names[kept:])


def _width(text: str) -> float:
    """Estimates the width of a text in points."""
    text = text.replace(" ± ", "±")
    return sum(2.7 if character in _NARROW else 6.8 if character in _WIDE else 4.4 for character in text)


def _plain(name: str) -> str:
    """Returns text about as wide as the typeset name of a column."""
    return name.replace("mask_", "").replace("@", "") if _METRIC.fullmatch(name) else name


def _header(name: str) -> str:
    """Returns the LaTeX source of a column's name; COCO's metrics are set as in papers."""
    match = _METRIC.fullmatch(name)
    if match is None:
        return latex(name)
    delta, mask, of = match.groups()
    marks = (r"^{\mathrm{m}}" if mask else "") + (rf"_{{\mathrm{{{of}}}}}" if of else "")
    return latex(delta or "") + "AP" + (f"${marks}$" if marks else "")


def _breakable(text: str) -> str:
    """Allows line breaks after the signs `_`, `=` and `.` in LaTeX source."""
    return re.sub(r"(\\_|[=.])", r"\1\\allowbreak{}", text)
