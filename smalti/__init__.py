"""Smalti: prompts to pictures, laid one tile at a time."""

__version__ = "0.1.0"
