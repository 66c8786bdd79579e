"""The judge: a classifier that says what a picture shows."""

__all__ = ["network", "samples", "views"]
