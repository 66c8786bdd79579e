"""The database of the gateway: connection, tables, migrations, and the clock."""

__all__ = [
    "calls",
    "clock",
    "commit",
    "connection",
    "deadlines",
    "opening",
    "presence",
    "rows",
    "schema",
    "tables",
]
