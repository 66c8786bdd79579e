"""`BatchService`: the calls of the API for batches."""

from smalti.services.gateway.api.batches.edits import EditTokens
from smalti.services.gateway.api.batches.servicer import BATCH_ENDLESS, BATCH_KEPT, BATCH_SMALL, BatchServicer

__all__ = ["BATCH_ENDLESS", "BATCH_KEPT", "BATCH_SMALL", "BatchServicer", "EditTokens"]
