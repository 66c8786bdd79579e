"""Messages that are held back until a worker is there that can do their work, or until they expire."""

__all__ = ["holding", "returning"]
