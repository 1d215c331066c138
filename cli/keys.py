"""``textmill keys``: creates, lists and revokes API keys, in the database itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from textmill.cli.terminal import printable

if TYPE_CHECKING:
    from textmill.core.access.keys import KeyRecord, KeyStore

FIRST_NAME = "first admin"
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_SCOPES = ("submit", "read", "admin")
_KNOWN_SCOPES = (*_SCOPES, "priority")


@click.group()
def keys() -> None:
    """Create, list and revoke API keys, for the modes demo and team."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope", help="Any of submit, read, priority, admin, with commas.  [default: submit,read]"
)
@click.option("--admin", "is_admin", is_flag=True, help="The same as --scope submit,read,admin.")
@click.option("--expires", help="Time after which it is refused, such as 90d, 12h or 30m.")
@click.option("--tokens-per-day", type=click.IntRange(min=1), help="Limit of its own.")
@click.option("--team", "sees_all", is_flag=True, help="It also reads the texts of the others.")
def create(
    name: str,
    scope: str | None,
    is_admin: bool,
    expires: str | None,
    tokens_per_day: int | None,
    sees_all: bool,
) -> None:
    """Create a key called NAME and print it, this once: only its SHA-256 is stored."""
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise click.BadParameter("use 1 to 100 printable characters", param_hint="NAME")
    if is_admin and scope is not None:
        raise click.UsageError("Give --admin or --scope, not both.")
    scopes = _SCOPES if is_admin else _scopes(scope or "submit,read")
    with _key_store() as store:
        key, token = store.create(
            name.strip(),
            scopes,
            expires_seconds=None if expires is None else _seconds(expires),
            tokens_per_day=tokens_per_day,
            sees_all=sees_all,
        )
    click.echo(
        f"Created the key {printable(key.name)} ({key.id}): {', '.join(key.scopes)}.", err=True
    )
    click.echo("It is not shown again:", err=True)
    click.echo(token)


@keys.command("list")
def list_keys() -> None:
    """List all keys, without their secrets."""
    with _key_store() as store:
        found = store.all()
    if not found:
        click.echo("There are no keys; `textmill keys create NAME` creates one.")
    for key in found:
        click.echo(printable(_line(key)))


@keys.command()
@click.argument("which")
def revoke(which: str) -> None:
    """Revoke the key WHICH: its name, its id, or the first eleven characters of the key."""
    with _key_store() as store:
        key = store.revoke(which)
    click.echo(printable(f"Revoked the key {key.name} ({key.id}); it is refused from now on."))


@keys.command(hidden=True)
def create_first() -> None:
    """Create the first admin key, if there is none, and print it; `up` runs this."""
    from textmill.core.errors import Conflict

    with _key_store() as store:
        if store.has_admin():
            return
        try:
            _, token = store.create(FIRST_NAME, _SCOPES)
        except Conflict:  # another process did so meanwhile, or it exists without that scope
            return
    click.echo(token)


@contextmanager
def _key_store() -> Iterator[KeyStore]:
    from textmill.cli.database import opened_database
    from textmill.core.access.keys import KeyStore

    with opened_database() as engine:
        yield KeyStore(engine)


def _scopes(text: str) -> list[str]:
    given = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in given if part not in _KNOWN_SCOPES]
    if unknown or not given:
        raise click.BadParameter(f"use any of {', '.join(_KNOWN_SCOPES)}", param_hint="--scope")
    return given


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        message = "use a whole number and one of s, m, h, d, w, such as 90d"
        raise click.BadParameter(message, param_hint="--expires")
    return float(int(match[1]) * _UNITS[match[2]])


def _line(key: KeyRecord) -> str:
    if key.revoked_at is not None:
        state = "revoked"
    elif not key.is_valid:
        state = "expired"
    else:
        state = "in use" if key.expires_at is None else f"until {_date(key.expires_at)}"
    used = "never used" if key.last_used_at is None else f"last used {_date(key.last_used_at)}"
    return f"{key.id}  {key.prefix}…  {','.join(key.scopes)}  {state}, {used}  {key.name}"


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
