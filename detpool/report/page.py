"""A report as one HTML file that needs nothing else, as Markdown with its pictures beside it, and as LaTeX tables."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader

from detpool.report.build import Report

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"} | {"±": r"$\pm$", "×": r"$\times$", "Δ": r"$\Delta$"}


def render(report: Report, template: str, footer: str = "", pictures: str = "") -> str:
    """A report in one of the formats of `templates`.

    Args:
        report: the report.
        template: `report.html` holds its pictures and no script, font or address outside the file; `report.md` names
            those in a folder beside it; `report.tex` has the tables that fit into a paper, for a document that loads
            booktabs.
        footer: a last line of the page.
        pictures: the folder of the pictures, relative to the page.
    """
    environment = Environment(
        loader=PackageLoader("detpool.report"),
        autoescape=template.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        markdown=markdown, latex=latex, base64=lambda content: base64.b64encode(content).decode()
    )
    return environment.get_template(f"{template}.j2").render(report=report, footer=footer, pictures=pictures)


def markdown(text: str) -> str:
    """Text whose characters mean nothing to Markdown, on one line."""
    return " ".join("".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text).split())


def latex(text: str) -> str:
    """Text whose characters mean nothing to LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)
