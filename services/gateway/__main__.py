"""`python -m smalti.services.gateway`."""

import logging
import sys

from smalti.messages import Stage
from smalti.service import Process, Service, run


def build(process: Process) -> Service:
    """Builds the service. The database library is imported only after the settings of the process are checked."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # It logs every plugin when it is imported.
    from smalti.services.gateway.service import build

    return build(process)


if __name__ == "__main__":
    sys.exit(run("gateway", Stage.EVENTS, build))
