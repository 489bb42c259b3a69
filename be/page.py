"""One list of blocks, as Markdown and as a page of HTML that stands alone: no network, no other file, any width.

    blocks = [("title", "Results"), ("text", "..."), ("section", "Table 1"), ("table", head, rows),
              ("image", path, "what it shows"), ("fold", "more", [block, ...])]
"""

import base64
import html
import os
import re
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 76rem; margin: 0 auto;
       padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .85rem; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { color: #555; font-weight: 600; } .number { text-align: right; white-space: nowrap; }
tr:hover td { background: #f6f6f6; }
td:first-child { font-weight: 600; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
@media (max-width: 46rem) { /* a row becomes a card, each cell with the name of its column */
  thead { display: none; } table, tbody, tr, td { display: block; }
  tr { border: 1px solid #ccc; border-radius: .4rem; margin: .7rem 0; padding: .3rem .6rem; }
  td, .number { display: flex; gap: 1rem; justify-content: space-between; text-align: right; white-space: normal;
                border: 0; padding: .1rem 0; }
  td::before { content: attr(data-name); color: #555; font-weight: 400; text-align: left; flex-shrink: 0; }
  td:first-child { display: block; text-align: left; } td:first-child::before { content: none; }
  td:empty, .none { display: none; }
}
"""


def as_markdown(blocks, folder: Path) -> str:
    """The text of a file in `folder`; images are linked from there."""
    lines = []
    for kind, *parts in blocks:
        if kind == "table":
            lines += ["", *markdown(*parts)]
        elif kind == "image":
            lines += ["", f"![{parts[1]}]({os.path.relpath(parts[0], folder)})"]
        elif kind == "fold":
            lines += ["", f"### {parts[0]}", as_markdown(parts[1], folder)]
        else:
            lines += ["", {"title": "# ", "section": "## ", "text": ""}[kind] + parts[0]]
    return "\n".join(lines[1:])


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table as lines of Markdown, aligned to be read as it is."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    def line(cells):
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
    return [line(head), line(["-" * w for w in widths]), *map(line, rows)]


def as_html(blocks) -> str:
    """A whole page, images in it."""
    title = html.escape(next(parts[0] for kind, *parts in blocks if kind == "title"))
    return (f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<meta name="viewport" '
            f'content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n<body>\n{_body(blocks)}\n')


def _body(blocks) -> str:
    return "\n".join(_element(kind, *parts) for kind, *parts in blocks)


def _element(kind: str, *parts) -> str:
    if kind == "table":
        return _table(*parts)
    if kind == "image":
        data, what = base64.b64encode(Path(parts[0]).read_bytes()).decode(), html.escape(parts[1])
        return f'<img src="data:image/png;base64,{data}" alt="{what}">'
    if kind == "fold":
        return f"<details><summary>{html.escape(parts[0])}</summary>\n{_body(parts[1])}\n</details>"
    tag = {"title": "h1", "section": "h2", "text": "p"}[kind]
    return f"<{tag}>{html.escape(parts[0])}</{tag}>"


def _table(head, rows) -> str:
    numeric = [all(re.fullmatch(r"[-+±\d./, ]*", row[i]) for row in rows) for i in range(len(head))]
    kinds = ["number" if right else "text" for right in numeric]
    top = "".join(f'<th class="{kind}">{html.escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = "\n".join("<tr>" + "".join(
        f'<td class="{kind}{" none" * (cell == "-")}" data-name="{html.escape(name)}">{html.escape(cell)}</td>'
        for name, kind, cell in zip(head, kinds, row, strict=True)) + "</tr>" for row in rows)  # fmt: skip
    return f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
