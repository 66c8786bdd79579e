"""The refiner service: enlarges and refines chosen pictures, over gRPC and from its queues."""

__all__ = ["service"]
