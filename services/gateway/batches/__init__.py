"""Batches: their inputs are planned, their shards sent, and what is drawn is finished."""

from smalti.services.gateway.batches.estimating import Estimate, rate_of, seconds_left
from smalti.services.gateway.batches.repository import (
    BatchFilter,
    BatchRepository,
    BatchSnapshot,
)
from smalti.services.gateway.batches.room import Batches
from smalti.services.gateway.batches.signals import BatchOutcome, BatchSignals
from smalti.services.gateway.batches.spec import BatchParameters, BatchSource, BatchSpec, parameters_of

__all__ = [
    "BatchFilter",
    "BatchOutcome",
    "BatchParameters",
    "BatchRepository",
    "BatchSignals",
    "BatchSnapshot",
    "BatchSource",
    "BatchSpec",
    "Batches",
    "Estimate",
    "parameters_of",
    "rate_of",
    "seconds_left",
]
