"""The gateway, with its database counted: `python -m benchmarks.scale.counted_gateway PORT`.

It serves the counts of statements, commits and written rows as metrics on a port of 127.0.0.1.
"""

import sys
from typing import Any, Final

import sqlalchemy
from prometheus_client import CollectorRegistry, Counter, start_http_server
from sqlalchemy import event

from smalti.services.gateway.__main__ import main
from smalti.up.servers import HOST

WRITING: Final = frozenset({"INSERT", "UPDATE", "DELETE"})


def count(registry: CollectorRegistry, engine: Any = sqlalchemy.Engine) -> None:
    """Counts what an engine does from now on; by default, what all engines of this process do."""
    statements = Counter("statements", "Statements.", ["verb"], registry=registry)
    rows = Counter("rows", "Rows written.", ["verb"], registry=registry)
    commits = Counter("commits", "Transactions committed.", registry=registry)

    def executed(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        verb = statement.split(maxsplit=1)[0].upper()
        statements.labels(verb).inc()
        if verb in WRITING:
            rows.labels(verb).inc(max(0, cursor.rowcount))

    event.listen(engine, "after_cursor_execute", executed)
    event.listen(engine, "commit", lambda connection: commits.inc())


if __name__ == "__main__":
    counted = CollectorRegistry()
    count(counted)
    start_http_server(int(sys.argv[1]), addr=HOST, registry=counted)
    sys.exit(main())
