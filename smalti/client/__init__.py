"""The clients of a gateway: prompts in, ranked pictures out."""

from smalti.client.asynchronous import AsyncClient
from smalti.client.batches import AsyncBatches, AsyncFiles, Batches, BatchFilters, BatchOptions, Files
from smalti.client.blocking import Client
from smalti.client.downloads import RemotePicture
from smalti.client.jobs import Event, check_succeeded, has_ended
from smalti.client.requests import DEFAULT_SERVER, GenerateOptions, ListOptions, RequestOptions
from smalti.webhooks import verify_webhook

__all__ = [
    "DEFAULT_SERVER",
    "AsyncBatches",
    "AsyncClient",
    "AsyncFiles",
    "BatchFilters",
    "BatchOptions",
    "Batches",
    "Client",
    "Event",
    "Files",
    "GenerateOptions",
    "ListOptions",
    "RemotePicture",
    "RequestOptions",
    "check_succeeded",
    "has_ended",
    "verify_webhook",
]
