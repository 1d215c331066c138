"""One running product for all tests from outside, and the means to start more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.acceptance.stack import Stack
from tests.finetunings import CARD, CURVE, HOSTILE_MARKDOWN, finetune_json
from tests.servers import RedisServer, running_redis
from textmill.migrations.upgrade import upgrade

CHAT_TEMPLATE = """\
{% for message in messages %}
{{ message.role }}: {{ message.content }}
{% endfor %}
{% if add_generation_prompt %}assistant:{% endif %}
"""


@pytest.fixture(scope="session")
def tiny_models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models file with a Llama and a GPT-Neo, long enough in context to be watched.

    The GPT-Neo's folder says that it was fine-tuned from the Llama, and has a hostile card.
    """
    from tests.tiny_models import build_patient_llama, build_tiny_gpt_neo
    from textmill.engine.models.sources import prepare

    folder = tmp_path_factory.mktemp("models")
    build_patient_llama(folder / "llama")
    (folder / "llama" / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    neo = build_tiny_gpt_neo(folder / "neo", context_length=512)
    base = prepare(str(folder / "llama"), None, folder / "unused", lambda _: None)
    (neo / "finetune.json").write_bytes(finetune_json(base="llama", base_revision=base.revision))
    (neo / "loss.svg").write_text(CURVE, encoding="utf-8")
    (neo / "README.md").write_text(CARD + HOSTILE_MARKDOWN, encoding="utf-8")
    path = folder / "models.toml"
    path.write_text(
        '[[models]]\nname = "tiny-llama"\nsource = "./llama"\ndtype = "float32"\ndefault = true\n'
        'description = "A tiny random Llama"\n'
        '[[models]]\nname = "tiny-neo"\nsource = "./neo"\n'
    )
    return path


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, tiny_models_file: Path) -> Iterator[Stack]:
    """Web and one worker on SQLite and Redis, shared by the session."""
    folder = tmp_path_factory.mktemp("stack")
    url = f"sqlite:///{folder}/textmill.db"
    upgrade(url)
    with running_redis() as redis:
        running = Stack(folder, url, redis, tiny_models_file)
        try:
            yield running.start()
        finally:
            running.stop()


@pytest.fixture(scope="session")
def live_server(stack: Stack) -> str:
    """The address of the running product."""
    return stack.url


@pytest.fixture
def make_stack(tmp_path: Path, tiny_models_file: Path) -> Iterator[Callable[..., Stack]]:
    """Stacks of a test's own: ``make_stack(database_url, redis, **settings)``."""
    made: list[Stack] = []

    def make(database_url: str, redis: RedisServer | None, **settings: str) -> Stack:
        folder = tmp_path / f"stack-{len(made)}"
        folder.mkdir()
        made.append(Stack(folder, database_url, redis, tiny_models_file, settings))
        return made[-1]

    yield make
    for stack in made:
        stack.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; the tests are skipped without it, except in CI."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is not installed; CI must install it")
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()
