"""The clients of a gateway: prompts in, ranked pictures out."""

from smalti.client.asynchronous import AsyncClient
from smalti.client.blocking import Client
from smalti.client.downloads import RemotePicture
from smalti.client.jobs import Event, has_ended
from smalti.client.requests import DEFAULT_SERVER, GenerateOptions

__all__ = [
    "DEFAULT_SERVER",
    "AsyncClient",
    "Client",
    "Event",
    "GenerateOptions",
    "RemotePicture",
    "has_ended",
]
