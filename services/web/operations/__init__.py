"""For those who run the service or write clients: health, and the documentation of the API."""

__all__ = ["documents", "health"]
