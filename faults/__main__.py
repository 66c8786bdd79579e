"""Runs the fault matrix and prints the results: `python -m faults --help`."""

import sys

from faults.command import main

if __name__ == "__main__":
    sys.exit(main())
