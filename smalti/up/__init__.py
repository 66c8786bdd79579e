"""The whole system on one machine: starts, supervises and stops its processes."""

__all__ = ["command", "plan", "ports", "servers", "services", "supervisor", "system"]
