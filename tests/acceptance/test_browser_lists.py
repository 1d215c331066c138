"""The run, history, models, queue and API pages in a real browser, on the running product."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

PATHS = ("/history", "/models", "/models/tiny-neo/card", "/queue", "/docs")
PATIENCE_MS = 30_000
THREE = [
    {"strategy": "greedy"},
    {"strategy": "sampling", "temperature": 1.5, "samples": 2},
    {"strategy": "top_k", "top_k": 10, "temperature": 2.0},
]


@pytest.fixture
def page(browser: Browser, live_server: str) -> Iterator[Page]:
    """A page whose console must stay free of errors."""
    context = browser.new_context(base_url=live_server, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


def submit(page: Page, kind: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = page.request.post(f"/api/v1/{kind}", data=body)
    assert answer.status == 202, answer.text()
    made: dict[str, Any] = answer.json()
    return made


def finished(page: Page, prompt: str) -> dict[str, Any]:
    job = submit(page, "jobs", {"prompt": prompt, "max_new_tokens": 4})
    answer = page.request.get(f"/api/v1/jobs/{job['id']}?wait=30")
    made: dict[str, Any] = answer.json()
    assert made["status"] == "succeeded"
    return made


def word() -> str:
    return f"w{uuid.uuid4().hex[:12]}"


def overflow(page: Page) -> int:
    return int(
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


def shown_texts(page: Page) -> dict[str, str]:
    found: dict[str, str] = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('[data-job]')]"
        ".map((n) => [n.dataset.job, n.querySelector('.run-text').textContent]))"
    )
    return found


def test_three_strategies_are_compared_live(page: Page) -> None:
    run = submit(page, "runs", {"prompt": "Once", "variants": THREE, "max_new_tokens": 96})
    page.goto(run["links"]["page"])
    expect(page.locator(".run-column")).to_have_count(3)
    page.evaluate("window.isSamePage = true")
    expect(page.locator("#status")).to_have_text("All 4 jobs have ended")
    assert page.evaluate("window.isSamePage")
    expect(page.locator(".badge--succeeded")).to_have_count(4)
    expect(page.get_by_role("button", name="Cancel all")).to_be_hidden()
    expect(page.get_by_text(re.compile("^differs from Greedy "))).not_to_have_count(0)
    jobs = page.request.get(run["links"]["self"]).json()["jobs"]
    texts = {job["id"]: job["text"] for job in jobs}
    assert shown_texts(page) == texts  # nothing is lost or duplicated
    live = page.locator("#columns").inner_text()
    page.reload()
    assert shown_texts(page) == texts
    assert (
        page.locator("#columns").inner_text() == live
    )  # the server and the script mark the same words


def test_a_run_is_canceled_and_repeated(page: Page) -> None:
    run = submit(page, "runs", {"prompt": "Long", "variants": THREE, "max_new_tokens": 1900})
    page.goto(run["links"]["page"])
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator("#status")).to_have_text("All 4 jobs have ended")
    expect(page.locator(".badge--canceled")).not_to_have_count(0)
    page.get_by_role("button", name="Run again").click()
    page.wait_for_url(lambda address: "/runs/" in address and run["id"] not in address)
    expect(page.locator("[data-job]")).to_have_count(4)
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator("#status")).to_have_text("All 4 jobs have ended")


def test_a_run_needs_no_javascript(browser: Browser, page: Page, live_server: str) -> None:
    run = submit(page, "runs", {"prompt": "Plain", "variants": THREE, "max_new_tokens": 32})
    context = browser.new_context(base_url=live_server, java_script_enabled=False)
    try:
        plain = context.new_page()
        plain.goto(run["links"]["page"])
        expect(plain.locator("#status")).to_have_text("All 4 jobs have ended", timeout=PATIENCE_MS)
        assert "http-equiv" not in plain.content()
    finally:
        context.close()


def test_narrow_columns_become_tabs(page: Page) -> None:
    run = submit(page, "runs", {"prompt": "Narrow", "variants": THREE, "max_new_tokens": 8})
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto(run["links"]["page"])
    expect(page.locator("#status")).to_have_text("All 4 jobs have ended")
    expect(page.locator(".run-column:visible")).to_have_count(1)
    page.get_by_role("tab").first.press("ArrowRight")
    expect(page.locator("#column-1")).to_be_visible()
    expect(page.get_by_role("tab").nth(1)).to_be_focused()
    assert overflow(page) == 0


def test_a_job_is_found_again_by_a_word(page: Page) -> None:
    needle = word()
    job = finished(page, f"Remember {needle} please")
    page.goto("/models")
    page.keyboard.press("/")
    page.wait_for_url("**/history#q")
    expect(page.locator("#q")).to_be_focused()
    page.locator("#q").fill(needle)
    page.locator("#q").press("Enter")
    expect(page.locator(".history-row")).to_have_count(1)
    expect(page.locator("#q")).to_have_value(needle)
    page.get_by_role("link", name=f"Remember {needle} please").click()
    page.wait_for_url(f"**/jobs/{job['id']}")


def test_selected_jobs_are_compared_and_deleted(page: Page) -> None:
    needle = word()
    jobs = [finished(page, f"{needle} number {number}") for number in range(3)]
    page.goto(f"/history?q={needle}")
    expect(page.locator(".history-row")).to_have_count(3)
    expect(page.get_by_role("button", name="Delete selected")).to_be_disabled()
    for job in jobs[:2]:
        page.locator(f'input[value="{job["id"]}"]').check()
    expect(page.locator("#selected")).to_have_text("2 selected")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("[data-job]")).to_have_count(2)
    page.goto(f"/history?q={needle}")
    for job in jobs[:2]:
        page.locator(f'input[value="{job["id"]}"]').check()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete selected").click()
    expect(page.locator(".history-row")).to_have_count(1)
    expect(page).to_have_url(re.compile(rf"/history\?q={needle}$"))
    assert page.request.get(f"/api/v1/jobs/{jobs[0]['id']}").status == 404
    assert page.request.get(f"/api/v1/jobs/{jobs[2]['id']}").status == 200


def test_older_pages_keep_the_filters(page: Page) -> None:
    needle = word()
    for _ in range(7):
        variants = [{"strategy": "sampling", "samples": 4}]
        submit(page, "runs", {"prompt": needle, "variants": variants, "max_new_tokens": 1})
    page.goto(f"/history?q={needle}")
    expect(page.locator(".history-row")).to_have_count(25)
    page.get_by_role("link", name="Older").click()
    expect(page.locator(".history-row")).to_have_count(3)
    page.get_by_role("link", name="Newest").click()
    expect(page.locator(".history-row")).to_have_count(25)


def test_generated_text_is_only_text(page: Page) -> None:
    hostile = f"<img src=x onerror=alert(1)><b>{word()}</b>"
    job = finished(page, hostile)
    run = submit(page, "runs", {"prompt": hostile, "variants": THREE[:1], "max_new_tokens": 4})
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for path in ("/history", f"/compare?id={job['id']}", run["links"]["page"]):
        page.goto(path)
        assert page.locator("main img, main b").count() == 0
        expect(page.get_by_text(hostile).first).to_be_visible()


def test_the_queue_stays_current(page: Page) -> None:
    page.goto("/queue")
    expect(page.locator("[data-worker]").first).to_be_visible()
    expect(page.locator("#no-worker")).to_be_hidden()
    with page.expect_response("**/api/v1/queue"):
        pass
    with page.expect_response("**/api/v1/queue"):
        pass
    expect(page.locator("#chart")).to_be_visible()


def test_the_model_cards_say_how_large_they_are(page: Page) -> None:
    page.goto("/models")
    card = page.locator(".model-card", has_text="tiny-llama").first
    expect(card).to_contain_text("parameters")
    expect(card).to_contain_text("Loaded by 1 worker")


@pytest.mark.parametrize("has_script", [True, False])
def test_a_fine_tuned_model_is_shown_beside_its_base_and_has_a_card(
    browser: Browser, live_server: str, has_script: bool
) -> None:
    context = browser.new_context(base_url=live_server, java_script_enabled=has_script)
    try:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.goto("/models")
        names = page.locator(".model-family .model-card h2")
        assert names.all_text_contents() == ["tiny-llama", "tiny-neo"]
        tuned = page.locator(".model-card", has_text="Fine-tuned from")
        expect(tuned).to_contain_text("26,000 training examples, 990 held out")
        expect(tuned.get_by_role("row", name="Bits per byte")).to_contain_text("−0.1443")
        curve = tuned.get_by_role("img")
        curve.scroll_into_view_if_needed()
        expect(curve).to_be_visible()
        tuned.get_by_role("link", name="Model card").click()
        page.wait_for_url("**/models/tiny-neo/card")
        expect(page.get_by_role("heading", level=1)).to_have_text("tiny-neo")
        expect(page.get_by_text("<script>alert(1)</script>")).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert all(address.startswith(live_server) for address in asked)
        assert f"{live_server}/models/tiny-neo/loss.svg" in asked
        page.goto("/models/tiny-neo/loss.svg")
        assert not page.locator("script").count()
    finally:
        context.close()


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_page_scrolls_sideways_or_logs_an_error(page: Page, width: int) -> None:
    run = submit(page, "runs", {"prompt": "x" * 200, "variants": THREE, "max_new_tokens": 2})
    page.set_viewport_size({"width": width, "height": 800})
    job_id = run["jobs"][0]["id"]
    for path in (*PATHS, run["links"]["page"], f"/compare?id={job_id}", "/history?q=zzz-absent"):
        answer = page.goto(path)
        assert answer is not None
        assert answer.status == 200
        assert overflow(page) == 0, path


def test_the_snippets_run_unchanged(page: Page) -> None:
    page.goto("/docs")
    snippets = page.locator("details.snippet code")
    curls = page.locator("div.snippet .row:has(.js-copy) + pre code")
    assert snippets.count() == curls.count() > 10
    programs = [(sys.executable, "-c", text) for text in snippets.all_text_contents()]
    if shutil.which("curl") and shutil.which("python3") and shutil.which("bash"):
        # --fail-with-body turns an error response into an exit status; the snippets are unchanged.
        fails = 'curl() { command curl --fail-with-body "$@"; }\nset -e\n'
        programs += [("bash", "-c", fails + text) for text in curls.all_text_contents()]
    for program in programs:
        done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (program[2], done.stdout[-500:], done.stderr[-500:])
