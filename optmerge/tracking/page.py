"""A report as one web page: the Markdown's content, its pictures inside, no script and nothing to fetch.

    html = render_page(markdown, title="first", folder=Path("runs/first"))

It follows the reader's light or dark setting and the width of the screen: what is wide (tables, commands) scrolls by
itself, so that the page never does. Only pictures in the run folder are taken in; any other address stays a link.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token

PAGE = "report.html"

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # whatever it holds, it asks nobody
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #566070; --paper: #ffffff; --panel: #f4f6f9; --line: #d5dae2;
  --accent: #1a5fb4; --good: #e8f1fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --soft: #a9b3c2; --paper: #14171c; --panel: #1e232b;
  --line: #363d48; --accent: #8ab8f5; --good: #1b2a3d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; padding: 0; margin: 1.25rem 0 0; list-style: none;
  font-size: .9rem; }
a { color: var(--accent); }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1.5rem 0 .75rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .75rem; padding-top: .5rem; border-top: 1px solid var(--line); }
.answer { background: var(--good); border-left: 4px solid var(--accent); border-radius: .25rem; padding: .1rem 1.1rem; }
.wide { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; text-align: left; }
thead th, thead td { background: var(--panel); font-weight: 600; }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--paper); }
tbody tr:last-child > * { border-bottom: 0; }
.right { text-align: right; }
pre { overflow-x: auto; margin: 1rem 0; padding: .8rem 1rem; background: var(--panel); border-radius: .4rem;
  font-size: .85rem; overflow-wrap: normal; }
code { font-family: ui-monospace, monospace; font-size: .92em; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; }
figure img { width: 100%; min-width: 36rem; }
footer { color: var(--soft); font-size: .85rem; padding-top: 1.5rem; padding-bottom: 2rem; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
"""


def render_page(markdown: str, *, title: str, folder: Path) -> str:
    """The page of a report.

    Args:
        markdown: Its text; the first heading is the page's, those of the second level are its sections.
        title: In the browser's tab.
        folder: Where the pictures are that it names.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    sections = _sections(tokens)
    _tables(tokens, sections)
    _pictures(tokens, folder)
    links = "".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in sections.values())
    answered = _answer(tokens, f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n' if links else "")
    body = parser.renderer.render(answered, parser.options, {})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}: optmerge report</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n"
        "<footer>Written by optmerge. The same in Markdown: report.md.</footer>\n</body>\n</html>\n"
    )


def _sections(tokens: Sequence[Token]) -> dict[int, tuple[str, str]]:
    """Place of a section's heading -> its anchor and its text; the headings get the anchors."""
    found: dict[int, tuple[str, str]] = {}
    for place, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            name, text = f"section-{len(found) + 1}", _plain(tokens[place + 1])
            token.attrSet("id", name)
            found[place] = (name, text)
    return found


def _plain(inline: Token) -> str:
    """The text of a line without its markup."""
    return "".join(child.content for child in inline.children or ())


def _tables(tokens: list[Token], sections: dict[int, tuple[str, str]]) -> None:
    """Tables scroll by themselves, reachable by keyboard; first cells of rows are their headings."""
    from markdown_it.token import Token

    title, heads, first = "the run", False, False
    wrapped: list[Token] = []
    for place, token in enumerate(tokens):
        if place in sections:
            title = sections[place][1]
        if token.type in ("thead_open", "tbody_open"):
            heads = token.type == "thead_open"
        elif token.type == "tr_open":
            first = True
        elif token.type in ("th_open", "td_open"):
            style = token.attrs.pop("style", "")
            if "right" in str(style):
                token.attrSet("class", "right")
            empty = not tokens[place + 1].content
            token.tag = tokens[place + 2].tag = "td" if empty or not (heads or first) else "th"
            if token.tag == "th":
                token.attrSet("scope", "col" if heads else "row")
            first = False
        if token.type == "table_open":
            opening = f'<div class="wide" role="region" tabindex="0" aria-label="Table: {escape(title, quote=True)}">'
            wrapped.append(Token("html_block", "", 0, content=opening + "\n"))
        elif token.type == "fence":
            wrapped.append(Token("html_block", "", 0, content=_commands(token)))
            continue
        wrapped.append(token)
        if token.type == "table_close":
            wrapped.append(Token("html_block", "", 0, content="</div>\n"))
    tokens[:] = wrapped


def _commands(fence: Token) -> str:
    return f'<pre tabindex="0"><code>{escape(fence.content)}</code></pre>\n'


def _pictures(tokens: Sequence[Token], folder: Path) -> None:
    """Pictures of the folder become a part of the page; on a narrow screen they scroll instead of shrinking."""
    for place, token in enumerate(tokens):
        for child in token.children or ():
            path = folder / str(child.attrs.get("src", ""))
            if child.type != "image" or not path.is_file():
                continue
            child.attrSet("src", "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"))
            if len(token.children or ()) == 1:
                opening = tokens[place - 1]
                opening.tag = tokens[place + 1].tag = "figure"
                for name, value in (("class", "wide"), ("role", "region"), ("tabindex", "0")):
                    opening.attrSet(name, value)
                opening.attrSet("aria-label", f"Picture: {child.content}")


def _answer(tokens: Sequence[Token], navigation: str) -> list[Token]:
    """What stands between the page's heading and the first section, alarms included, is set apart."""
    from markdown_it.token import Token

    begin = next((place + 1 for place, token in enumerate(tokens) if token.type == "heading_close"), 0)
    end = next((place for place, t in enumerate(tokens) if t.type == "heading_open" and t.tag == "h2"), len(tokens))
    before, after = ('<div class="answer">\n', "</div>\n") if end > begin else ("", "")
    opening, closing = (Token("html_block", "", 0, content=text) for text in (before, after + navigation))
    return [*tokens[:begin], opening, *tokens[begin:end], closing, *tokens[end:]]
