"""The modes of access from outside: the first key, the commands, and DNS rebinding in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Page, Playwright, sync_playwright

from tests.acceptance.up import COMMAND, FIRST_START_SECONDS, Up, up_environment
from tests.oidc_provider import CLIENT_SECRET, Provider
from tests.tiny_models import build_tiny_llama

NAME = "demo.example.org"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    build_tiny_llama(tmp_path / "tiny")
    models = tmp_path / "models.toml"
    models.write_text('[[models]]\nname = "tiny"\nsource = "./tiny"\ndefault = true\n')
    return up_environment(
        tmp_path / "home", TEXTMILL_MODELS=str(models), TEXTMILL_ALLOWED_HOSTS=NAME
    )


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_up_prints_the_first_admin_key_once_and_keys_open_the_api(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment = environment | {"TEXTMILL_ACCESS": "team"}
    with Up(environment).killed_at_the_end() as up:
        up.await_ready(FIRST_START_SECONDS)
        assert up.process.stdout is not None
        lines = (re.search(r"first admin key.*: (tm_\w{49})$", line) for line in up.process.stdout)
        found = next(filter(None, lines), None)  # the worker may log a line before
        assert found
        token = found[1]
        refused = command(environment, "generate", "hello")
        assert refused.returncode == 1
        assert "API key" in refused.stderr
        made = command(environment, "keys", "create", "anna", "--expires", "1d")
        own = environment | {"TEXTMILL_API_KEY": made.stdout.strip()}
        written = command(own, "generate", "hello", "--max-new-tokens", "3")
        assert written.returncode == 0, written.stderr
        listed = command(environment, "keys", "list").stdout
        assert "anna" in listed
        assert "first admin" in listed
        assert made.stdout.strip() not in listed
        command(environment, "keys", "revoke", "anna")
        assert "revoked" in command(own, "generate", "hello").stderr
        logs = "".join(path.read_text() for path in (tmp_path / "home" / "logs").iterdir())
        assert token not in logs
        up.process.terminate()
        up.finish()
    with Up(environment).killed_at_the_end() as up:
        up.await_ready(FIRST_START_SECONDS)
        up.process.terminate()
        up.finish()
        assert not any("admin key" in line for line in up.lines)


def test_a_visitor_of_a_demo_uses_the_command_and_another_name_shows_nothing(
    environment: dict[str, str],
) -> None:
    environment = environment | {"TEXTMILL_ACCESS": "demo"}
    with Up(environment).killed_at_the_end() as up, sync_playwright() as playwright:
        up.await_ready(FIRST_START_SECONDS)
        written = command(environment, "generate", "hello", "--max-new-tokens", "3")
        assert written.returncode == 0, written.stderr
        page = _browser_with(playwright, "MAP * 127.0.0.1")
        good = page.goto(f"http://{NAME}:{up.port}/history")
        assert good is not None
        assert good.status == 200
        bad = page.goto(f"http://evil.example:{up.port}/history")
        assert bad is not None
        assert bad.status == 421
        answer = page.evaluate("fetch('/api/v1/jobs').then((answer) => answer.status)")
        assert answer == 421
        page.context.browser.close()  # type: ignore[union-attr]


def test_a_person_of_a_team_signs_in_at_the_provider_and_out_again(
    environment: dict[str, str], provider: Provider, tmp_path: Path
) -> None:
    provider.person |= {"email": "anna@example.org", "email_verified": True}
    provider.has_page = True
    environment = environment | provider.settings(TEXTMILL_ACCESS="team")
    with Up(environment).killed_at_the_end() as up, sync_playwright() as playwright:
        up.await_ready(FIRST_START_SECONDS)
        page = _browser_with(playwright, "MAP * 127.0.0.1")
        site = f"http://{NAME}:{up.port}"
        page.goto(f"{site}/history?q=a")
        page.get_by_role("link", name="Sign in with single sign-on").click()
        page.get_by_role("heading", name="The provider").wait_for()
        page.get_by_role("link", name="Go on").click()
        page.wait_for_url(f"{site}/history?q=a")
        page.goto(f"{site}/sign-in")
        assert page.get_by_text("anna@example.org").is_visible()
        page.get_by_role("main").get_by_role("button", name="Sign out").click()
        page.wait_for_url(f"{site}/sign-in*")
        page.get_by_role("link", name="Sign in with single sign-on").click()
        page.get_by_role("link", name="Go on").click()
        page.wait_for_url(f"{site}/")
        page.context.browser.close()  # type: ignore[union-attr]
        up.process.terminate()
        up.finish()
        logs = "".join(path.read_text() for path in (tmp_path / "home" / "logs").iterdir())
        for secret in (CLIENT_SECRET, "anna", "code="):
            assert secret not in logs + "".join(up.lines)


def _browser_with(playwright: Playwright, rules: str) -> Page:
    """A page in a browser in which names have other addresses."""
    flags = ["--no-sandbox", "--disable-background-networking", f"--host-resolver-rules={rules}"]
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    return playwright.chromium.launch(executable_path=path, args=flags).new_page()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "a", "--scope", "write"], "submit, read, admin"),
        (["create", "a", "--expires", "soon"], "90d"),
        (["create", "a", "--admin", "--scope", "read"], "not both"),
        (["create", " "], "printable"),
        (["revoke", "nobody"], "keys list"),
    ],
)
def test_a_wrong_command_says_what_to_do(
    environment: dict[str, str], arguments: list[str], words: str
) -> None:
    done = command(environment, "keys", *arguments)
    assert done.returncode != 0
    assert words in done.stderr
