"""The rows of the matrix, in its order."""

from typing import Final

from faults.matrix import Row
from faults.rows import broker, gateway, workers

ROWS: Final[dict[str, Row]] = {
    row.name: row
    for row in (
        workers.killed_at_work,
        workers.killed_between,
        broker.broker_away,
        gateway.gateway_killed,
    )
}
