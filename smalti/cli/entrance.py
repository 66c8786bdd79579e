"""The entrance of the `smalti` command, which is prepared for signals before anything large is imported."""

import sys

from smalti.entrance import begin


def main() -> None:
    """Runs the command with the arguments of the process."""
    begin("smalti")
    from smalti.cli.command import run_process

    sys.exit(run_process(sys.argv[1:]))
