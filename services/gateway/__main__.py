"""`python -m smalti.services.gateway`."""

import logging
import sys

from smalti.messages import Stage
from smalti.service import Process, Service, run


def build(process: Process) -> Service:
    """Imports the database's library only when the settings are known to be good."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # It tells of every plugin, from its import on.
    from smalti.services.gateway.service import build

    return build(process)


if __name__ == "__main__":
    sys.exit(run("gateway", Stage.EVENTS, build))
