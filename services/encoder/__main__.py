"""`python -m smalti.services.encoder`."""

import sys

from smalti.messages import Stage
from smalti.service import Process, Service, run


def build(process: Process) -> Service:
    """Imports JAX only when the settings are known to be good."""
    from smalti.services.encoder import service

    return service.build(process)


if __name__ == "__main__":
    sys.exit(run("encoder", Stage.ENCODE, build))
