"""The database's schema, step by step (Alembic). Imports core.models and core.settings alone."""
