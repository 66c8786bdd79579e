"""Planning batches: their inputs are read, checked, and cut into shards."""

from smalti.services.gateway.batches.planning.planner import Planner

__all__ = ["Planner"]
