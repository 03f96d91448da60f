"""A report as one HTML file that needs nothing else, and as Markdown with its pictures beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from string import Template

from detpool.report.build import Part, Report
from detpool.report.plots import Picture
from detpool.report.tables import Table, markdown_text, to_latex, to_markdown

_MEDIA = {"svg": "image/svg+xml", "png": "image/png"}

# The policy has the browser refuse whatever is not in this file.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-bottom: 1px solid #bbb; margin-top: 3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #888; white-space: nowrap; }
td { white-space: nowrap; }
.word { text-align: left; }
.word.long { white-space: normal; overflow-wrap: anywhere; min-width: 20rem; font-size: .85em; }
.scroll { overflow-x: auto; max-height: 40rem; }
.note { color: #555; max-width: 60rem; }
.beware { background: #fff4d6; border-left: 4px solid #e69f00; padding: .5rem 1rem .5rem 2rem; }
.beware, footer { overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
footer { margin-top: 3rem; color: #555; font-size: .9em; }
</style>
</head>
<body>
<h1>$title</h1>
$body
<footer>$footer</footer>
</body>
</html>
""")


def to_html(report: Report, footer: str = "") -> str:
    """The whole report, pictures as data URIs; no script, no font, no address outside the file."""
    body = [_beware(report.problems), *(_part(part) for part in report.parts)]
    return _PAGE.substitute(title=escape(report.title), body="\n".join(body), footer=escape(footer))


def _part(part: Part) -> str:
    blocks = [_table(block) if isinstance(block, Table) else _picture(block) for block in part.blocks]
    return "\n".join([f"<section>\n<h2>{escape(part.title)}</h2>", _beware(part.notes), *blocks, "</section>"])


def _beware(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="beware">{items}</ul>' if notes else ""


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(_cell(text, tag, place < table.words) for place, text in enumerate(cells)) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    content = f"<thead>{row(table.header, 'th')}</thead>\n<tbody>\n{body}\n</tbody>"
    title = f"<h3>{escape(table.title)}</h3>\n{_note(table.note)}"
    return f'{title}<div class="scroll"><table>\n{content}\n</table></div>'


def _cell(text: str, tag: str, is_word: bool) -> str:
    kind = (' class="word long"' if len(text) > 60 else ' class="word"') if is_word else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _picture(picture: Picture) -> str:
    suffix, content = next(iter(picture.files.items()))
    source = f"data:{_MEDIA[suffix]};base64,{base64.b64encode(content).decode('ascii')}"
    title = escape(picture.title)
    return f'<h3>{title}</h3>\n{_note(picture.note)}<p><img alt="{title}" src="{source}"></p>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>\n' if text else ""


def to_markdown_page(report: Report, pictures: str, footer: str = "") -> str:
    """The whole report in Markdown.

    Args:
        report: the report.
        pictures: the folder of its pictures, relative to the file.
        footer: a last line.
    """
    lines = [f"# {markdown_text(report.title)}", "", *_markdown_notes(report.problems)]
    for part in report.parts:
        lines += [f"## {markdown_text(part.title)}", "", *_markdown_notes(part.notes)]
        for block in part.blocks:
            lines += [f"### {markdown_text(block.title)}", ""]
            if block.note:
                lines += [markdown_text(block.note), ""]
            if isinstance(block, Table):
                lines.append(to_markdown(block))
            else:
                suffix = next(iter(block.files))
                lines += [f"![{markdown_text(block.title)}]({pictures}/{block.name}.{suffix})", ""]
    return "\n".join([*lines, markdown_text(footer)]) + "\n"


def _markdown_notes(notes: Sequence[str]) -> list[str]:
    return [*(f"- **Note:** {markdown_text(note)}" for note in notes), *([""] if notes else [])]


def to_latex_tables(report: Report) -> str:
    """The tables of the report that fit into a paper; the document must load booktabs."""
    parts = []
    for part in report.parts:
        found = [to_latex(block) for block in part.blocks if isinstance(block, Table) and not block.listing]
        parts += [f"% {part.title}\n", *found] if found else []
    return "\n".join(parts)
