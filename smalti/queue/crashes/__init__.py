"""Workers that crash: what they were doing, and which work is to blame."""

__all__ = ["isolation", "journal", "learning", "poison"]
