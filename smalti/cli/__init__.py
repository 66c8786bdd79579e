"""The `smalti` command."""


def main() -> None:
    """Runs the command."""
