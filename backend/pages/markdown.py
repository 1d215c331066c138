"""Renders an untrusted model card, which is Markdown, as HTML that is safe in our pages.

HTML in the card is shown as text, links are kept only if they lead to the web, and the loss curve
is the only image. Pure: no request, no database.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

CURVE_FILE = "loss.svg"  # name of the loss curve in the model's folder
NUM_CACHED = 32  # rendered cards; rendering takes milliseconds, and longer for a hostile card
MAX_FACTS = 12
MAX_FACT_CHARACTERS = 300
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.S | re.M)
_FIELD = re.compile(r"([A-Za-z][A-Za-z0-9_-]{0,40}):[ \t]+(\S.*)")
_TITLES = {
    "library_name": "Loaded with",
    "base_model": "Base",
    "license": "License",
    "pipeline_tag": "Task",
    "tags": "Tags",
}


@dataclass(frozen=True, slots=True)
class CardPage:
    """A rendered card.

    Attributes:
        facts: title and text of each field of the front matter.
        html: the body, without a first heading that repeats the model's name.
    """

    facts: tuple[tuple[str, str], ...]
    html: Markup


@functools.lru_cache(maxsize=NUM_CACHED)
def card_page(markdown: str, name: str, curve_url: str | None) -> CardPage:
    """Render a card.

    Args:
        markdown: the whole README.md.
        name: name of the model.
        curve_url: address of its loss curve, or ``None``.
    """
    found = _FRONT_MATTER.match(markdown)
    facts = _facts(found[1]) if found else ()
    parser = _parser()
    tokens = parser.parse(markdown[found.end() :] if found else markdown)
    tokens = _without_title(tokens, name)
    _sanitize(tokens, curve_url)
    # Markup is safe here: HTML is disabled in the parser, and every address was checked.
    return CardPage(facts, Markup(parser.renderer.render(tokens, parser.options, {})))  # noqa: S704


def _parser() -> MarkdownIt:
    """Return a parser of CommonMark with tables, without HTML."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return parser


def _table_open(self: RendererHTML, *_: Any) -> str:
    # Focusable, so that a wide table can be scrolled with the keyboard.
    opening = '<div class="table-wrap" tabindex="0" role="group" aria-label="Table">'
    return f'{opening}<table class="table table--tight">\n'


def _table_close(self: RendererHTML, *_: Any) -> str:
    return "</table></div>\n"


def _without_title(tokens: list[Token], name: str) -> list[Token]:
    first = [token.type for token in tokens[:3]]
    if first == ["heading_open", "inline", "heading_close"] and _plain(tokens[1]) == name:
        return tokens[3:]
    return tokens


def _plain(inline: Token) -> str:
    return "".join(token.content for token in inline.children or () if token.type != "image")


def _sanitize(tokens: Sequence[Token], curve_url: str | None) -> None:
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"  # the page has an h1 of its own
        elif token.type in {"th_open", "td_open"}:
            _sanitize_cell(token)
        elif token.type == "link_open":
            _sanitize_link(token)
        elif token.type == "image":
            _sanitize_image(token, curve_url)
        if token.children and token.type != "image":
            _sanitize(token.children, curve_url)


def _sanitize_cell(token: Token) -> None:
    """Replace the style, which our content security policy blocks, by a class."""
    style = str(token.attrs.pop("style", ""))
    if style.endswith("right"):
        token.attrs["class"] = "number"


def _sanitize_link(token: Token) -> None:
    """Keep the address only if it leads to the web; relative ones point into the model's folder."""
    href = str(token.attrs.pop("href", ""))
    token.attrs.pop("title", None)
    if _is_web(href):
        token.attrs |= {"href": href, "rel": "noopener nofollow noreferrer"}


def _sanitize_image(token: Token, curve_url: str | None) -> None:
    source = str(token.attrs.pop("src", ""))
    token.attrs.pop("title", None)
    if curve_url is not None and source.removeprefix("./") == CURVE_FILE:
        token.attrs |= {"src": curve_url, "class": "loss-curve", "width": "720", "height": "400"}
        return
    # Other images are replaced by their description: nothing is loaded from elsewhere.
    token.type, token.tag, token.nesting = "text", "", 0
    token.content = f"[picture: {_plain(token) or 'without a description'}]"
    token.children = None


def _is_web(href: str) -> bool:
    try:
        parts = urlsplit(href)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.netloc)


def _facts(matter: str) -> tuple[tuple[str, str], ...]:
    """Return the plain ``key: value`` lines; nested YAML is ignored."""
    facts = []
    for line in matter.splitlines():
        field = _FIELD.fullmatch(line.rstrip())
        text = _value(field[2]) if field else ""
        if field and text:
            title = _TITLES.get(field[1], field[1].replace("_", " ").capitalize())
            facts.append((title, text[:MAX_FACT_CHARACTERS]))
    return tuple(facts[:MAX_FACTS])


def _value(text: str) -> str:
    """Parse a YAML value that is also JSON, or a plain string."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text.strip("'\"")
    if isinstance(value, list):
        return ", ".join(str(item) for item in value if isinstance(item, str | int | float))
    return str(value) if isinstance(value, str | int | float) else ""
