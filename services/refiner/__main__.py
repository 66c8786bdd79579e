"""Runs the refiner service: `python -m smalti.services.refiner`."""

import sys

from smalti.messages import Stage
from smalti.service import Process, Service, run


def build(process: Process) -> Service:
    """Builds the service; imports the engine late, so that an invalid setting is reported at once."""
    from smalti.services.refiner import service

    return service.build(process)


if __name__ == "__main__":
    sys.exit(run("refiner", Stage.REFINE, build))
