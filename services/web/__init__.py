"""The web service: the HTTP API, in OpenAI's form and in our own; a client of the gateway without state."""

__all__ = ["service", "settings"]
