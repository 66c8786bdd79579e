"""Writes the installed versions into constraints.txt, so that every machine installs the same ones."""

from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The virtual environment brings pip itself.
LEFT_OUT = {"pip", "smalti"}
OTHER_PYTHONS = ('async-timeout==5.0.1; python_full_version < "3.11.3"',)
"""What only another Python than that of the virtual environment needs; a test names what is missing."""


def main() -> None:
    """Writes one `name==version` per line, sorted, without local versions such as `+cpu`."""
    versions = {
        distribution.metadata["Name"].lower(): distribution.version.partition("+")[0]
        for distribution in distributions()
    }
    lines = [f"{name}=={version}" for name, version in versions.items() if name not in LEFT_OUT]
    header = "# Every version that `make` installs. Written by `make constraints`.\n"
    text = header + "\n".join(sorted((*lines, *OTHER_PYTHONS), key=_name)) + "\n"
    (ROOT / "constraints.txt").write_text(text, encoding="utf-8")


def _name(line: str) -> str:
    return line.partition("==")[0]


if __name__ == "__main__":
    main()
