"""Shards of batches: choosing and sending them, the events of the stages, and halving those that fail."""

from smalti.services.gateway.batches.shards.dispatch import ShardDispatcher
from smalti.services.gateway.batches.shards.events import ShardEvents
from smalti.services.gateway.batches.shards.halving import Halving
from smalti.services.gateway.batches.shards.messages import messages_end
from smalti.services.gateway.batches.shards.progress import ShardProgressBuffer

__all__ = ["Halving", "ShardDispatcher", "ShardEvents", "ShardProgressBuffer", "messages_end"]
