"""Jobs: what they are, how they are stored, what can happen to them, and who is notified."""

__all__ = [
    "admission",
    "aside",
    "capacity",
    "context",
    "lifecycle",
    "messages",
    "notices",
    "objects",
    "observer",
    "reading",
    "repository",
    "sizes",
    "spec",
    "tenants",
    "watchers",
]
