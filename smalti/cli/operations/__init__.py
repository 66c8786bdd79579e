"""Sub-commands for whoever runs the services."""

__all__ = ["compile", "doctor", "keys", "migrate", "queue", "revisions", "tables", "tenants"]
