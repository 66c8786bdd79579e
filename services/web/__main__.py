"""`python -m smalti.services.web`."""

import sys

from smalti.services.web.service import run

if __name__ == "__main__":
    sys.exit(run())
