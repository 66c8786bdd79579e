"""The ranker service: scores pictures, over gRPC and from its queues."""

__all__ = ["service"]
