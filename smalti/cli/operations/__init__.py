"""Sub-commands for whoever runs the services."""

__all__ = ["doctor", "keys", "migrate", "queue", "revisions", "tables", "tenants"]
