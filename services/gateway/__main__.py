"""Runs the gateway: `python -m smalti.services.gateway`."""

import sys

from smalti.entrance import begin


def main() -> int:
    """Runs the service; returns its exit code. Signals are received before anything large is imported."""
    begin("smalti gateway", status=0)
    import logging

    from smalti.messages import Stage
    from smalti.service import Process, Service, run

    def build(process: Process) -> Service:
        # The database library is imported only after the settings of the process are checked.
        logging.getLogger("alembic").setLevel(logging.WARNING)  # It logs every plugin when it is imported.
        from smalti.services.gateway import service

        return service.build(process)

    return run("gateway", Stage.EVENTS, build)


if __name__ == "__main__":
    sys.exit(main())
