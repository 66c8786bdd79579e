"""Runs the generator service: `python -m smalti.services.generator`."""

import sys

from smalti.messages import Stage
from smalti.service import Process, Service, run


def build(process: Process) -> Service:
    """Builds the service; imports JAX late, so that an invalid setting is reported at once."""
    from smalti.services.generator import service

    return service.build(process)


if __name__ == "__main__":
    sys.exit(run("generator", Stage.GENERATE, build))
