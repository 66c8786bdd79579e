"""`python -m faults.cluster`."""

import sys

from faults.cluster.command import main

if __name__ == "__main__":
    sys.exit(main())
