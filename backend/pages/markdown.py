"""A model's card from Markdown to HTML that may stand in our pages, whoever wrote it.

Markup of its own is shown as text, an address is kept only where it leads to the web, and the one
picture is the loss curve. Pure: no request, no database.
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

CURVE_FILE = "loss.svg"  # as the card calls it, which lies beside it in the model's folder
NUM_KEPT = 32  # rendered cards; one takes milliseconds, a hostile one more
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
    """A card, ready to be shown.

    Attributes:
        facts: title and text of what the front matter says.
        html: the rest, without a first heading that repeats the model's name.
    """

    facts: tuple[tuple[str, str], ...]
    html: Markup


@functools.lru_cache(maxsize=NUM_KEPT)
def card_page(markdown: str, name: str, curve_url: str | None) -> CardPage:
    """Render a card.

    Args:
        markdown: the whole README.md.
        name: the model's.
        curve_url: where its loss curve is, or ``None``.
    """
    found = _FRONT_MATTER.match(markdown)
    facts = _facts(found[1]) if found else ()
    parser = _parser()
    tokens = parser.parse(markdown[found.end() :] if found else markdown)
    tokens = _without_title(tokens, name)
    _tame(tokens, curve_url)
    # Markup: what the renderer wrote, with html off and every address looked at.
    return CardPage(facts, Markup(parser.renderer.render(tokens, parser.options, {})))  # noqa: S704


def _parser() -> MarkdownIt:
    """CommonMark with tables; HTML is text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return parser


def _table_open(self: RendererHTML, *_: Any) -> str:
    # Reached by the keyboard, since it scrolls where it is wide.
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


def _tame(tokens: Sequence[Token], curve_url: str | None) -> None:
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"  # the page has the first
        elif token.type in {"th_open", "td_open"}:
            _tame_cell(token)
        elif token.type == "link_open":
            _tame_link(token)
        elif token.type == "image":
            _tame_image(token, curve_url)
        if token.children and token.type != "image":
            _tame(token.children, curve_url)


def _tame_cell(token: Token) -> None:
    """A class instead of a style, which our policy forbids."""
    style = str(token.attrs.pop("style", ""))
    if style.endswith("right"):
        token.attrs["class"] = "number"


def _tame_link(token: Token) -> None:
    """Out to the web, or nowhere: what is relative lies in a folder that nobody here has."""
    href = str(token.attrs.pop("href", ""))
    token.attrs.pop("title", None)
    if _is_web(href):
        token.attrs |= {"href": href, "rel": "noopener nofollow noreferrer"}


def _tame_image(token: Token, curve_url: str | None) -> None:
    source = str(token.attrs.pop("src", ""))
    token.attrs.pop("title", None)
    if curve_url is not None and source.removeprefix("./") == CURVE_FILE:
        token.attrs |= {"src": curve_url, "class": "loss-curve", "width": "720", "height": "400"}
        return
    # Another picture is its description: nothing is fetched from elsewhere.
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
    """The plain ``key: value`` lines; what is nested is left to those who read YAML."""
    facts = []
    for line in matter.splitlines():
        field = _FIELD.fullmatch(line.rstrip())
        text = _value(field[2]) if field else ""
        if field and text:
            title = _TITLES.get(field[1], field[1].replace("_", " ").capitalize())
            facts.append((title, text[:MAX_FACT_CHARACTERS]))
    return tuple(facts[:MAX_FACTS])


def _value(text: str) -> str:
    """JSON's strings and lists are YAML's too; a bare word stands for itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text.strip("'\"")
    if isinstance(value, list):
        return ", ".join(str(item) for item in value if isinstance(item, str | int | float))
    return str(value) if isinstance(value, str | int | float) else ""
