"""Settings: what is read, and what stops the start."""

from __future__ import annotations

import pytest

from core.errors import SettingsError
from core.settings import Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_environment({"PATH": "/bin"})
    assert settings.port == 8000
    assert settings.host == "127.0.0.1"
    assert settings.redis_url is None
    assert settings.database_url == f"sqlite:///{settings.home}/textmill.db"


def test_an_unknown_name_is_refused_with_the_likely_one() -> None:
    with pytest.raises(SettingsError, match=r"TEXTMILL_PROT .* TEXTMILL_PORT"):
        Settings.from_environment({"TEXTMILL_PROT": "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TEXTMILL_PORT", "0"),
        ("TEXTMILL_PORT", "eighty"),
        ("TEXTMILL_PORT", "65536"),
        ("TEXTMILL_PORT", ""),
        ("TEXTMILL_HOST", "a b"),
        ("TEXTMILL_HOME", ""),
        ("TEXTMILL_DATABASE_URL", "mysql://x"),
        ("TEXTMILL_DATABASE_URL", "sqlite://"),
        ("TEXTMILL_REDIS_URL", "http://x"),
        ("TEXTMILL_WORKERS", "-1"),
        ("TEXTMILL_SLOTS", "0"),
        ("TEXTMILL_MAX_QUEUED", "1.5"),
        ("TEXTMILL_SERVE", "a,,b"),
        ("TEXTMILL_DRAIN_SECONDS", "nan"),
        ("TEXTMILL_DRAIN_SECONDS", "inf"),
        ("TEXTMILL_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({name: value})


def test_settings_survive_the_way_through_an_environment() -> None:
    settings = Settings.from_environment(
        {
            "TEXTMILL_HOME": "/tmp/x",
            "TEXTMILL_SERVE": "a, b",
            "TEXTMILL_SLOTS": "3",
            "TEXTMILL_REDIS_URL": "redis://localhost:1/0",
        }
    )
    assert Settings.from_environment(settings.to_environment()) == settings
    assert settings.serve == ("a", "b")


def test_an_address_without_a_driver_gets_ours() -> None:
    settings = Settings.from_environment({"TEXTMILL_DATABASE_URL": "postgresql://u@h/d"})
    assert settings.database_url == "postgresql+psycopg://u@h/d"
