"""MkDocs hooks of `make docs`: add the executed notebook, and the files outside of docs/ to which pages link.

The pages are written for a code host, where a link may lead anywhere in the checkout. In the site, linked Markdown
files become pages, other files are copied, and a folder becomes a page that lists its files.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import nbclient
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs/pooling.ipynb"
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
"""Path of a link within the checkout: paths have no spaces, and other addresses contain a colon."""
FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
ROLE = re.compile(r":(?:mod|func|class|meth|attr|data|exc):<code>~?(?:[\w.]*\.)?(\w+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the notebook's page, and files outside of docs/ to which pages link, directly or through other files."""
    waiting = [
        (f"docs/{file.src_uri}", Path(str(file.abs_src_path)).read_text()) for file in files.documentation_pages()
    ]
    waiting.append(_notebook(files, config))
    waiting += [(name, _add(name, files, config)) for name in ("CONTRIBUTING.md", "CHANGELOG.md")]
    while waiting:
        source, text = waiting.pop()
        for target in {_resolve(source, link) for link in LINK.findall(_outside_code(text))}:
            uri = _uri(target)
            if not target.startswith(("docs/", "..")) and (ROOT / target).exists() and files.src_uris.get(uri) is None:
                waiting.append((uri, _add(target, files, config)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links to the places of their files in the site."""
    uri = page.file.src_uri
    source = f"docs/{uri}" if (ROOT / "docs" / uri).exists() or uri == "pooling.md" else uri

    def moved(match: re.Match[str]) -> str:
        return posixpath.relpath(_uri(_resolve(source, match[1])), posixpath.dirname(uri) or ".")

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Shows the roles of docstrings, such as ``:func:`pool```, as code."""
    return ROLE.sub(r"<code>\1</code>", html)


def _notebook(files: Files, config: MkDocsConfig) -> tuple[str, str]:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, extra_arguments=["--IPKernelApp.log_level=ERROR"])
    client.execute(cwd=str(ROOT))
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, {"unique_key": "pooling", "output_files_dir": "images/pooling"}
    )
    for name, content in resources["outputs"].items():
        files.append(File.generated(config, name, content=content))
    files.remove(files.src_uris["pooling.ipynb"])
    files.append(File.generated(config, "pooling.md", content=text))
    return "docs/pooling.md", text


def _add(target: str, files: Files, config: MkDocsConfig) -> str:
    """Adds a file or folder of the checkout to the site; returns the text if it becomes a page."""
    path, level = ROOT / target, InclusionLevel.NOT_IN_NAV  # pages in the navigation are shown nevertheless
    if path.is_dir():
        entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith((".", "__")))
        text = f"# {target}\n\n" + "\n".join(f"- [{name}]({name})" for name in entries) + "\n"
        files.append(File.generated(config, _uri(target), content=text, inclusion=level))
        return text
    files.append(File.generated(config, _uri(target), abs_src_path=str(path), inclusion=level))
    return path.read_text() if path.suffix == ".md" else ""


def _outside_code(text: str) -> str:
    return FENCE.sub("", text)


def _resolve(source: str, link: str) -> str:
    """Path in the checkout to which a link in a file leads."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _uri(target: str) -> str:
    """Place of a path of the checkout in the site's sources."""
    if target.startswith("docs/"):
        target = target.removeprefix("docs/")
    elif (ROOT / target).is_dir():
        target += "/index.md"
    return target.replace("pooling.ipynb", "pooling.md")
