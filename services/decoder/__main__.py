"""Runs the decoder service: `python -m smalti.services.decoder`."""

import sys

from smalti.entrance import begin


def main() -> int:
    """Runs the service; returns its exit code. Signals are received before anything large is imported."""
    begin("smalti decoder", status=0)
    from smalti.messages import Stage
    from smalti.service import Process, Service, run

    def build(process: Process) -> Service:
        # Imports JAX late, so that an invalid setting is reported at once.
        from smalti.services.decoder import service

        return service.build(process)

    return run("decoder", Stage.DECODE, build)


if __name__ == "__main__":
    sys.exit(main())
