"""The database's schema as Alembic migrations.

Imports ``core.database.tables`` and ``core.settings`` alone.
"""
