"""What may have happened to a file since it was written."""

from collections.abc import Callable

HARMS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "other": lambda content: b"\xff\0[" * 50,
    "deep": lambda content: b"[" * 50_000,
}
"""From the content of a file to what is left of it."""
