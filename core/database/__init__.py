"""The database: connections, time limits, errors, tables, maintenance."""
