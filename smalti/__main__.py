"""`python -m smalti` runs the `smalti` command."""

from smalti.cli import main

if __name__ == "__main__":
    main()
