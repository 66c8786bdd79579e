"""The stages as computation in this process: compiled programs, batching, sampling."""

__all__ = ["ahead", "decoder", "encoder", "encoding", "generator", "initial_image", "ranker", "refiner"]
