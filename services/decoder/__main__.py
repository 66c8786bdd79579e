"""Runs the decoder service: `python -m smalti.services.decoder`."""

import sys

from smalti.messages import Stage
from smalti.service import Process, Service, run


def build(process: Process) -> Service:
    """Builds the service; imports JAX late, so that an invalid setting is reported at once."""
    from smalti.services.decoder import service

    return service.build(process)


if __name__ == "__main__":
    sys.exit(run("decoder", Stage.DECODE, build))
