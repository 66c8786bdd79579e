"""The gateway: the API for clients, and the jobs behind it."""

__all__ = [
    "api",
    "database",
    "gateway",
    "identity",
    "jobs",
    "models",
    "settings",
    "webhooks",
    "work",
]
