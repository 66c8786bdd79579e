"""The services. Each serves one engine, or the gateway, over gRPC and from a queue."""

__all__ = ["decoder", "encoder", "gateway", "generator", "ranker", "refiner", "web"]
