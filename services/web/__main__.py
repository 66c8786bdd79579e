"""Runs the web service: `python -m smalti.services.web`."""

import sys

from smalti.entrance import begin


def main() -> int:
    """Runs the service; returns its exit code. Signals are received before anything large is imported."""
    begin("smalti web", status=0)
    from smalti.services.web.service import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
