"""Settings: invalid values and their messages, and passing them to a child process."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmill.core.errors import SettingsError
from textmill.core.settings import Settings


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = Settings.from_environment({"PATH": "/bin"})
    assert settings.home == Path(".textmill").absolute()
    assert settings.database_url == f"sqlite:///{settings.home}/textmill.db"
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.redis_url is None
    assert settings.models_path is None
    assert settings.serve == ()
    assert settings.num_workers == 1
    assert settings.num_slots is None
    assert settings.max_queued == 1000
    assert settings.is_sqlite


def test_an_unknown_name_is_refused_with_the_likely_one() -> None:
    with pytest.raises(SettingsError, match=r"TEXTMILL_PROT is not .*Did you mean TEXTMILL_PORT"):
        Settings.from_environment({"TEXTMILL_PROT": "8000"})


def test_an_unknown_name_like_no_other_points_to_the_list() -> None:
    with pytest.raises(SettingsError, match=r"TEXTMILL_ZZZZZZZZZZ is not .*README"):
        Settings.from_environment({"TEXTMILL_ZZZZZZZZZZ": "1"})


def test_names_of_others_and_of_the_tests_are_left_alone() -> None:
    environment = {"PATH": "/bin", "TEXTMILL_TEST_X": "1", "TEXTMILL_BENCH_Y": "1", "TEXTMIL": "1"}
    assert Settings.from_environment(environment) == Settings.from_environment({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOME", ""),
        ("HOME", "a\0b"),
        ("HOST", ""),
        ("HOST", "a b"),
        ("HOST", "me@there"),
        ("HOST", "1.2.3.4/8"),
        ("PORT", ""),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "8000.5"),
        ("PORT", "eighty"),
        ("PORT", "9" * 5000),
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "sqlite:///"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "mysql://a/b"),
        ("DATABASE_URL", "postgresql+psycopg2://a/b"),
        ("REDIS_URL", ""),
        ("REDIS_URL", "http://localhost"),
        ("REDIS_URL", "redis:"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "redis://[::1"),
        ("SERVE", ""),
        ("SERVE", "a,,b"),
        ("SERVE", "a,"),
        ("WORKERS", "-1"),
        ("WORKERS", "65"),
        ("SLOTS", "0"),
        ("SLOTS", "1025"),
        ("MAX_QUEUED", "0"),
        ("MAX_QUEUED", "1.5"),
        ("MAX_QUEUED_PER_OWNER", "-1"),
        ("DEADLINE_SECONDS", "nan"),
        ("DEADLINE_SECONDS", "inf"),
        ("DEADLINE_SECONDS", "0.5"),
        ("DRAIN_SECONDS", "-0.1"),
        ("DRAIN_SECONDS", "soon"),
        ("WORKER_METRICS_PORT", "65536"),
        ("LOG_LEVEL", "INFO"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"TEXTMILL_{name} is .*; it must be "):
        Settings.from_environment({f"TEXTMILL_{name}": value})


@pytest.mark.parametrize("name", ["HOME", "MODELS", "KERNELS"])
def test_a_path_in_the_home_folder_of_an_unknown_user_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({f"TEXTMILL_{name}": "~textmill-nobody/x"})
    assert str(caught.value).startswith(f"TEXTMILL_{name} is '~textmill-nobody/x'; it must be ")
    assert str(caught.value).endswith(
        "The home folder of '~textmill-nobody' is unknown;"
        " write the path '~textmill-nobody/x' in full."
    )


@given(
    st.sampled_from(["PORT", "SLOTS", "WORKERS", "DRAIN_SECONDS", "SERVE", "HOST", "HOME"]),
    st.text(),
)
def test_no_value_breaks_the_reading_but_for_a_setting_error(name: str, value: str) -> None:
    try:
        Settings.from_environment({f"TEXTMILL_{name}": value})
    except SettingsError as error:
        message = str(error)
        assert f"TEXTMILL_{name}" in message


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_a_postgresql_address_takes_the_installed_driver(scheme: str) -> None:
    settings = Settings.from_environment({"TEXTMILL_DATABASE_URL": f"{scheme}://u:p@h/d"})
    assert settings.database_url == "postgresql+psycopg://u:p@h/d"
    assert not settings.is_sqlite


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://u:p@h/1", "unix:///run/redis.sock"])
def test_redis_addresses_stay_as_they_are(url: str) -> None:
    assert Settings.from_environment({"TEXTMILL_REDIS_URL": url}).redis_url == url


@given(
    home=st.from_regex(r"/[a-z][a-z ]{0,8}[a-z]", fullmatch=True),
    port=st.integers(1, 65_535),
    slots=st.none() | st.integers(1, 1024),
    serve=st.lists(st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True), max_size=3),
    redis_url=st.none() | st.just("redis://127.0.0.1:6379/0"),
    deadline=st.floats(1, 31_536_000),
    drain=st.floats(0, 3_600),
)
def test_settings_pass_to_a_child_process_unchanged(
    home: str,
    port: int,
    slots: int | None,
    serve: list[str],
    redis_url: str | None,
    deadline: float,
    drain: float,
) -> None:
    environment = {
        "TEXTMILL_HOME": home,
        "TEXTMILL_PORT": str(port),
        "TEXTMILL_DEADLINE_SECONDS": repr(deadline),
        "TEXTMILL_DRAIN_SECONDS": repr(drain),
    }
    if slots is not None:
        environment["TEXTMILL_SLOTS"] = str(slots)
    if serve:
        environment["TEXTMILL_SERVE"] = " , ".join(serve)
    if redis_url is not None:
        environment["TEXTMILL_REDIS_URL"] = redis_url
    settings = Settings.from_environment(environment)
    assert settings.serve == tuple(serve)
    again = settings.to_environment()
    assert again.items() >= {"TEXTMILL_PORT": str(port), "TEXTMILL_HOME": home}.items()
    assert Settings.from_environment(again) == settings


OIDC = {
    "TEXTMILL_ACCESS": "team",
    "TEXTMILL_ALLOWED_HOSTS": "team.example.org",
    "TEXTMILL_OIDC_ISSUER": "https://login.example.org/realms/a/",
    "TEXTMILL_OIDC_CLIENT_ID": "textmill",
    "TEXTMILL_OIDC_CLIENT_SECRET": "not-to-be-shown",
}


def test_the_settings_of_single_sign_on() -> None:
    more = {"TEXTMILL_OIDC_ADMINS": "a@example.org, ops", "TEXTMILL_OIDC_SCOPES": " openid  groups"}
    settings = Settings.from_environment({**OIDC, **more})
    assert settings.oidc_issuer == "https://login.example.org/realms/a/"
    assert settings.oidc_admins == ("a@example.org", "ops")
    assert settings.oidc_scopes == "openid groups"
    assert Settings.from_environment(settings.to_environment()) == settings
    assert "not-to-be-shown" not in repr(settings)
    empty = {name: "" for name in OIDC if "OIDC" in name} | {"TEXTMILL_OIDC_ALLOWED": ""}
    assert Settings.from_environment(empty).oidc_issuer is None  # unset, in a Compose file


@pytest.mark.parametrize(
    "issuer",
    [
        "http://login.example.org",
        "login.example.org",
        "ftp://127.0.0.1",
        "https://",
        "https://a b",
        "https://user:word@login.example.org",
        "https://login.example.org?x",
        "https://login.example.org/?",
        "https://login.example.org/#",
        "https://login.example.org:x",
        "https://[::1",
        "http://127.0.0.1.example.org",
        "https://login.example.org/" + "x" * 255,
    ],
)
def test_an_issuer_that_cannot_be_trusted_is_refused(issuer: str) -> None:
    with pytest.raises(SettingsError, match=r"TEXTMILL_OIDC_ISSUER is .*; it must be an address"):
        Settings.from_environment({**OIDC, "TEXTMILL_OIDC_ISSUER": issuer})


@pytest.mark.parametrize("issuer", ["http://127.0.0.1:9", "http://localhost/a", "http://[::1]:1"])
def test_an_issuer_on_this_machine_needs_no_tls(issuer: str) -> None:
    assert Settings.from_environment({**OIDC, "TEXTMILL_OIDC_ISSUER": issuer}).oidc_issuer == issuer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SCOPES", ""),
        ("SCOPES", "profile"),
        ("SCOPES", 'openid "'),
        ("ADMINS", "a,,b"),
        ("ALLOWED", "@"),
        ("CLIENT_ID", "a\nb"),
    ],
)
def test_a_bad_setting_of_single_sign_on_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"TEXTMILL_OIDC_{name} is .*; it must be "):
        Settings.from_environment({**OIDC, f"TEXTMILL_OIDC_{name}": value})


@pytest.mark.parametrize("name", ["ISSUER", "CLIENT_ID", "CLIENT_SECRET"])
def test_single_sign_on_needs_issuer_client_and_secret(name: str) -> None:
    without = {key: value for key, value in OIDC.items() if key != f"TEXTMILL_OIDC_{name}"}
    with pytest.raises(SettingsError, match=f"needs TEXTMILL_OIDC_{name}"):
        Settings.from_environment(without)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ISSUER", "https://a"), ("ADMINS", "a@b"), ("ALLOWED", "@b"), ("SCOPES", "openid")],
)
def test_settings_that_would_have_no_effect_are_refused(name: str, value: str) -> None:
    own = {f"TEXTMILL_OIDC_{name}": value}
    with pytest.raises(SettingsError, match=f"OIDC_{name} is set, and TEXTMILL_ACCESS is local"):
        Settings.from_environment(own)
    hosts = {name: OIDC[name] for name in ("TEXTMILL_ACCESS", "TEXTMILL_ALLOWED_HOSTS")}
    with pytest.raises(SettingsError, match=f"OIDC_{name} is set, and single sign-on also needs"):
        Settings.from_environment({**hosts, **own})


@pytest.mark.parametrize(
    ("name", "value"),
    [("TEXTMILL_SECRET", "too-short"), ("TEXTMILL_OIDC_CLIENT_SECRET", "with-a\ttab")],
)
def test_a_secret_is_not_shown_in_the_message_about_it(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not one that can be used") as caught:
        Settings.from_environment({**OIDC, name: value})
    assert value not in str(caught.value)
