"""`python -m faults.compose`."""

import sys

from faults.compose.command import main

if __name__ == "__main__":
    sys.exit(main())
