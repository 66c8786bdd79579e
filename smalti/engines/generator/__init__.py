"""The image-token generator: many requests in one batch."""

__all__ = ["batch", "engine", "given", "partition", "requests", "state"]
