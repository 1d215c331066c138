"""Alembic's entry: runs inside the connection that ``migrations.upgrade`` opened.

Also serves ``alembic -c`` and ``alembic check`` when a caller sets the ``connection`` attribute.
"""

from __future__ import annotations

from alembic import context

from textmill.core.database import access_tables  # noqa: F401 - adds its tables to Base
from textmill.core.database.tables import Base

# Created by the migrations on one of the two databases only, and not part of the tables' models.
_OWN_OBJECTS = {"search_vector", "ix_jobs_search_vector"}


def _is_ours(obj: object, name: str | None, type_: str, reflected: bool, other: object) -> bool:
    return name not in _OWN_OBJECTS and not str(name or "").startswith("jobs_search")


def run() -> None:
    """Run the migrations, in the caller's transaction or else each in one of its own."""
    connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_object=_is_ours,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
