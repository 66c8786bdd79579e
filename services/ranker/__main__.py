"""Runs the ranker service: `python -m smalti.services.ranker`."""

import sys

from smalti.messages import Stage
from smalti.service import Process, Service, run


def build(process: Process) -> Service:
    """Builds the service; imports torch late, so that an invalid setting is reported at once."""
    from smalti.services.ranker import service

    return service.build(process)


if __name__ == "__main__":
    sys.exit(run("ranker", Stage.RANK, build))
