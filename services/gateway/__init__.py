"""The gateway: the API for clients, and the jobs behind it."""

__all__ = [
    "api",
    "database",
    "gateway",
    "identity",
    "jobs",
    "models",
    "opening",
    "settings",
    "webhooks",
    "work",
]
