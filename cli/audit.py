"""``textmill audit``: prints who deleted, canceled, shared or revoked what."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from textmill.cli.terminal import printable


@click.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
def audit(limit: int) -> None:
    """Print the latest rows of the audit log, newest first.

    Columns: time, who, what, the id of the job, run or key, a keyed hash of a visitor's address,
    the reason.
    """
    from textmill.cli.database import opened_database
    from textmill.core.access.audit import latest

    with opened_database() as engine:
        rows = latest(engine, limit)
    for row in rows:
        at = datetime.fromtimestamp(row.at / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        columns = (
            at,
            row.principal,
            row.action,
            row.object,
            row.address_id or "-",
            row.reason or "",
        )
        click.echo(printable("  ".join(columns)))
