"""Batches and files at a gateway: the parts `batches` and `files` of both clients."""

from smalti.client.batches.asynchronous import AsyncBatches, AsyncFiles
from smalti.client.batches.blocking import Batches, Files
from smalti.client.batches.requests import BatchFilters, BatchInputOptions, BatchOptions

__all__ = [
    "AsyncBatches",
    "AsyncFiles",
    "BatchFilters",
    "BatchInputOptions",
    "BatchOptions",
    "Batches",
    "Files",
]
