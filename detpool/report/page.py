"""Renders a report as one self-contained HTML file, as Markdown with pictures in a folder, or as LaTeX tables."""

from __future__ import annotations

import base64
import re

from jinja2 import Environment, PackageLoader

from detpool.report.build import Report
from detpool.report.latex import fit


def render(report: Report, template: str, footer: str = "", pictures: str = "") -> str:
    """Renders a report with one of the templates in `templates`.

    Args:
        report: the report.
        template: `report.html` contains its pictures and refers to no script, font or address outside the file;
            `report.md` links to pictures in a folder; `report.tex` has tables for papers (`detpool.report.latex`).
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
        markdown=markdown,
        line=lambda text: " ".join(text.split()),
        slug=lambda text: re.sub(r"\W+|_", "-", text.lower()).strip("-"),
        fit=fit,
        base64=lambda content: base64.b64encode(content).decode(),
        pixels=pixels,
    )
    return environment.get_template(f"{template}.j2").render(report=report, footer=footer, pictures=pictures)


def markdown(text: str) -> str:
    """Escapes text for Markdown and puts it on one line."""
    return " ".join("".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text).split())


def pixels(content: bytes) -> float | None:
    """Returns the width of an SVG plot in CSS pixels, at which its letters are as large as the text; else None."""
    match = re.search(rb'<svg[^>]* width="([\d.]+)pt"', content)
    return float(match[1]) * 4 / 3 if match else None
