"""The gRPC service of the gateway: checks requests, answers calls, streams changes of jobs."""

__all__ = ["batches", "file_servicer", "kinds", "servicer"]
