"""The stages of shards: what their handlers share, and the files that they work with."""

from smalti.service.shards.finishing import FinishingHandler
from smalti.service.shards.handler import HandlerByKind, ShardHandler
from smalti.service.shards.scratch import scratch_folder

__all__ = ["FinishingHandler", "HandlerByKind", "ShardHandler", "scratch_folder"]
