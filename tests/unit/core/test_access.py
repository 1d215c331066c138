"""Keys' form, host names, the secret, and the settings that go together."""

from __future__ import annotations

import stat
import string
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from textmill.core.access.principals import ADMIN, EVERYTHING, READ, SUBMIT, key_holder, visitor
from textmill.core.access.secret import signing_secret
from textmill.core.access.tokens import digest, is_well_formed, new_token
from textmill.core.errors import SettingsError
from textmill.core.setting_values import is_loopback
from textmill.core.settings import Settings


def test_a_key_is_random_and_its_checksum_finds_every_changed_character() -> None:
    token = new_token()
    assert token.startswith("tm_")
    assert len(token) == 52
    assert is_well_formed(token)
    assert len({new_token() for _ in range(100)}) == 100
    for place in range(3, len(token)):
        for other in string.ascii_letters + string.digits:
            changed = token[:place] + other + token[place + 1 :]
            assert is_well_formed(changed) == (changed == token)
    assert not any(
        map(is_well_formed, (token[:-1], token + "0", "", "tm_", token.replace("_", "")))
    )


def test_a_key_is_stored_as_its_sha_256() -> None:
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_principals_see() -> None:
    anna, admin = (
        key_holder("a", "anna", [READ], sees_all=False),
        key_holder("b", "ops", [ADMIN], sees_all=False),
    )
    assert not anna.reads.allows(visitor("x").owner_id)
    assert admin.reads == admin.changes == EVERYTHING
    assert admin.may(SUBMIT)
    assert not anna.may(SUBMIT)
    team = key_holder("c", "carl", [READ, SUBMIT], sees_all=True)
    assert team.reads == EVERYTHING
    assert team.changes != EVERYTHING


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("app.localhost.", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evillocalhost", False),
    ],
)
def test_loopback_names(host: str, is_own: bool) -> None:
    assert is_loopback(host) == is_own


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"HOST": "0.0.0.0"}, ("demo", "team", "TEXTMILL_ALLOWED_HOSTS=127.0.0.1,localhost")),
        ({"HOST": "192.168.1.4"}, ("demo", "team")),
        ({"ACCESS": "demo"}, ("TEXTMILL_ALLOWED_HOSTS",)),
        ({"ACCESS": "team", "HOST": "0.0.0.0"}, ("TEXTMILL_ALLOWED_HOSTS",)),
        ({"ACCESS": "public"}, ("local, demo, team",)),
        ({"ALLOWED_HOSTS": "https://demo.example"}, ("host names",)),
        ({"ALLOWED_HOSTS": "demo.example:80"}, ("host names",)),
        ({"CORS_ORIGINS": "*"}, ("origins such as",)),
        ({"EMBED_ORIGINS": "https://a.example/path"}, ("origins such as",)),
        ({"SECRET": "short"}, ("32",)),
    ],
)
def test_settings_that_would_open_too_much_stop_the_start(
    settings: dict[str, str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({f"TEXTMILL_{name}": text for name, text in settings.items()})
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_container_on_loopback_may_listen_on_its_own_address() -> None:
    hosts = {"TEXTMILL_HOST": "0.0.0.0", "TEXTMILL_ALLOWED_HOSTS": "127.0.0.1,localhost"}
    settings = Settings.from_environment(hosts)
    assert settings.allowed_hosts == ("127.0.0.1", "localhost")
    assert Settings.from_environment(settings.to_environment()) == settings


def test_the_secret_is_made_once_is_private_and_is_never_printed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: signing_secret(settings), range(8)))
    assert len(found) == 1
    file = tmp_path / "home" / "secret"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["secret"]
    file.write_text("")
    assert signing_secret(settings) not in found
    given = Settings(secret="s" * 32, api_key="tm_x")
    assert signing_secret(given) == "s" * 32
    assert "s" * 32 not in repr(given)
    assert "tm_x" not in repr(given)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(SettingsError, match="TEXTMILL_SECRET"):
        signing_secret(Settings(home=tmp_path / "home"))
