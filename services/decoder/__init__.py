"""The decoder service: turns image tokens into pictures, and images into tokens, over gRPC and from its queues."""

__all__ = ["service"]
