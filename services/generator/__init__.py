"""The generator service: generates image tokens, over gRPC and from its queues."""

__all__ = ["service", "settings"]
