"""Tables for papers: text that LaTeX takes as it is, and columns that have room.

Tables are set in footnote size. One that is narrower than the column of a two-column paper is a `table`, another a
`table*`, which goes across both. That is no wider than the narrowest usual page of one column, so that every table fits
into papers of one and of two columns: what has no room is left out, from the last column on, and a comment names it.
Words that would take more than `WORDS` are broken into lines. Widths are estimated, a little too wide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from detpool.report.tables import Table

COLUMN, PAGE, WORDS = 237, 345, 130
"""Points: a column of the two-column styles of CVPR and ICCV, the page of LaTeX's article, and columns of words."""
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
        columns: of the `tabular`.
        rows: header and cells.
        left_out: names of the columns that have no room.
    """

    environment: str
    caption: str
    columns: str
    rows: list[list[str]]
    left_out: list[str]


def latex(text: str) -> str:
    """Text whose characters mean nothing to LaTeX; minus signs of numbers are such, deviations close to means."""
    escaped = "".join(_ESCAPED.get(character, character) for character in " ".join(text.split()))
    close = re.sub(r"(?<=\d) (\$\\pm\$) (?=\d)", r"\1", escaped)
    return "--" if text == "-" else re.sub(r"(?<![\w.])-(?=\d)", "$-$", close)


def fit(table: Table) -> LatexTable:
    """A table with as many of its columns as have room."""
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
        if rows[-1][0].startswith(("[", "*")):  # else it would be an argument of the line break before it
            rows[-1][0] = f"{{}}{rows[-1][0]}"
    masks = r" AP$^{\mathrm{m}}$: AP of masks." if any(r"^{\mathrm{m}}" in name for name in rows[0]) else ""
    caption = f"{latex(table.title)}. {latex(table.note)}".strip() + masks
    return LatexTable("table" if narrow else "table*", caption, "".join(kinds[:kept]), rows, names[kept:])


def _width(text: str) -> float:
    """Points of a text."""
    text = text.replace(" ± ", "±")
    return sum(2.7 if character in _NARROW else 6.8 if character in _WIDE else 4.4 for character in text)


def _plain(name: str) -> str:
    """About as many characters as the name of a column is wide."""
    return name.replace("mask_", "").replace("@", "") if _METRIC.fullmatch(name) else name


def _header(name: str) -> str:
    """The name of a column; those of COCO's metrics as papers have them."""
    match = _METRIC.fullmatch(name)
    if match is None:
        return latex(name)
    delta, mask, of = match.groups()
    marks = (r"^{\mathrm{m}}" if mask else "") + (rf"_{{\mathrm{{{of}}}}}" if of else "")
    return latex(delta or "") + "AP" + (f"${marks}$" if marks else "")


def _breakable(text: str) -> str:
    """LaTeX source in which lines may end after the signs that keys and values consist of."""
    return re.sub(r"(\\_|[=.])", r"\1\\allowbreak{}", text)
