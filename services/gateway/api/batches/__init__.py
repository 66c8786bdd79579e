"""`BatchService`: the calls of the API for batches."""

from smalti.services.gateway.api.batches.edits import EditTokens
from smalti.services.gateway.api.batches.servicer import BatchServicer

__all__ = ["BatchServicer", "EditTokens"]
