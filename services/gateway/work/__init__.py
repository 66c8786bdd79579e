"""Background work of the gateway: sends chunks, handles events, ends and removes jobs."""

__all__ = ["binding", "dispatch", "events", "fan_in", "loops", "progress", "refining", "sweeper"]
