"""Runs the encoder service: `python -m smalti.services.encoder`."""

import sys

from smalti.messages import Stage
from smalti.service import Process, Service, run


def build(process: Process) -> Service:
    """Builds the service; imports JAX late, so that an invalid setting is reported at once."""
    from smalti.services.encoder import service

    return service.build(process)


if __name__ == "__main__":
    sys.exit(run("encoder", Stage.ENCODE, build))
