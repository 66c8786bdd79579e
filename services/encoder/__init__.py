"""The encoder service: encodes prompts, over gRPC and from its queues."""

__all__ = ["service"]
