"""A model card as HTML: its contents, and the limits for an untrusted card."""

from __future__ import annotations

import re
import sys
import time
from html.parser import HTMLParser

import pytest

from tests.finetunings import CARD
from textmill.backend.pages.markdown import MAX_FACT_CHARACTERS, MAX_FACTS, CardPage, card_page
from textmill.engine.models.provenance import MAX_CARD_BYTES

CURVE_URL = "/models/tuned/loss.svg"
ALLOWED_TAGS = {
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "em", "strong", "code", "pre", "blockquote", "ul",
    "ol", "li", "hr", "br", "a", "img", "div", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
ALLOWED_ATTRIBUTES = {
    "href", "rel", "src", "alt", "class", "width", "height", "tabindex", "role", "aria-label",
    "start",
}  # fmt: skip


class _Seen(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def seen(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Seen()
    parser.feed(html)
    return parser.tags


def render(markdown: str, curve_url: str | None = CURVE_URL) -> CardPage:
    return card_page(markdown, "tuned", curve_url)


def test_a_card_as_a_fine_tuning_writes_it() -> None:
    page = render(CARD)
    assert page.facts == (
        ("Loaded with", "peft"), ("Base", "org/base"), ("Tags", "textmill, lora"),
    )  # fmt: skip
    assert "tuned" not in re.sub(r'src="[^"]*"', "", page.html)  # the page has it as its heading
    assert "<p>Writes abstracts.</p>" in page.html
    assert "<td>a|b</td>" in page.html
    assert '<td class="number">12</td>' in page.html
    assert f'<img alt="Loss" src="{CURVE_URL}" class="loss-curve"' in page.html
    assert "library_name" not in page.html


def test_a_first_heading_with_more_than_the_name_is_kept_one_level_lower() -> None:
    assert "<h2>tuned, a model</h2>" in render("# tuned, a model\n\n## Data").html
    assert "<h3>Data</h3>" in render("# tuned, a model\n\n## Data").html
    assert "<h6>deep</h6>" in render("###### deep").html


def test_without_a_curve_its_image_is_a_description() -> None:
    page = render(CARD, None)
    assert "<img" not in page.html
    assert "[picture: Loss]" in page.html


@pytest.mark.parametrize(
    "markdown",
    [
        "<script>alert(1)</script>",
        "text <img src=x onerror=alert(1)> text",
        "<svg/onload=alert(1)>",
        "<!-- x --><iframe src='https://evil.example/'></iframe>",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](&#106;avascript:alert(1))",
        "[x](java&#10;script:alert(1))",
        "[x](vbscript:x) [y](data:text/html,<script>alert(1)</script>) [z](file:///etc/passwd)",
        "<javascript:alert(1)>",
        "[x]\n\n[x]: javascript:alert(1)",
        "[x](//evil.example/) [y](/history/delete) [z](../..) [q](#top) [e]()",
        "[x](https:///evil) [y](http:evil) [z](https://[::1)",
        '[x](https://a.example/"onclick="alert(1) "t\\" onmouseover=alert(1)")',
        "![x](https://evil.example/pixel.png) ![y](//evil.example/p) ![z](/queue)",
        "![x](data:image/svg+xml;base64,PHN2Zz4=) ![loss](loss.svg#x) ![u](./../loss.svg)",
        "[![x](https://evil.example/p)](javascript:alert(1))",
        '![a" onerror="alert(1)](loss.svg "b\\" onload=alert(1)")',
        '```"><script>alert(1)</script>\ncode</code></pre><script>alert(1)</script>\n```',
        "| a | b |\n| :-: | ---: |\n| <b>x</b> | [y](javascript:1) |",
        '---\ntitle: "<script>alert(1)</script>"\n---\n# <b>x</b>',
        "# tuned<script>alert(1)</script>",
        "\u202e\u0007\x1b[31m <style>*{display:none}</style>",
    ],
)
def test_a_hostile_card_is_only_text(markdown: str) -> None:
    page = render(markdown)
    for tag, attributes in seen(page.html):
        assert tag in ALLOWED_TAGS, tag
        assert set(attributes) <= ALLOWED_ATTRIBUTES, attributes
        href = attributes.get("href")
        assert href is None or re.match(r"https?://[^/]", href)
        assert attributes.get("src") in {None, CURVE_URL}


def test_links_to_the_web_send_no_referrer() -> None:
    page = render("[base](https://huggingface.co/org/base 'title') <https://a.example/>")
    rel = 'rel="noopener nofollow noreferrer"'
    assert f'<a href="https://huggingface.co/org/base" {rel}>base</a>' in page.html
    assert f'<a href="https://a.example/" {rel}>' in page.html


@pytest.mark.parametrize(
    ("matter", "facts"),
    [
        ("license: mit", (("License", "mit"),)),
        ("my_key: 'a word'", (("My key", "a word"),)),
        ("a: 7\nb: 1.5\nc: null\nd: {}\ne: []", (("A", "7"), ("B", "1.5"))),
        ("nested:\n  deep: 1\n- item: 2\n: x\nno field", ()),
        ("x: [1, {}, \"two\", [3]]", (("X", "1, two"),)),
        (f"x: {'[' * 50_000}", (("X", "[" * MAX_FACT_CHARACTERS),)),
        (f"x: {'9' * 5_000}", (("X", "9" * MAX_FACT_CHARACTERS),)),
        ("", ()),
    ],
)  # fmt: skip
def test_the_front_matter_is_read_line_by_line(
    matter: str, facts: tuple[tuple[str, str], ...]
) -> None:
    page = render(f"---\n{matter}\n---\nrest")
    assert page.facts == facts
    assert page.html == "<p>rest</p>\n"


def test_facts_are_bounded_and_a_horizontal_rule_is_not_front_matter() -> None:
    many = "\n".join(f"k{number}: v" for number in range(100))
    assert len(render(f"---\n{many}\n---\n").facts) == MAX_FACTS
    assert render("---\na: b\n").facts == ()
    assert render("text\n---\na: b\n---\n").facts == ()


@pytest.mark.parametrize(
    "unit",
    ["> ", "[", "![", "`", "_*", "|a", "# x\n", "- a\n", "[\n", "| a | b |\n| --- | --- |\n"],
)  # fmt: skip
@pytest.mark.skipif(sys.gettrace() is not None, reason="tracing takes five times the limit's time")
def test_the_largest_accepted_card_is_rendered_in_time(unit: str) -> None:
    markdown = (unit * MAX_CARD_BYTES)[:MAX_CARD_BYTES]
    start = time.thread_time()
    page = render(markdown)
    assert time.thread_time() - start < 10  # two seconds at most here; machines differ
    assert {tag for tag, _ in seen(page.html)} <= ALLOWED_TAGS
