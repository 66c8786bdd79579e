"""Jobs: what they are, how they are stored, what can happen to them, and who is notified."""

__all__ = ["context", "lifecycle", "messages", "observer", "repository", "spec", "watchers"]
