"""`python -m smalti.services.ranker`."""

import sys

from smalti.messages import Stage
from smalti.service import Process, Service, run


def build(process: Process) -> Service:
    """Imports torch only when the settings are known to be good."""
    from smalti.services.ranker import service

    return service.build(process)


if __name__ == "__main__":
    sys.exit(run("ranker", Stage.RANK, build))
