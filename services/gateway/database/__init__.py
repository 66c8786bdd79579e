"""The gateway's database: connection, tables, time, migrations."""
