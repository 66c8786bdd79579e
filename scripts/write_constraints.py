"""Writes the installed versions into constraints.txt, so that every machine installs the same ones."""

from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The virtual environment brings pip itself.
LEFT_OUT = {"pip", "smalti"}


def main() -> None:
    """Writes one `name==version` per line, sorted, without local versions such as `+cpu`."""
    versions = {
        distribution.metadata["Name"].lower(): distribution.version.partition("+")[0]
        for distribution in distributions()
    }
    lines = [f"{name}=={version}" for name, version in sorted(versions.items()) if name not in LEFT_OUT]
    header = "# Every version that `make` installs. Written by `make constraints`.\n"
    (ROOT / "constraints.txt").write_text(header + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
