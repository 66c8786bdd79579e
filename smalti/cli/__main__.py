"""`python -m smalti.cli`: the `smalti` command where it is not installed."""

from smalti.cli import main

main()
