"""Dead letters: what is written to them, looking at them, and sending them again."""

__all__ = ["access", "headers", "instructions", "letters"]
