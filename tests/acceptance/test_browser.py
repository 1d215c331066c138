"""The pages in a real browser, on the running product."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

# Long jobs are greedy: a sampled text of the tiny model may end at any token.
FINAL = re.compile("Finished|Failed|Canceled")
SOME_TEXT = re.compile(r"\S.{19}", re.DOTALL)


@pytest.fixture
def open_context(browser: Browser, live_server: str) -> Iterator[Callable[..., BrowserContext]]:
    made: list[BrowserContext] = []

    def make(**options: Any) -> BrowserContext:
        made.append(browser.new_context(base_url=live_server, **options))
        made[-1].set_default_timeout(20_000)
        return made[-1]

    yield make
    for context in made:
        context.close()


@pytest.fixture
def page(open_context: Callable[..., BrowserContext]) -> Iterator[Page]:
    """A page whose console must stay free of errors, including those of the security policy."""
    page = open_context(viewport={"width": 1280, "height": 900}).new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    # A 4xx response is not an error of the scripts, but the browser logs it.
    assert [text for text in complaints if "Failed to load resource" not in text] == []


def fill(page: Page, prompt: str, strategy: str = "greedy", length: int = 24) -> None:
    page.goto("/")
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for box in page.locator('input[name="strategy"]:enabled').all():
        box.set_checked(box.get_attribute("value") == strategy)
    page.locator("#max_new_tokens").fill(str(length))


def test_a_job_is_submitted_and_followed(page: Page) -> None:
    fill(page, "The quick brown")
    expect(page.locator("#submit-label")).to_have_text("Generate 1")
    page.locator("#submit").click()
    page.wait_for_url("**/jobs/*")
    expect(page.locator("#badge")).to_have_text(FINAL, timeout=30_000)
    expect(page.locator("#badge")).to_have_text("Finished")
    shown = page.locator("#text").text_content()
    job = page.request.get("/api/v1/jobs/" + page.url.rsplit("/", 1)[1]).json()
    assert shown == job["text"]  # nothing is lost or duplicated
    expect(page.get_by_role("link", name="Continue from here")).to_be_visible()
    page.reload()
    assert page.locator("#text").text_content() == job["text"]


def test_cancel_keeps_the_text(page: Page) -> None:
    fill(page, "Once upon a time", "greedy", 1900)
    page.locator("#submit").click()
    page.wait_for_url("**/jobs/*")
    expect(page.locator("#text")).to_have_text(SOME_TEXT)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#badge")).to_have_text("Canceled", timeout=20_000)
    kept = page.locator("#text").text_content() or ""
    assert len(kept) >= 20
    page.reload()
    assert page.locator("#text").text_content() == kept


def test_the_page_resumes_where_the_connection_was_cut(page: Page) -> None:
    fill(page, "Once upon a time", "greedy", 700)
    page.locator("#submit").click()
    page.wait_for_url("**/jobs/*")
    expect(page.locator("#text")).to_have_text(SOME_TEXT)
    for event in ("pagehide", "pageshow"):
        page.evaluate("name => dispatchEvent(new Event(name))", event)
    expect(page.locator("#badge")).to_have_text(FINAL, timeout=60_000)
    job = page.request.get("/api/v1/jobs/" + page.url.rsplit("/", 1)[1]).json()
    assert page.locator("#text").text_content() == job["text"]


def submit(page: Page, kind: str, **body: Any) -> dict[str, Any]:
    answer = page.request.post(f"/api/v1/{kind}", data={"prompt": "Once upon a time", **body})
    assert answer.status == 202, answer.text()
    made: dict[str, Any] = answer.json()
    return made


def refuse(route: Route) -> None:
    """Answer as a proxy would during an outage: JSON whose status is not the status of a job."""
    route.fulfill(
        status=503, content_type="application/problem+json", body='{"status": 503, "title": "away"}'
    )


@pytest.mark.parametrize("break_", [Route.abort, refuse], ids=["no network", "no answer"])
def test_a_page_that_was_offline_says_so_and_resumes(
    page: Page, break_: Callable[[Route], None]
) -> None:
    job = submit(page, "jobs", max_new_tokens=1200)
    page.route("**/api/v1/**", lambda route: break_(route))
    page.goto(job["links"]["page"])
    expect(page.locator("#offline")).to_be_visible()
    page.unroute("**/api/v1/**")
    expect(page.locator("#badge")).to_have_text("Finished", timeout=60_000)
    expect(page.locator("#offline")).to_be_hidden()
    made = page.request.get(job["links"]["self"]).json()
    assert page.locator("#text").text_content() == made["text"]  # nothing is lost or duplicated


def test_a_job_whose_worker_was_lost_says_so_and_restarts(page: Page) -> None:
    job = submit(page, "jobs", max_new_tokens=1900)
    events = (
        'event: token\ndata: {"text": "lost", "tokens": 1}\n\nevent: reset\ndata: {}\n\n'
        'event: token\ndata: {"text": "Anew", "tokens": 1}\n\n'
    )
    page.route(
        "**/events*", lambda route: route.fulfill(content_type="text/event-stream", body=events)
    )
    page.goto(job["links"]["page"])
    expect(page.locator("#restarted")).to_be_visible()
    expect(page.locator("#text")).to_have_text("Anew")
    page.unroute("**/events*")
    page.request.post(job["links"]["cancel"])
    expect(page.locator("#badge")).to_have_text(FINAL, timeout=30_000)
    expect(page.locator("#restarted")).to_be_hidden()


def test_a_run_that_lost_its_worker_says_so(page: Page) -> None:
    variants = [{"strategy": "greedy"}, {"strategy": "sampling"}]
    run = submit(page, "runs", variants=variants, max_new_tokens=1900)
    first = run["jobs"][0]["id"]
    events = (
        f'event: reset\ndata: {{"job_id": "{first}"}}\n\n'
        f'event: token\ndata: {{"job_id": "{first}", "text": "Anew", "tokens": 1}}\n\n'
    )
    page.route(
        "**/events*", lambda route: route.fulfill(content_type="text/event-stream", body=events)
    )
    page.goto(run["links"]["page"])
    expect(page.locator("#restarted")).to_be_visible()
    expect(page.locator(f'[data-job="{first}"] .run-text')).to_have_text("Anew")
    page.unroute("**/events*")
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator("#status")).to_have_text("All 2 jobs have ended")


def test_the_presets_are_compared_from_an_example(page: Page) -> None:
    page.goto("/")
    page.get_by_role("link", name="Title + abstract").click()
    expect(page.locator("#prompt")).to_have_value(re.compile("^Title: .*Abstract: ", re.DOTALL))
    expect(page.locator("#submit-label")).to_have_text("Generate 3")
    page.locator("#submit").click()
    page.wait_for_url("**/runs/*")
    expect(page.locator(".run-column")).to_have_count(3)
    expect(page.locator("#status")).to_have_text("All 3 jobs have ended", timeout=60_000)


@pytest.mark.parametrize("has_scripts", [True, False])
def test_two_models_are_shown_side_by_side(
    open_context: Callable[..., BrowserContext], has_scripts: bool
) -> None:
    page = open_context(java_script_enabled=has_scripts).new_page()
    fill(page, "The quick brown", "greedy", 12)
    page.get_by_role("checkbox", name="tiny-neo").check()
    if has_scripts:
        expect(page.locator("#submit-label")).to_have_text("Generate 2")
        expect(page.locator("#token-count")).to_have_text(re.compile(r"^\d+ / 512 tokens$"))
        page.get_by_role("checkbox", name="tiny-llama").uncheck()
        page.get_by_role("checkbox", name="tiny-neo").uncheck()
        expect(page.locator("#submit-label")).to_have_text("Generate")
        page.get_by_role("checkbox", name="tiny-llama").check()
        page.get_by_role("checkbox", name="tiny-neo").check()
    page.locator("#submit").click()
    page.wait_for_url("**/runs/*")
    headings = page.locator(".run-heading h2")
    expect(headings).to_have_text(["Greedy, tiny-llama", "Greedy, tiny-neo"])
    expect(page.locator("#status")).to_have_text("All 2 jobs have ended", timeout=60_000)
    expect(page.locator('[data-part="note"]').nth(1)).to_contain_text("Greedy, tiny-llama")


def test_a_form_without_a_model_is_kept_and_links_to_the_models(page: Page) -> None:
    fill(page, "kept")
    page.get_by_role("checkbox", name="tiny-llama").uncheck()
    page.locator("#submit").click()
    expect(page.locator("#summary")).to_contain_text("select at least one model")
    expect(page.locator("#prompt")).to_have_value("kept")
    page.locator("#summary a").click()
    expect(page.locator("#models")).to_be_focused()


def test_an_example_needs_no_javascript(open_context: Callable[..., BrowserContext]) -> None:
    page = open_context(java_script_enabled=False).new_page()
    page.goto("/")
    page.get_by_role("link", name="Title + abstract").click()
    expect(page.locator("#prompt")).to_have_value(re.compile("^Title: .*Abstract: ", re.DOTALL))


def test_everything_works_without_javascript(
    open_context: Callable[..., BrowserContext],
) -> None:
    page = open_context(java_script_enabled=False).new_page()
    fill(page, "The quick brown", length=200)
    page.locator("#submit").click()
    page.wait_for_url("**/jobs/*")
    expect(page.locator("#badge")).to_have_text("Finished", timeout=40_000)
    assert page.locator("#text").text_content()
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/history*")


def test_a_trace_shows_why_each_token_was_chosen(page: Page) -> None:
    fill(page, "The quick brown", "top_k", 8)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Store a trace").check()
    page.locator("#submit").click()
    page.wait_for_url("**/jobs/*")
    tokens = page.locator("#trace-tokens button")
    expect(tokens).to_have_count(8, timeout=30_000)
    expect(page.locator("#trace-panel tbody tr")).to_have_count(20)
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1)).to_have_attribute("aria-pressed", "true")


def test_rejected_input_keeps_the_prompt(page: Page) -> None:
    fill(page, "keep me", "top_k")
    page.locator('[name="top_k.top_k"]').fill("0")
    page.locator("#submit").click()
    expect(page.locator("#summary")).to_be_focused()
    expect(page.locator("#prompt")).to_have_value("keep me")
    expect(page.locator('[name="top_k.top_k"]')).to_have_attribute("aria-invalid", "true")


def test_sliders_and_number_boxes_follow_each_other(page: Page) -> None:
    fill(page, "x", "top_k")
    number = page.locator('[name="top_k.top_k"]')
    slider = page.locator('[data-for="top_k.top_k"]')
    number.fill("25")
    expect(slider).to_have_value("25")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(number).to_have_value("26")
    page.locator("#samples").fill("3")
    expect(page.locator("#submit-label")).to_have_text("Generate 3")


def test_the_prompt_is_counted_and_survives_a_reload(page: Page) -> None:
    page.goto("/")
    page.get_by_label("Prompt", exact=True).fill("typed, not sent")
    expect(page.locator("#token-count")).to_have_text(re.compile(r"\d+ / \d+ tokens"))
    page.reload()
    expect(page.locator("#prompt")).to_have_value("typed, not sent")


def test_a_link_with_a_prompt_wins_over_a_draft_but_not_on_a_reload(page: Page) -> None:
    page.goto("/?prompt=linked")
    page.locator("#prompt").fill("linked and changed")
    page.reload()
    expect(page.locator("#prompt")).to_have_value("linked and changed")
    page.goto("/history")
    page.goto("/?prompt=linked")
    expect(page.locator("#prompt")).to_have_value("linked")


def test_the_keyboard_shortcuts(page: Page) -> None:
    page.goto("/queue")
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#shortcuts")).to_be_hidden()
    page.get_by_role("button", name="Keyboard shortcuts").click()
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Keyboard shortcuts")).to_be_focused()
    fill(page, "The quick brown")
    page.locator("#submit").focus()
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/jobs/*")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_fields_have_the_colours_of_the_theme(
    open_context: Callable[..., BrowserContext], theme: str
) -> None:
    page = open_context(color_scheme=theme).new_page()
    page.goto("/")
    brightness = page.evaluate(
        """() => ["#prompt", "body"].map((name) => {
             const style = getComputedStyle(document.querySelector(name));
             const mean = (text) => text.match(/\\d+/g).slice(0, 3)
               .reduce((sum, value) => sum + Number(value), 0) / 3;
             return [mean(style.backgroundColor), mean(style.color), style.colorScheme];
           })"""
    )
    for background, text, scheme in brightness:
        assert scheme == "light dark"  # the browser uses the one that the system prefers
        assert (background < 60 and text > 180) == (theme == "dark")
        assert (background > 200 and text < 80) == (theme == "light")


def test_reduced_motion_and_forced_colours_are_respected(
    open_context: Callable[..., BrowserContext],
) -> None:
    page = open_context(reduced_motion="reduce", forced_colors="active").new_page()
    job = submit(page, "jobs", max_new_tokens=1900)
    page.goto(job["links"]["page"])
    style = page.evaluate(
        """() => [getComputedStyle(document.querySelector("#caret")).animationName,
                  getComputedStyle(document.querySelector("#text")).textDecorationLine]"""
    )
    assert style == ["none", "underline"]  # underlined, because our colours are not shown
    page.request.post(job["links"]["cancel"])


def test_the_theme_toggle_wins_over_the_system(
    open_context: Callable[..., BrowserContext],
) -> None:
    page = open_context(color_scheme="dark").new_page()
    page.goto("/")
    toggle = page.locator("#theme-toggle")
    toggle.click()
    expect(toggle).to_contain_text("Theme: light")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


@pytest.mark.parametrize("address", ["/", "/history", "/models", "/queue", "/docs", "/jobs/none"])
@pytest.mark.parametrize("width", [320, 360])
def test_no_page_scrolls_sideways(
    open_context: Callable[..., BrowserContext], address: str, width: int
) -> None:
    page = open_context(viewport={"width": width, "height": 740}).new_page()
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
